from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distmoe.forecast.activations import activation_bytes, logit_bytes
from distmoe.forecast.memory import Memory, experts_on, memory_on, parameters_on
from distmoe.forecast.workload import make_workload
from distmoe.models.build import build_model
from distmoe.models.output import TokenOutput
from distmoe.parallel.placement import place
from distmoe.parallel.process_groups import single_process
from distmoe.training.run_data import open_sources
from tests.unit.forecast.samples import DECODER, UNEVEN, config, workload
from tests.unit.models.samples import make_batch

DROPPED = (
    ("model.dropout=0.1", "model.attention_dropout=0.1"),
    ("model.dropout=0.1",),
    ("model.attention_dropout=0.1",),
)


def measured(*more: str) -> tuple[int, int, int]:
    """Bytes of weights, of what autograd keeps (each storage once), and of AdamW's moments, of one training step."""
    run = config(*more)
    found = make_workload(run, open_sources(run))
    model = build_model(
        run.model, shape=found.shape, tasks=found.tasks, grouping=found.grouping,
        hosting=single_process(found.grouping).hosting, seed=0,
    )  # fmt: skip
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # a storage that is freed could lend its address to the next

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    tasks = [row % len(found.tasks) for row in range(16)]
    batch = make_batch([found.length] * 16, tasks)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(batch)
        if isinstance(output, TokenOutput):
            loss = output.logits_LV.sum()  # keeps nothing: logits are forecast apart
        else:
            loss = output.logits_BC.clamp(min=-1e4).square().mean()
    loss.backward()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    moments = sum(state[key].nbytes for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq"))
    return sum(parameter.nbytes for parameter in model.parameters()), sum(kept.values()), moments


@pytest.mark.parametrize("more", [(), ("model.moe.top_k=2",), ("model.moe=null", "structure.grouping=one"), *DROPPED])
def test_a_prediction_for_one_process_is_what_a_step_keeps(more):
    found = workload(*more)
    placement = place(found.grouping, found.weights, num_ranks=1, ep_size=1, mode="colocated")
    predicted = memory_on(found, placement, 0, stage=0, precision="fp32", micro_batch=16, device_type="cpu")
    weights, activations, moments = measured(*more)
    assert (predicted.weights, predicted.moments) == (weights, moments)
    assert predicted.activations == pytest.approx(activations, rel=0.1)


@pytest.mark.parametrize(
    "more",
    [(), ("model.decoder.qk_norm=true", "model.decoder.num_kv_heads=1"), ("model.moe=null", "structure.grouping=one")],
)
def test_a_prediction_for_a_decoder_is_what_a_step_keeps(more):
    more = (*DECODER, *more)
    run = config(*more)
    found = make_workload(run, open_sources(run))
    placement = place(found.grouping, found.weights, num_ranks=1, ep_size=1, mode="colocated")
    predicted = memory_on(found, placement, 0, stage=0, precision="fp32", micro_batch=16)
    weights, activations, moments = measured(*more)
    assert (predicted.weights, predicted.moments) == (weights, moments)
    assert predicted.activations == pytest.approx(activations, rel=0.1)
    assert predicted.buffers == logit_bytes(found, micro_batch=16) == 16 * found.length * found.shape.vocab_size * 12


def test_a_partitioned_rank_holds_its_share_of_its_own_task_groups():
    """4 ranks, ep_size 2: each task group has one block, so 4 of 8 experts are on 2 ranks: 2 on each."""
    found = workload()
    blocks = place(found.grouping, found.weights, num_ranks=4, ep_size=2, mode="partitioned")
    assert experts_on(found, blocks, 3) == [(2, 1), (2, 1)]
    assert parameters_on(found, blocks, 3) == found.replicated + 4 * found.expert
    both = place(found.grouping, found.weights, num_ranks=4, ep_size=2, mode="colocated")
    assert experts_on(found, both, 3) == [(4, 2), (4, 2)]


def test_a_rank_holds_its_part_of_pools_of_different_sizes():
    found = workload(*UNEVEN)
    blocks = place(found.grouping, found.weights, num_ranks=4, ep_size=2, mode="partitioned")
    assert [experts_on(found, blocks, rank) for rank in (0, 2)] == [[(1, 1)] * 2, [(3, 1)] * 2]


def test_zero_cuts_what_its_stage_says():
    """All optimizer states of all ranks together: every parameter once, for replicated ones and experts."""
    found = workload()
    placement = place(found.grouping, found.weights, num_ranks=4, ep_size=2, mode="colocated")

    def on(rank: int, stage: int) -> Memory:
        return memory_on(found, placement, rank, stage=stage, precision="bf16", micro_batch=8)

    assert sum(on(rank, 1).moments for rank in range(4)) == pytest.approx(8 * found.total)
    assert sum(on(rank, 1).master for rank in range(4)) == pytest.approx(4 * found.total)
    assert sum(on(rank, 3).weights for rank in range(4)) == pytest.approx(2 * found.total)
    assert on(0, 0).master == 0


def test_a_reduction_bucket_has_the_type_that_micro_batches_are_added_up_in():
    """ZeRO-1; ZeRO-2 and 3 reduce in the model's own."""
    found = workload()
    placement = place(found.grouping, found.weights, num_ranks=4, ep_size=2, mode="colocated")

    def buffers(stage: int, **options: bool) -> float:
        return memory_on(
            found, placement, 0, stage=stage, precision="bf16", micro_batch=8, bucket=10**9, **options
        ).buffers

    assert buffers(1, offload=True) == 4e9
    assert buffers(1, fp32_accumulation=False) == buffers(2) == 2e9
    assert 2e9 < buffers(3) < 2.001e9


def test_gradients_of_one_micro_batch_take_the_place_of_its_activations():
    found = workload()
    placement = place(found.grouping, found.weights, num_ranks=2, ep_size=1, mode="colocated")

    def at(micro_batch: int, accumulation: int) -> Memory:
        return memory_on(
            found, placement, 0, stage=1, precision="fp32", micro_batch=micro_batch, accumulation=accumulation
        )

    shard = at(1, 2).gradients
    assert shard == at(1, 2).master
    assert at(1, 1).gradients == shard - at(1, 1).activations > 0
    assert at(64, 1).gradients == 0


def test_recomputation_and_smaller_batches_keep_less():
    plain, recomputed = workload(), workload("model.activation_checkpointing=true")
    size = activation_bytes(plain, micro_batch=8, element=4)
    assert activation_bytes(plain, micro_batch=4, element=4) == size / 2
    assert activation_bytes(recomputed, micro_batch=8, element=4) < size


@pytest.mark.parametrize("recompute", [False, True])
def test_every_shared_expert_keeps_its_part_recomputed_or_not(recompute):
    """2 layers, F 64, D 32: before and after the activation, and its output."""
    more = (f"model.activation_checkpointing={recompute}",)
    alone = activation_bytes(workload(*more), micro_batch=8, element=4)
    both = activation_bytes(workload(*more, "model.moe.shared_expert=true"), micro_batch=8, element=4)
    assert both - alone == 2 * (8 * 16) * (2 * 64 + 32) * 4
