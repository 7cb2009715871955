"""Invariants of the routed model against the dense one (task_routing.md section 10, numbers 1, 2 and 9)."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from distmoe.checkpoint.upcycle import FeedForwardWeights, upcycle_pool_, upcycle_shared_
from distmoe.models.config import ModelConfig
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.moe.config import MoEConfig
from distmoe.moe.layer import RoutedFeedForward
from tests.unit.models.samples import GATES, gate_config, loss_of, make_batch, make_model, model_config, moe_config


def _dense_and_upcycled(config: ModelConfig) -> tuple[MultiTaskEncoder, MultiTaskEncoder]:
    """A dense model and the routed model of ``config`` with the same weights, experts made without noise."""
    dense = make_model(config.model_copy(update={"moe": None}), partition=[[0, 1, 2]])
    with torch.no_grad():
        for layer in dense.encoder.layers:  # fresh biases are zero, which would hide a lost bias
            torch.nn.init.normal_(layer.feed_forward.b_in)
            torch.nn.init.normal_(layer.feed_forward.b_out)
    routed = make_model(config, partition=[[0, 1], [2]] if config.moe and config.moe.num_experts > 1 else None)
    routed.load_state_dict(dense.state_dict(), strict=False)
    for mine, theirs in zip(routed.encoder.layers, dense.encoder.layers, strict=True):
        if isinstance(mine.feed_forward, RoutedFeedForward):
            source = theirs.feed_forward
            weights = FeedForwardWeights(source.w_in, source.b_in, source.w_out, source.b_out)
            for pool in mine.feed_forward.pools.values():
                upcycle_pool_(pool, weights, noise=0.0, seed=0, name="pool")
            if mine.feed_forward.shared_mlp is not None:
                upcycle_shared_(mine.feed_forward.shared_mlp, weights)
    return dense, routed


def _difference(config: ModelConfig) -> float:
    dense, routed = _dense_and_upcycled(config)
    batch = make_batch()
    expected, got = dense(batch).logits_BC, routed(batch).logits_BC
    assert torch.equal(expected.isfinite(), got.isfinite())
    return (torch.nan_to_num(expected, neginf=0) - torch.nan_to_num(got, neginf=0)).abs().max().item()


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("combine", ["straight_through", "renorm"])
@pytest.mark.parametrize("gate", GATES)
def test_upcycled_model_is_the_dense_model_for_every_gate(gate: str, combine: str, top_k: int) -> None:
    moe = moe_config(gate, layers="all", combine=combine, top_k=top_k, expert_size=32, shared_expert=True)
    assert _difference(model_config(moe)) <= 1e-5


@pytest.mark.parametrize("gate", [gate for gate in GATES if gate != "fixed"])
def test_raw_combine_breaks_the_dense_model(gate: str) -> None:
    """Guards the test above against being vacuous. A fixed gate is left out: its one expert has probability 1."""
    assert _difference(model_config(moe_config(gate, layers="all", combine="raw"))) > 1e-2


def test_one_expert_is_the_dense_model_over_twenty_training_steps() -> None:
    moe = moe_config("token", layers="all", num_experts=1)
    models = _dense_and_upcycled(model_config(moe, init_std=0.05))
    losses: list[list[float]] = []
    for model in models:
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        curve = []
        for step in range(20):
            loss = loss_of(model, make_batch(seed=step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        losses.append(curve)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert losses[0][-1] != pytest.approx(losses[0][0], abs=1e-3), "nothing was learned, so nothing was compared"


@pytest.mark.parametrize(("gate", "router_flops"), [("token", 2 * 4 * 64), ("per_task", 2 * 3 * 4 * 64), ("task", 0)])
def test_active_flops_of_one_expert_per_token_are_dense_plus_router(gate: str, router_flops: int) -> None:
    """Without padding: with padding the routed model does less than the dense one. In training, where all positions of
    the last layer are computed.
    """
    config = model_config(moe_config(gate, layers="all"), hidden_size=64, intermediate_size=256, max_positions=32)
    batch = make_batch((32,) * 4)
    flops = []
    for model in _dense_and_upcycled(config):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.train()(batch)
        flops.append(counter.get_total_flops())
    dense, routed = flops
    num_layers, num_tokens = 2, 128
    assert dense < routed + 1
    assert routed <= 1.02 * dense + num_layers * num_tokens * router_flops


def test_compute_matched_experts_that_cover_all_slices_add_up_to_the_dense_part() -> None:
    """top_k 2 of width F/2, experts 0 and 1 chosen by a table: slices 0 and 1 at weight 1/2 each, times 2."""
    table = {"mood": [0, 1], "topic": [1, 2], "score": [2, 3]}
    dense = make_model(model_config(None))
    routed = make_model(model_config(MoEConfig(num_experts=4, top_k=2, gate=gate_config("fixed", table=table))))
    routed.load_state_dict(dense.state_dict(), strict=False)
    source = dense.encoder.layers[1].feed_forward
    torch.nn.init.normal_(source.b_out)
    weights = FeedForwardWeights(source.w_in, source.b_in, source.w_out, source.b_out)
    upcycle_pool_(routed.encoder.layers[1].feed_forward.pools["g0"], weights, noise=0.0, seed=0, name="pool")
    batch = make_batch()
    torch.testing.assert_close(routed(batch).logits_BC, dense(batch).logits_BC, atol=1e-5, rtol=1e-5)
