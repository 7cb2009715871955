"""Whole models through a structural phase: what they compute before and behind its border.

Three tasks with task groups of their own at both layers of a model; task groups of the first layer are joined.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from distmoe.checkpoint import store
from distmoe.checkpoint.carry import Carrier
from distmoe.checkpoint.fragments import Fragment
from distmoe.checkpoint.global_view import global_views
from distmoe.checkpoint.manifest import Manifest, TensorRecord
from distmoe.models.config import ModelConfig
from distmoe.models.multitask import MultiTaskEncoder
from distmoe.structure.layer_merging import LayerOrder, permute_layer
from distmoe.structure.plan import Merge, MergePlan
from distmoe.tasks import TaskGrouping
from tests.unit.models.samples import TASKS, make_batch, make_model, model_config, moe_config

BEFORE = TaskGrouping.one_per_task(3, 2)
MERGE = Merge(0, ((0,), (2,)))
PLAN = MergePlan(0, BEFORE, (MERGE,), (1, 1, 3))
BLOCK = model_config(moe_config("task", layers="all", unit="block", experts_per_task_group=1))
POOLED = model_config(moe_config("task", layers="all", experts_per_task=2, top_k=2))
PARTS = ("fp32", "exp_avg", "exp_avg_sq")


def built(config: ModelConfig, grouping: TaskGrouping, *, alike: bool = False) -> MultiTaskEncoder:
    return make_model(config, partitions=grouping.layers, alike=alike)


def fragments(model: MultiTaskEncoder, moments: dict[str, Tensor]) -> list[Fragment]:
    views, weights = global_views(model), {f"fp32/{name}": value.data for name, value in model.named_parameters()}
    return [
        Fragment(f"{part}/{name}", views[name], 0, (weights | moments)[f"{part}/{name}"].view(-1))
        for name, _ in model.named_parameters()
        for part in PARTS
    ]


def moments_of(model: MultiTaskEncoder, fill: float | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{part}/{name}": torch.rand(value.shape, generator=generator) if fill is None else torch.full_like(value, fill)
        for name, value in model.named_parameters()
        for part in PARTS[1:]
    }


def through(
    folder: Path, config: ModelConfig, model: MultiTaskEncoder, created: dict[Merge, dict[str, Tensor]] | None = None
) -> tuple[MultiTaskEncoder, dict[str, Tensor], dict[str, Tensor]]:
    """The model after the plan, its moments, and those before."""
    old = moments_of(model)
    manifest = Manifest(
        step=5,
        tasks=TASKS.to_json(),
        grouping=BEFORE.to_json(),
        optimizer={"adam_step": 5},
        tensors={
            name: TensorRecord("trainable", tuple(value.shape), "float32") for name, value in model.named_parameters()
        },
    )
    saved = store.save(folder, manifest=manifest, fragments=fragments(model, old), trainer_state={}, rank_state={})
    new = built(config, PLAN.after)
    moments = moments_of(new, 0.0)
    moe = config.moe
    assert moe is not None
    carrier = Carrier(
        plan=PLAN,
        routed_layers=(0, 1),
        sizes_before=tuple(map(moe.pool_sizes, PLAN.before.layers)),
        sizes_after=tuple(map(moe.pool_sizes, PLAN.after.layers)),
        mode="merge" if moe.experts_per_task is None else "pool",
        unit=moe.unit,
        num_heads=config.num_heads,
        betas=(0.9, 0.99),
        names=tuple(name for name, _ in new.named_parameters()),
        created=created or {},
    )
    carrier.load(saved, manifest=store.check(saved, tasks=TASKS), fragments=fragments(new, moments))
    return new, moments, old


@torch.no_grad()
def logits(model: MultiTaskEncoder) -> Tensor:
    return model(make_batch(extra_padding=1)).logits_BC


def test_the_function_at_the_border_of_pooling_is_the_one_before(tmp_path: Path) -> None:
    """Weights of chosen experts are 1/k + p - p: exact up to rounding."""
    before = built(POOLED, BEFORE)
    after, _, _ = through(tmp_path, POOLED, before)
    assert after.encoder.layers[0].feed_forward.gate.num_experts == 6
    torch.testing.assert_close(logits(after), logits(before), rtol=0, atol=1e-6)


def test_joining_whole_layers_that_are_equal_changes_nothing(tmp_path: Path) -> None:
    before = built(BLOCK, BEFORE, alike=True)
    after, _, _ = through(tmp_path, BLOCK, before)
    assert sorted(after.encoder.layers[0].variants) == ["g0", "g1"]
    assert torch.equal(logits(after), logits(before))


def test_whole_layers_that_differ_in_the_order_of_heads_and_units_only_are_joined_exactly(tmp_path: Path) -> None:
    before = built(BLOCK, BEFORE, alike=True)
    variants = before.encoder.layers[0].variants
    order = LayerOrder(torch.tensor([1, 0]), torch.randperm(32, generator=torch.Generator().manual_seed(0)))
    variants["g2"].load_state_dict(permute_layer(variants["g0"].state_dict(), order, num_heads=2))
    after, moments, old = through(tmp_path, BLOCK, before)
    torch.testing.assert_close(logits(after), logits(before), rtol=0, atol=1e-5)
    first, third = (
        {
            key.partition(f"variants.{name}.")[2]: value
            for key, value in old.items()
            if key.startswith(f"exp_avg/encoder.layers.0.variants.{name}.")
        }
        for name in ("g0", "g2")
    )
    back = LayerOrder(order.heads_H.argsort(), order.units_F.argsort())
    third = permute_layer(third, back, num_heads=2)
    for leaf, value in first.items():
        torch.testing.assert_close(moments[f"exp_avg/encoder.layers.0.variants.g0.{leaf}"], value + third[leaf])


def test_everything_else_is_carried_bit_by_bit(tmp_path: Path) -> None:
    """Task 2 has moved to index 1 of the deeper layer: tree order is 0 2 1 now."""
    before = built(BLOCK, BEFORE)
    after, moments, old = through(tmp_path, BLOCK, before)
    values, found = dict(before.named_parameters()), dict(after.named_parameters())
    moved = {"layers.0.variants.g1.": "layers.0.variants.g1.", "layers.1.variants.g1.": "layers.1.variants.g2."}
    moved["layers.1.variants.g2."] = "layers.1.variants.g1."
    checked = 0
    for name, value in found.items():
        if "layers.0.variants.g0." in name:
            continue
        source = next((name.replace(new, was) for new, was in moved.items() if new in name), name)
        assert torch.equal(value, values[source])
        assert all(torch.equal(moments[f"{part}/{name}"], old[f"{part}/{source}"]) for part in PARTS[1:])
        checked += 1
    assert checked == len(found) - 12


def test_a_layer_made_anew_takes_the_place_of_its_members_with_the_mean_of_their_moments(tmp_path: Path) -> None:
    before = built(BLOCK, BEFORE)
    fresh = {name: value + 1.0 for name, value in before.encoder.layers[0].variants["g0"].state_dict().items()}
    after, moments, old = through(tmp_path, BLOCK, before, {MERGE: fresh})
    prefix = "encoder.layers.0.variants"
    for leaf, value in fresh.items():
        assert torch.equal(dict(after.named_parameters())[f"{prefix}.g0.{leaf}"], value)
        mean = 0.5 * (old[f"exp_avg_sq/{prefix}.g0.{leaf}"] + old[f"exp_avg_sq/{prefix}.g2.{leaf}"])
        torch.testing.assert_close(moments[f"exp_avg_sq/{prefix}.g0.{leaf}"], mean)


@pytest.mark.parametrize("largest_pool", [3, 2])
def test_a_pool_beyond_its_limit_has_exactly_so_many_experts(tmp_path: Path, largest_pool: int) -> None:
    moe = moe_config("token", layers="all", experts_per_task=2, largest_pool=largest_pool)
    config = model_config(moe)
    after, _, _ = through(tmp_path, config, built(config, BEFORE))
    assert [pool.num_experts for pool in after.encoder.layers[0].feed_forward.pools.values()] == [largest_pool, 2]
    assert logits(after).isfinite().any(dim=1).all()
