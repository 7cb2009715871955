import pytest

from distmoe.errors import ConfigError
from distmoe.structure.config import StructureConfig
from distmoe.tasks import TaskGrouping
from distmoe.training.grouping import resolve_grouping, tree_lines
from tests.unit.training.samples import TASKS


def resolve(grouping: object, num_layers: int = 2) -> TaskGrouping:
    return resolve_grouping(StructureConfig(grouping=grouping), TASKS, num_layers)


def test_words_stand_for_one_per_task_and_family() -> None:
    assert resolve("one") == TaskGrouping.one_group(3, 2)
    assert resolve("per_task") == TaskGrouping.one_per_task(3, 2)
    assert resolve("family") == TaskGrouping.uniform(3, 2, [[0, 2], [1]])


def test_one_partition_of_names_serves_all_routed_layers() -> None:
    assert resolve([["shape", "size"], ["colour"]]) == TaskGrouping.uniform(3, 2, [[2, 1], [0]])


def test_a_partition_per_layer_forms_a_tree() -> None:
    grouping = resolve([[["colour", "size", "shape"]], [["colour", "shape"], ["size"]]])
    assert grouping.layers == (((0, 1, 2),), ((0, 2), (1,)))


@pytest.mark.parametrize(
    ("grouping", "text"),
    [
        ([["colour", "size"], ["shape", "weight"]], r"names unknown tasks\n.*got: +weight"),
        ([["colour"], ["shape"]], r"leaves out tasks\n.*got: +size"),
        ([["colour", "size"], ["shape", "colour"]], r"repeats tasks\n.*got: +colour"),
        ([[["colour", "size", "shape"]]] * 3, r"another number of layers[\s\S]*got: +3 partitions\n.*expected: 2"),
        ([[["colour"], ["size", "shape"]], [["colour", "size", "shape"]]], "joins tasks that layer 0 has split"),
    ],
)
def test_a_grouping_that_does_not_fit_is_refused(grouping: object, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        resolve(grouping)


def test_tree_lines_indent_deeper_layers_and_join_equal_ones() -> None:
    grouping = TaskGrouping.from_partitions(3, [[[0, 1, 2]], [[0, 2], [1]], [[0, 2], [1]]])
    assert tree_lines(grouping, TASKS, [1, 3, 5]) == [
        "layer 1 g0: colour, size, shape",
        "  layers 3, 5 g0: colour, shape",
        "  layers 3, 5 g1: size",
    ]
