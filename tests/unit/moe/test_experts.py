"""Expert pools against one plain feed-forward per row."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distmoe.errors import ConfigError, ParallelError
from distmoe.moe.experts import ExpertPool
from distmoe.nn.feed_forward import FeedForward

# Row counts of four experts: even, an expert without rows, one with all rows, one row, none at all.
COUNTS = [[3, 3, 3, 3], [5, 0, 2, 1], [0, 0, 9, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
ACTS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "gelu_new": lambda h: F.gelu(h, approximate="tanh")}


def make_pool(activation: str, kernel: str, dtype: torch.dtype, num_experts: int = 4) -> ExpertPool:
    torch.manual_seed(0)
    pool = ExpertPool(
        num_experts=num_experts, hidden_size=8, intermediate_size=16, activation=activation, kernel=kernel
    ).to(dtype)
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter)
    return pool


def oracle(pool: ExpertPool, rows: Tensor, counts: list[int], activation: str) -> Tensor:
    """Row by row, expert by expert."""
    outputs, row = [], 0
    for expert, count in enumerate(counts):
        for _ in range(count):
            hidden = pool.w_in[expert] @ rows[row]
            if activation == "swiglu":
                gate, up = hidden.chunk(2)
                outputs.append(pool.w_out[expert] @ (F.silu(gate) * up))
            else:
                hidden = ACTS[activation](hidden + pool.b_in[expert])
                outputs.append(pool.w_out[expert] @ hidden + pool.b_out[expert])
            row += 1
    return torch.stack(outputs) if outputs else rows[:0] * pool.w_out.sum()


@pytest.mark.parametrize("activation", [*ACTS, "swiglu"])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize(
    ("kernel", "dtype", "tolerance"),
    [("loop", torch.float64, 1e-12), ("grouped_mm", torch.float32, 1e-5), ("loop", torch.float32, 1e-5)],
)
def test_outputs_and_all_gradients_equal_the_oracle(
    activation: str, counts: list[int], kernel: str, dtype: torch.dtype, tolerance: float
) -> None:
    pool = make_pool(activation, kernel, dtype)
    rows = torch.randn(sum(counts), 8, dtype=dtype, requires_grad=True)
    grad = torch.randn(sum(counts), 8, dtype=dtype)
    leaves = [rows, *pool.parameters()]

    expected = oracle(pool, rows, counts, activation)
    expected_grads = torch.autograd.grad(expected, leaves, grad, allow_unused=True)
    actual = pool(rows, torch.tensor(counts))
    actual_grads = torch.autograd.grad(actual, leaves, grad)

    scale = 100.0  # sums of 16 x 8 products of standard normal numbers
    torch.testing.assert_close(actual, expected, atol=tolerance * scale, rtol=0)
    for got, want in zip(actual_grads, expected_grads, strict=True):
        torch.testing.assert_close(got, torch.zeros_like(got) if want is None else want, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("kernel", ["loop", "grouped_mm"])
def test_zero_rows_give_present_zero_gradients_for_every_parameter(kernel: str) -> None:
    pool = make_pool("gelu", kernel, torch.float32)
    rows = torch.empty(0, 8, requires_grad=True)
    output = pool(rows, torch.zeros(4, dtype=torch.int64))
    output.sum().backward()
    assert output.shape == (0, 8)
    for name, parameter in pool.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("kernel", ["loop", "grouped_mm"])
def test_an_expert_without_rows_gets_exactly_zero_gradient_and_the_others_do_not(kernel: str) -> None:
    pool = make_pool("gelu", kernel, torch.float32)
    pool(torch.randn(8, 8), torch.tensor([5, 0, 2, 1])).sum().backward()
    for name, parameter in pool.named_parameters():
        assert parameter.grad is not None, name
        assert [bool(grad.any()) for grad in parameter.grad] == [True, False, True, True], name


def test_one_expert_is_the_dense_feed_forward_with_equal_tensors() -> None:
    dense = FeedForward(8, 16, "gelu")
    dense.reset(1, "dense", 0.5)
    pool = make_pool("gelu", "auto", torch.float32, num_experts=1)
    with torch.no_grad():
        for name, parameter in pool.named_parameters():
            parameter.copy_(dense.get_parameter(name)[None])
    rows = torch.randn(6, 8)
    torch.testing.assert_close(pool(rows, torch.tensor([6])), dense(rows), atol=1e-6, rtol=0)


def test_float64_and_unaligned_widths_use_the_loop_whatever_the_kernel() -> None:
    cpu = torch.device("cpu")
    assert make_pool("gelu", "grouped_mm", torch.float64).uses_loop(cpu)
    odd = ExpertPool(num_experts=2, hidden_size=6, intermediate_size=16, kernel="grouped_mm")
    assert odd.uses_loop(cpu)  # 6 floats are 24 bytes, no multiple of 16
    assert not make_pool("gelu", "grouped_mm", torch.float32).uses_loop(cpu)


def test_auto_loops_over_few_experts_and_groups_many() -> None:
    cpu = torch.device("cpu")
    assert make_pool("gelu", "auto", torch.float32, num_experts=16).uses_loop(cpu)
    assert not make_pool("gelu", "auto", torch.float32, num_experts=17).uses_loop(cpu)


@pytest.mark.parametrize("kernel", ["loop", "grouped_mm"])
def test_autocast_decides_the_dtype_and_gradients_keep_the_parameters_dtype(kernel: str) -> None:
    pool = make_pool("gelu", kernel, torch.float32)
    rows = torch.randn(8, 8, requires_grad=True)
    counts = torch.tensor([5, 0, 2, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = pool(rows, counts)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert rows.grad is not None
    assert rows.grad.dtype == torch.float32
    assert all(parameter.grad.dtype == torch.float32 for parameter in pool.parameters())
    reference = pool(rows, counts)
    torch.testing.assert_close(output.float(), reference, atol=0.02 * reference.abs().max().item(), rtol=0)


@pytest.mark.parametrize("ep_size", [2, 4])
def test_shards_hold_slices_of_what_one_rank_draws(ep_size: int) -> None:
    whole = ExpertPool(num_experts=4, hidden_size=8, intermediate_size=16)
    whole.reset(3, "encoder.layers.1.feed_forward.pools.g0", 0.02)
    shards = []
    for ep_rank in range(ep_size):
        shard = ExpertPool(num_experts=4, hidden_size=8, intermediate_size=16, ep_rank=ep_rank, ep_size=ep_size)
        shard.reset(3, "encoder.layers.1.feed_forward.pools.g0", 0.02)
        assert shard.first_expert == ep_rank * 4 // ep_size
        shards.append(shard)
    for name, parameter in whole.named_parameters():
        assert torch.equal(torch.cat([shard.get_parameter(name) for shard in shards]), parameter), name
    assert not torch.equal(whole.w_in[0], whole.w_in[1])


def test_experts_that_do_not_divide_are_refused_with_both_numbers() -> None:
    with pytest.raises(ParallelError, match=r"6 experts on 4 ranks(.|\n)*multiple of 4(.|\n)*ep_size"):
        ExpertPool(num_experts=6, hidden_size=8, intermediate_size=16, ep_size=4)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tanh(.|\n)*gelu \| "):
        ExpertPool(num_experts=2, hidden_size=8, intermediate_size=16, activation="tanh")


@pytest.mark.gpu
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_the_grouped_matmul_equals_the_loop_on_cuda_in_bfloat16(counts: list[int]) -> None:
    pools = {kernel: make_pool("gelu", kernel, torch.bfloat16).cuda() for kernel in ("grouped_mm", "loop")}
    rows = torch.randn(sum(counts), 8).cuda().bfloat16().requires_grad_()
    got = {}
    for kernel, pool in pools.items():
        output = pool(rows, torch.tensor(counts).cuda())
        got[kernel] = (output, *torch.autograd.grad(output, [rows, *pool.parameters()], torch.ones_like(output)))
    torch.testing.assert_close(got["grouped_mm"], got["loop"], atol=0.1, rtol=0.02)  # bfloat16 sums of 16 products
