import pytest
import torch
from torch import nn

from distmoe.data.batch import TaskBatch
from distmoe.models.output import ModelOutput
from distmoe.training.evaluate import Evaluation, TaskScore, evaluate
from tests.unit.training.samples import TASKS, batch, output


class Echo:
    """Answers every row with its label (class tasks as a one-hot): all scores are perfect. Drops out if training."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def __init__(self) -> None:
        self.dropout = nn.Dropout(0.5)

    def __call__(self, rows: TaskBatch) -> ModelOutput:
        logits = torch.full((len(rows.labels_B), 3), -torch.inf)
        for index, (task, label) in enumerate(zip(rows.task_ids_B.tolist(), rows.labels_B.tolist(), strict=True)):
            width = TASKS[task].num_outputs
            logits[index, :width] = (
                label if TASKS[task].is_regression else 4.0 * nn.functional.one_hot(torch.tensor(int(label)), width)
            )
        assert not torch.is_grad_enabled()
        return output(self.dropout(logits))

    def eval_mode(self) -> None:
        self.dropout.eval()

    def train_mode(self) -> None:
        self.dropout.train()


BATCHES = [
    batch([0, 0, 1], [2.0, 1.0, 0.5], example_ids=[1, 0, 0]),
    batch([1, 1, 0], [1.5, -2.0, 0.0], example_ids=[1, 2, 0], mask=[True, True, False]),
]


def test_every_example_is_scored_once_and_placeholders_never() -> None:
    found = evaluate(Echo(), BATCHES, split="validation", tasks=TASKS, sizes=(2, 3, 0))
    assert [(row.task, row.score, row.num_examples) for row in found.tasks] == [("colour", 1.0, 2), ("size", 1.0, 3)]
    assert found.macro == 1.0
    assert found.tasks[1].loss == 0.0
    assert {name: errors.tolist() for name, errors in found.example_errors.items()} == {
        "colour": [0.0, 0.0],
        "size": [0.0, 0.0, 0.0],
    }
    assert found.to_json()["tasks"]["colour"]["metric"] == "accuracy"


def test_evaluation_leaves_training_mode_and_random_state_as_they_were() -> None:
    engine, before = Echo(), torch.get_rng_state()
    evaluate(engine, BATCHES, split="validation", tasks=TASKS, sizes=(2, 3, 0))
    assert engine.dropout.training
    assert torch.equal(torch.get_rng_state(), before)


def test_a_missing_example_is_noticed() -> None:
    with pytest.raises(AssertionError, match=r"evaluated \(2, 3, 0\) examples per task, the split has \(3, 3, 0\)"):
        evaluate(Echo(), BATCHES, split="validation", tasks=TASKS, sizes=(3, 3, 0))


def test_a_repeated_example_is_noticed() -> None:
    with pytest.raises(AssertionError, match="1 examples were evaluated twice"):
        evaluate(
            Echo(), [*BATCHES, batch([1], [0.5], example_ids=[0])], split="validation", tasks=TASKS, sizes=(2, 3, 0)
        )


def test_a_loss_that_is_not_finite_is_null_in_manifests_and_results() -> None:
    row = TaskScore("colour", "token_accuracy", 0.0, float("nan"), 3, is_per_token=True)
    expected = {"metric": "token_accuracy", "score": 0.0, "loss": None, "examples": 3, "perplexity": None}
    assert Evaluation("test", (row,), 0.0, 1.0).to_json()["tasks"]["colour"] == expected
