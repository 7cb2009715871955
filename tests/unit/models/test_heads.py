import torch

from distmoe.models.heads import TaskHeads


def _heads() -> TaskHeads:
    heads = TaskHeads(4, [2, 3, 1])
    heads.reset(0, "heads", 0.5)
    torch.nn.init.normal_(heads.bias)
    return heads


def test_each_row_gets_its_own_tasks_linear_head_and_minus_infinity_beyond() -> None:
    heads, pooled_BD = _heads(), torch.randn(5, 4)
    task_ids = [2, 0, 1, 1, 0]
    logits_BC = heads(pooled_BD, torch.tensor(task_ids))
    for row, task in enumerate(task_ids):
        width = (2, 3, 1)[task]
        expected = heads.weight[task, :width] @ pooled_BD[row] + heads.bias[task, :width]
        torch.testing.assert_close(logits_BC[row, :width], expected)
        assert logits_BC[row, width:].tolist() == [float("-inf")] * (3 - width)


def test_absent_tasks_and_padded_columns_get_zero_gradients_not_missing_ones() -> None:
    heads = _heads()
    logits_BC = heads(torch.randn(2, 4), torch.tensor([0, 0]))
    logits_BC.logsumexp(1).sum().backward()
    assert heads.weight.grad is not None
    assert heads.weight.grad[0, :2].abs().min() > 0
    assert heads.weight.grad[0, 2:].count_nonzero() == 0
    assert heads.weight.grad[1:].count_nonzero() == 0


def test_an_empty_batch_gives_zero_gradients() -> None:
    heads = _heads()
    heads(torch.randn(0, 4), torch.zeros(0, dtype=torch.long)).sum().backward()
    assert heads.weight.grad is not None
    assert heads.weight.grad.count_nonzero() == 0


def test_logits_are_float32_under_bf16() -> None:
    heads = _heads().bfloat16()
    pooled = torch.randn(2, 4).bfloat16()
    logits = heads(pooled, torch.tensor([1, 1]))
    assert logits.dtype == torch.float32
    expected = pooled.float() @ heads.weight[1].float().T + heads.bias[1].float()
    torch.testing.assert_close(logits, expected)


def test_a_tasks_fresh_head_does_not_depend_on_later_tasks() -> None:
    more = TaskHeads(4, [2, 3, 1, 3])
    more.reset(0, "heads", 0.5)
    assert torch.equal(more.weight[:3], _heads().weight)
