import pytest
import torch

from distmoe.checkpoint.upcycle import PARTS, FeedForwardWeights, expert_from_dense, upcycle_pool_, upcycle_shared_
from distmoe.errors import ConfigError
from distmoe.moe.experts import ExpertPool
from distmoe.nn.feed_forward import FeedForward

DENSE = FeedForwardWeights(
    w_in=torch.arange(8.0).view(4, 2),
    b_in=torch.tensor([10.0, 11, 12, 13]),
    w_out=torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]),
    b_out=torch.tensor([0.5, -0.5]),
)


def _pool(num_experts: int = 4, width: int = 4, ep_rank: int = 0, ep_size: int = 1) -> ExpertPool:
    return ExpertPool(num_experts=num_experts, hidden_size=2, intermediate_size=width, ep_rank=ep_rank, ep_size=ep_size)


def test_full_width_experts_are_exact_copies_without_noise() -> None:
    pool = _pool()
    upcycle_pool_(pool, DENSE, noise=0.0, seed=0, name="pool")
    for part in PARTS:
        for expert in range(4):
            assert torch.equal(getattr(pool, part)[expert], getattr(DENSE, part))


def test_narrow_experts_take_neuron_slices_in_turn_and_scale_their_output() -> None:
    """Width 4 in slices of 2: experts 0 and 2 take neurons 0 1, experts 1 and 3 neurons 2 3, w_out times 2."""
    for expert, neurons in ((0, [0, 1]), (1, [2, 3]), (2, [0, 1]), (3, [2, 3])):
        got = expert_from_dense(DENSE, expert=expert, width=2)
        assert torch.equal(got.w_in, DENSE.w_in[neurons])
        assert torch.equal(got.b_in, DENSE.b_in[neurons])
        assert torch.equal(got.w_out, 2 * DENSE.w_out[:, neurons])
        assert torch.equal(got.b_out, DENSE.b_out)


def test_mean_over_the_slices_is_the_dense_part() -> None:
    dense, x = FeedForward(2, 4, "gelu"), torch.randn(5, 2)
    slices = [FeedForward(2, 2, "gelu") for _ in range(2)]
    with torch.no_grad():
        for part in PARTS:
            getattr(dense, part).copy_(getattr(DENSE, part))
            for index, narrow in enumerate(slices):
                getattr(narrow, part).copy_(getattr(expert_from_dense(DENSE, expert=index, width=2), part))
    torch.testing.assert_close((slices[0](x) + slices[1](x)) / 2, dense(x))


@pytest.mark.parametrize("width", [3, 8])
def test_width_that_does_not_divide_the_dense_width_is_refused(width: int) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)expert width {width}, dense width 4.*model.moe.expert_size"):
        expert_from_dense(DENSE, expert=0, width=width)


def test_noise_is_relative_and_different_for_each_expert() -> None:
    dense = FeedForwardWeights(torch.randn(64, 50), torch.randn(64), 100 * torch.randn(50, 64), torch.randn(50))
    pool = ExpertPool(num_experts=2, hidden_size=50, intermediate_size=64)
    upcycle_pool_(pool, dense, noise=0.01, seed=0, name="pool")
    for part in ("w_in", "w_out"):
        change = getattr(pool, part).detach() - getattr(dense, part)
        assert change.std(dim=(1, 2)) == pytest.approx(0.01 * getattr(dense, part).std().item(), rel=0.1)
        assert not torch.equal(change[0], change[1])


def test_an_expert_is_the_same_on_whichever_rank_it_lives() -> None:
    whole = _pool()
    upcycle_pool_(whole, DENSE, noise=0.1, seed=3, name="pool")
    for rank in range(2):
        part_of_pool = _pool(ep_rank=rank, ep_size=2)
        upcycle_pool_(part_of_pool, DENSE, noise=0.1, seed=3, name="pool")
        for part in PARTS:
            assert torch.equal(getattr(part_of_pool, part), getattr(whole, part)[2 * rank : 2 * rank + 2])


def test_shared_part_starts_as_zero_function_that_can_learn() -> None:
    shared = FeedForward(2, 4, "gelu")
    upcycle_shared_(shared, DENSE)
    x = torch.randn(3, 2)
    assert shared(x).count_nonzero() == 0
    shared(x).sum().backward()
    assert shared.w_out.grad is not None
    assert shared.w_out.grad.count_nonzero() > 0
