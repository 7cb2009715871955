"""The conditional attention bias against explicit loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distmoe.nn.conditional import ConditionalAttentionBias, TaskConditioner
from distmoe.nn.conditional.attention import AttentionForm
from distmoe.nn.conditional.generator import GeneratorFactory
from tests.unit.nn.conditional.samples import trained

FORMS: list[AttentionForm] = ["vector", "full"]
L, SIDE, TASKS, K = 8, 3, 3, 5  # blocks of 3, 3 and 2 positions


def make(form: AttentionForm) -> tuple[ConditionalAttentionBias, TaskConditioner]:
    generators = GeneratorFactory("linear", TASKS, K)
    bias = ConditionalAttentionBias(max_length=L, block_side=SIDE, form=form, generators=generators)
    conditioner = TaskConditioner(TASKS, K)
    trained(bias)
    trained(conditioner)
    return bias, conditioner


def everything(rows: int, length: int) -> Tensor:
    return torch.ones(rows, 1, 1, length, dtype=torch.bool)


def oracle(bias: ConditionalAttentionBias, conditioner: TaskConditioner, task: int, length: int) -> Tensor:
    """M(z) entry by entry, from the block and the place in the block of query and key."""
    generated = bias.generator.weight @ conditioner.z_Tk[task] + bias.generator.bias
    gamma, beta = generated.chunk(2)
    M = torch.zeros(length, length)
    for i in range(length):
        for j in range(length):
            if i // SIDE == j // SIDE and max(i, j) < L:
                row, column = i % SIDE, j % SIDE
                entry = column if bias.form == "vector" else row * SIDE + column
                M[i, j] = bias.blocks_Ls[i, column] * (1 + gamma[entry]) + beta[entry]
    return M


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 2, 3, 7, L, L + 1, L + 5])
def test_equals_the_double_loop_at_any_length(form: AttentionForm, length: int) -> None:
    bias, conditioner = make(form)
    task_ids_B = torch.tensor([2, 0, 2])
    M_B1SS = bias(conditioner(task_ids_B), everything(3, length), dtype=torch.float32)
    assert M_B1SS.shape == (3, 1, length, length)  # one axis for all heads
    for row, task in enumerate(task_ids_B.tolist()):
        torch.testing.assert_close(M_B1SS[row, 0], oracle(bias, conditioner, task, length), atol=1e-6, rtol=1e-6)
    assert torch.equal(M_B1SS[0], M_B1SS[2])


@pytest.mark.parametrize("form", FORMS)
def test_is_exactly_zero_off_the_blocks_and_beyond_the_last_position(form: AttentionForm) -> None:
    """Length 10 with blocks at 0-2, 3-5, 6-7; positions 8 and 9 have no bias."""
    bias, conditioner = make(form)
    M_SS = bias(conditioner(torch.tensor([1])), everything(1, 10), dtype=torch.float32)[0, 0]
    block_S = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3, 4])  # 8 and 9 share nothing with anyone
    inside_SS = block_S[:, None] == block_S
    inside_SS[8:, :] = inside_SS[:, 8:] = False
    assert M_SS[~inside_SS].abs().max() == 0
    assert M_SS[inside_SS].abs().min() > 0


@pytest.mark.parametrize("form", FORMS)
def test_a_shorter_batch_crops_the_bias(form: AttentionForm) -> None:
    bias, conditioner = make(form)
    conditioning = conditioner(torch.tensor([1, 2]))
    whole = bias(conditioning, everything(2, L), dtype=torch.float32)
    short = bias(conditioning, everything(2, 5), dtype=torch.float32)
    assert torch.equal(short, whole[..., :5, :5])


@pytest.mark.parametrize("tasks_of_rows", [[1], [1, 2, 0, 1]])  # fewer rows than tasks, and more
def test_fewer_queries_get_the_first_rows_of_the_bias(tasks_of_rows: list[int]) -> None:
    bias, conditioner = make("full")
    conditioning, mask_B11S = conditioner(torch.tensor(tasks_of_rows)), everything(len(tasks_of_rows), L + 2)
    mask_B11S[0, ..., 4:] = False
    whole = bias(conditioning, mask_B11S, dtype=torch.float32)
    part = bias(conditioning, mask_B11S, dtype=torch.float32, num_queries=2)
    assert part.shape == (len(tasks_of_rows), 1, 2, L + 2)
    assert torch.equal(part, whole[:, :, :2])


def test_with_zero_blocks_the_vector_form_repeats_one_row() -> None:
    bias, conditioner = make("vector")
    with torch.no_grad():
        bias.blocks_Ls.zero_()
    M_SS = bias(conditioner(torch.tensor([1])), everything(1, L), dtype=torch.float32)[0, 0]
    assert torch.equal(M_SS[0, :3], M_SS[2, :3])
    assert torch.equal(M_SS[0, :3], M_SS[4, 3:6])


def test_padded_keys_get_no_weight() -> None:
    bias, conditioner = make("vector")
    mask_B11S = torch.arange(6) < torch.tensor([4, 1]).view(2, 1, 1, 1)
    M_B1SS = bias(conditioner(torch.tensor([0, 2])), mask_B11S, dtype=torch.float32)
    weights = M_B1SS.softmax(-1)
    assert weights.masked_select(~mask_B11S.expand_as(weights)).abs().max() == 0
    assert torch.isfinite(weights).all()


def test_attention_adds_the_bias_to_the_scores_of_every_head() -> None:
    bias, conditioner = make("full")
    q, k, v = torch.randn(3, 2, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    task_ids_B = torch.tensor([0, 2])
    mask = bias(conditioner(task_ids_B), everything(2, 6), dtype=torch.float32)
    result = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    for row, task in enumerate(task_ids_B.tolist()):
        M = oracle(bias, conditioner, task, 6)
        for head in range(4):
            scores = M + q[row, head] @ k[row, head].T / 5**0.5
            expected = scores.softmax(-1) @ v[row, head]
            torch.testing.assert_close(result[row, head], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_packed_documents_read_their_own_positions(form: AttentionForm) -> None:
    """One row holds documents of 5 and 4 tokens; each sees the corner of M that it would see alone."""
    bias, conditioner = make(form)
    conditioning = conditioner(torch.tensor([1]))
    document_S = torch.tensor([0] * 5 + [1] * 4)
    positions_1S = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]])
    mask_11SS = (document_S[:, None] == document_S)[None, None]
    packed = bias(conditioning, mask_11SS, dtype=torch.float32, positions_BS=positions_1S)[0, 0]
    M = bias(conditioning, everything(1, L), dtype=torch.float32)[0, 0]
    torch.testing.assert_close(packed[:5, :5], M[:5, :5], atol=0, rtol=0)
    torch.testing.assert_close(packed[5:, 5:], M[:4, :4], atol=0, rtol=0)
    assert packed[:5, 5:].eq(float("-inf")).all()


@pytest.mark.parametrize("form", FORMS)
def test_positions_in_order_give_the_unpacked_bias_beyond_the_last_position_too(form: AttentionForm) -> None:
    bias, conditioner = make(form)
    conditioning, length = conditioner(torch.tensor([1, 0])), L + 3
    positions_BS = torch.arange(length).expand(2, -1)
    packed = bias(conditioning, everything(2, length), dtype=torch.float32, positions_BS=positions_BS)
    assert torch.equal(packed, bias(conditioning, everything(2, length), dtype=torch.float32))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_equal_those_of_the_double_loop(form: AttentionForm) -> None:
    bias, conditioner = make(form)
    parameters = [bias.blocks_Ls, bias.generator.weight, bias.generator.bias, conditioner.z_Tk]
    weight = torch.randn(2, 10, 10, generator=torch.Generator().manual_seed(2))
    fast = bias(conditioner(torch.tensor([2, 0])), everything(2, 10), dtype=torch.float32)[:, 0]
    slow = torch.stack([oracle(bias, conditioner, task, 10) for task in (2, 0)])
    for mine, expected in zip(
        torch.autograd.grad((fast * weight).sum(), parameters),
        torch.autograd.grad((slow * weight).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_a_task_are_bitwise_equal_in_every_batch(form: AttentionForm) -> None:
    """Whatever their place and company: scores of candidates must not depend on the rest of the pool."""
    bias, conditioner = make(form)
    alone = bias(conditioner(torch.tensor([1])), everything(1, 6), dtype=torch.float32)[0]
    mixed = bias(conditioner(torch.tensor([0, 1, 2, 2, 1])), everything(5, 6), dtype=torch.float32)
    assert torch.equal(mixed[1], alone)
    assert torch.equal(mixed[4], alone)
