from distmoe.data.prepare import SplitReport
from distmoe.training.run_data import task_sizes
from distmoe.training.summary import TaskSize
from tests.unit.training.samples import TASKS


def test_sizes_add_up_truncation_over_splits_and_are_zero_without_a_split() -> None:
    reports = [
        SplitReport(task=name, split=split, num_examples=count, num_truncated=cut, num_dropped=dropped)
        for name, split, count, cut, dropped in [
            ("colour", "train", 10, 2, 90),
            ("colour", "validation", 4, 1, 0),
            ("size", "train", 8, 0, 0),
            ("size", "validation", 3, 0, 0),
            ("size", "test", 5, 1, 0),
            ("shape", "train", 1, 0, 0),
            ("shape", "validation", 1, 0, 0),
        ]
    ]
    assert task_sizes(TASKS, reports) == (TaskSize(10, 4, 0, 3, 90), TaskSize(8, 3, 5, 1), TaskSize(1, 1, 0, 0))
