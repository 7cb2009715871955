import math

import pytest
import torch
from torch import Tensor

from distmoe.nn.attention import SelfAttention


def _attention(hidden_size: int = 12, num_heads: int = 3, dropout: float = 0.0) -> SelfAttention:
    attention = SelfAttention(hidden_size, num_heads, dropout=dropout)
    attention.reset(0, "attention", 0.3)
    torch.nn.init.normal_(attention.qkv.bias)
    return attention


def _oracle(attention: SelfAttention, x_BSD: Tensor, mask_BS: Tensor) -> Tensor:
    """Softmax attention in loops over sequences, heads and queries."""
    B, S, D = x_BSD.shape
    width = D // attention.num_heads
    q, k, v = (attention.qkv(x_BSD)[..., part * D : (part + 1) * D] for part in range(3))
    result = torch.zeros(B, S, D)
    for b in range(B):
        keys = [s for s in range(S) if mask_BS[b, s]]
        for head in range(attention.num_heads):
            cut = slice(head * width, (head + 1) * width)
            for s in range(S):
                scores = torch.stack([q[b, s, cut] @ k[b, key, cut] / math.sqrt(width) for key in keys])
                weights = scores.softmax(0)
                result[b, s, cut] = sum(w * v[b, key, cut] for w, key in zip(weights, keys, strict=True))
    return attention.out(result)


def test_equals_attention_in_loops_with_padding() -> None:
    torch.manual_seed(0)
    attention, x_BSD = _attention(), torch.randn(3, 5, 12)
    mask_BS = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()
    torch.testing.assert_close(
        attention(x_BSD, mask_BS[:, None, None]), _oracle(attention, x_BSD, mask_BS), atol=1e-6, rtol=1e-5
    )


def test_masked_keys_do_not_reach_any_query() -> None:
    torch.manual_seed(0)
    attention, x_BSD = _attention(), torch.randn(1, 4, 12)
    mask_B11S = torch.tensor([[[[True, True, False, True]]]])
    changed_BSD = x_BSD.clone()
    changed_BSD[0, 2] += 100
    before, after = attention(x_BSD, mask_B11S), attention(changed_BSD, mask_B11S)
    kept = [0, 1, 3]
    assert torch.equal(before[:, kept], after[:, kept])


@pytest.mark.parametrize("rows", [1, 5])
def test_fewer_queries_give_their_own_part(rows: int) -> None:
    """With one mask for all queries, and with one of each."""
    torch.manual_seed(0)
    attention, x_BSD = _attention(), torch.randn(2, 5, 12)
    mask = torch.rand(2, 1, rows, 5) < 0.7
    mask[..., 0] = True
    whole = attention(x_BSD, mask)
    part = attention(x_BSD, mask[:, :, :2], num_queries=2)
    assert part.shape == (2, 2, 12)
    torch.testing.assert_close(part, whole[:, :2], atol=1e-6, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_acts_while_training_only(training: bool) -> None:
    torch.manual_seed(0)
    attention, x_BSD = _attention(dropout=0.5).train(training), torch.randn(1, 6, 12)
    mask = torch.ones(1, 1, 1, 6, dtype=torch.bool)
    assert torch.equal(attention(x_BSD, mask), attention(x_BSD, mask)) is not training
