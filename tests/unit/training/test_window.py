import torch

from distmoe.training.objective import LossBreakdown
from distmoe.training.window import LossWindow


def losses(total: float, by_task: list[float], counts: list[float], balance: float = 0.0) -> LossBreakdown:
    return LossBreakdown(
        total=torch.tensor(total, requires_grad=True),
        task=torch.tensor(total / 2),
        loss_B=torch.zeros(1),
        sum_by_task_N=torch.tensor(by_task),
        count_by_task_N=torch.tensor(counts),
        finite=torch.tensor(1.0),
        auxiliary={"balance": torch.tensor(balance)},
    )


def test_means_are_over_micro_batches_and_over_each_tasks_examples() -> None:
    window = LossWindow(3, ("balance",), num_counters=2)
    window.add(losses(1.0, [2.0, 0.0, 3.0], [2, 0, 1], balance=1.0), num_tokens=10)
    window.add(losses(3.0, [4.0, 0.0, 0.0], [4, 0, 0], balance=2.0), num_tokens=5)
    window.count([7, 0])
    window.count([1, 2])
    summary = window.summary()
    assert summary is not None
    assert (summary.loss, summary.task_loss, summary.tokens) == (2.0, 1.0, 15)
    assert summary.task_losses == (1.0, None, 3.0)
    assert summary.examples == (6, 0, 1)
    assert summary.counters == (8, 2)
    assert summary.auxiliary == {"balance": 1.5}


def test_an_empty_window_has_no_summary_and_reading_clears() -> None:
    window = LossWindow(1, ("balance",))
    assert window.summary() is None
    window.add(losses(1.0, [1.0], [1.0]), num_tokens=1)
    assert window.summary() is not None
    assert window.summary() is None


def test_a_window_resumed_in_the_middle_gives_exactly_the_same_means() -> None:
    torch.manual_seed(0)
    values = torch.rand(50).tolist()
    whole, first, second = (LossWindow(1, ("balance",)) for _ in range(3))
    for value in values:
        whole.add(losses(value, [value], [1.0]), num_tokens=3)
    for value in values[:17]:
        first.add(losses(value, [value], [1.0]), num_tokens=3)
    second.load_state_dict(first.state_dict())
    for value in values[17:]:
        second.add(losses(value, [value], [1.0]), num_tokens=3)
    assert second.summary() == whole.summary()
