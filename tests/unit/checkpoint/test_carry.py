"""A checkpoint into a model with merged task groups: what is carried, what is merged, on pieces of tensors.

Three tasks, layers 1 and 3 routed, one expert of width 2 per task group. Tasks 0 and 2 are merged at layer 1, so that
task 1's task group goes from index 1 to index 1 there, and from g1 to g2 at layer 3, where tree order is 0 2 1 now.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from distmoe.checkpoint import store
from distmoe.checkpoint.carry import Carrier
from distmoe.checkpoint.fragments import Fragment
from distmoe.checkpoint.global_view import replicated
from distmoe.checkpoint.manifest import Manifest, TensorRecord
from distmoe.errors import CheckpointError
from distmoe.structure.least_squares import Grams
from distmoe.structure.moment_merging import AdamMoments, sum_moments
from distmoe.structure.plan import Merge, MergePlan
from distmoe.tasks import TaskGrouping, TaskSet, TaskSpec

TASKS = TaskSet(
    tuple(TaskSpec(name=f"t{i}", kind="classification", metric="accuracy", labels=("x", "y")) for i in range(3))
)
BEFORE = TaskGrouping.one_per_task(3, 2)
PLAN = MergePlan(0, BEFORE, (Merge(0, ((0,), (2,))),), (1, 5, 3))
LEAVES = {"w_in": (1, 2, 3), "b_in": (1, 2), "w_out": (1, 3, 2), "b_out": (1, 3)}
PARTS = ("fp32", "exp_avg", "exp_avg_sq")
STEP, BETAS = 7, (0.9, 0.99)


def shapes(grouping: TaskGrouping, pooled: int | None = None) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"pooler.weight": (2, 2)}
    for index, layer in enumerate((1, 3)):
        sizes = sizes_of(grouping, pooled)[index]
        found[f"encoder.layers.{layer}.feed_forward.gate.logits_ME"] = (3, sum(sizes))
        for group, size in enumerate(sizes):
            prefix = f"encoder.layers.{layer}.feed_forward.pools.g{group}"
            found |= {f"{prefix}.{leaf}": (size, *shape[1:]) for leaf, shape in LEAVES.items()}
    return found


@pytest.fixture
def old() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = {
        f"{part}/{name}": torch.rand(shape, generator=generator)
        for name, shape in shapes(BEFORE).items()
        for part in PARTS
    }
    # Pools that started alike: the second differs a little from the first, so that alignment keeps the order of units.
    for key in values:
        if ".layers.1." in key and ".pools.g2." in key:
            values[key] = values[key.replace(".g2.", ".g0.")] + 0.01 * values[key]
    return values


@pytest.fixture
def folder(tmp_path: Path, old: dict[str, Tensor]) -> Path:
    fragments = [
        Fragment(key, replicated(key.partition("/")[2], tuple(value.shape)), 0, value.view(-1))
        for key, value in old.items()
    ]
    manifest = Manifest(
        step=STEP,
        tasks=TASKS.to_json(),
        grouping=BEFORE.to_json(),
        optimizer={"adam_step": STEP},
        tensors={name: TensorRecord("trainable", shape, "float32") for name, shape in shapes(BEFORE).items()},
    )
    return store.save(tmp_path, manifest=manifest, fragments=fragments, trainer_state={}, rank_state={})


def sizes_of(grouping: TaskGrouping, pooled: int | None = None) -> tuple[tuple[int, ...], ...]:
    """One expert per task group, or one per task and at most ``pooled``."""
    return tuple(
        tuple(1 if pooled is None else min(len(own), pooled) for own in partition) for partition in grouping.layers
    )


def carrier(names: tuple[str, ...], plan: MergePlan = PLAN, pooled: int | None = None) -> Carrier:
    return Carrier(
        plan=plan, routed_layers=(1, 3), sizes_before=sizes_of(plan.before), sizes_after=sizes_of(plan.after, pooled),
        mode="merge" if pooled is None else "pool", unit="ffn", num_heads=1, betas=BETAS, names=names,
    )  # fmt: skip


def load(
    folder: Path, plan: MergePlan = PLAN, pooled: int | None = None, grams: dict | None = None
) -> dict[str, Tensor]:
    """Every tensor in two pieces, as two ranks of ZeRO would hold it."""
    new = {f"{part}/{name}": torch.zeros(shape) for name, shape in shapes(plan.after, pooled).items() for part in PARTS}
    fragments = []
    for key, value in new.items():
        view, flat = replicated(key.partition("/")[2], tuple(value.shape)), value.view(-1)
        fragments += [Fragment(key, view, 0, flat[:1]), Fragment(key, view, 1, flat[1:])]
    names = tuple(shapes(plan.after))
    manifest = store.check(folder, tasks=TASKS)
    for part in (fragments[::2], fragments[1::2]):
        replace(carrier(names, plan, pooled), grams=grams or {}).load(folder, manifest=manifest, fragments=part)
    return new


def test_untouched_tensors_are_carried_bit_by_bit_also_under_another_index(folder: Path, old: dict) -> None:
    new = load(folder)
    for part in PARTS:
        assert torch.equal(new[f"{part}/pooler.weight"], old[f"{part}/pooler.weight"])
        for leaf in LEAVES:
            pools = f"{part}/encoder.layers.%d.feed_forward.pools.g%d.{leaf}"
            assert torch.equal(new[pools % (1, 1)], old[pools % (1, 1)])  # task 1
            assert torch.equal(new[pools % (3, 1)], old[pools % (3, 2)])  # task 2
            assert torch.equal(new[pools % (3, 2)], old[pools % (3, 1)])  # task 1


def test_merged_pools_are_load_weighted_means_with_added_moments(folder: Path, old: dict) -> None:
    """Loads 1 and 3: a quarter and three quarters."""
    new = load(folder)
    for leaf in LEAVES:
        pools = f"%s/encoder.layers.1.feed_forward.pools.g%d.{leaf}"
        first, second = ({part: old[pools % (part, group)] for part in PARTS} for group in (0, 2))
        torch.testing.assert_close(new[pools % ("fp32", 0)], 0.25 * first["fp32"] + 0.75 * second["fp32"])
        moments = sum_moments(
            [AdamMoments(own["exp_avg"], own["exp_avg_sq"]) for own in (first, second)], step=STEP, betas=BETAS
        )
        assert torch.equal(new[pools % ("exp_avg", 0)], moments.mean)
        assert torch.equal(new[pools % ("exp_avg_sq", 0)], moments.square)


def test_with_what_the_members_saw_weights_are_joined_by_least_squares_and_moments_as_ever(
    folder: Path, old: dict
) -> None:
    """Each member saw inputs along one axis only, so the joined input weights take each axis from its member."""

    def seen(axis: int) -> Grams:
        return Grams(torch.diag(torch.eye(4, dtype=torch.float64)[axis]), torch.eye(3, dtype=torch.float64))

    grams = {(0, (0,)): (seen(0),), (0, (2,)): (seen(1),)}
    new, means, pools = load(folder, grams=grams), load(folder), "%s/encoder.layers.1.feed_forward.pools.g%d.w_in"
    found = new[pools % ("fp32", 0)]
    torch.testing.assert_close(found[..., 0], old[pools % ("fp32", 0)][..., 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[..., 1], old[pools % ("fp32", 2)][..., 1], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(new[key], means[key]) for key in means if not key.startswith("fp32/"))


def test_gates_follow_their_experts(folder: Path, old: dict) -> None:
    new, name = load(folder), "fp32/encoder.layers.%d.feed_forward.gate.logits_ME"
    before, after = old[name % 1], new[name % 1]
    assert after.shape == (3, 2)
    assert (after[0, 0], after[1, 1], after[2, 0]) == (before[0, 0], before[1, 1], before[2, 2])
    assert torch.equal(new[name % 3], old[name % 3][:, [0, 2, 1]])


def test_a_pool_keeps_the_experts_of_its_members_bit_by_bit_with_their_moments(folder: Path, old: dict) -> None:
    new = load(folder, pooled=3)
    for part in PARTS:
        for leaf in LEAVES:
            pools = f"{part}/encoder.layers.1.feed_forward.pools.g%d.{leaf}"
            assert torch.equal(new[pools % 0], torch.cat([old[pools % 0], old[pools % 2]]))
            assert torch.equal(new[pools % 1], old[pools % 1])


def test_every_task_of_a_new_pool_goes_on_to_its_own_expert(folder: Path, old: dict) -> None:
    """Layer 1 has experts 0 and 2 in its first pool, and 1 in its second."""
    name = "fp32/encoder.layers.1.feed_forward.gate.logits_ME"
    before, after = old[name], load(folder, pooled=3)[name]
    assert (after[0, 0], after[2, 1], after[1, 2]) == (before[0, 0], before[2, 2], before[1, 1])
    assert after[0, 0] > after[0, 1]
    assert after[2, 1] > after[2, 0]


def test_a_pool_beyond_its_limit_merges_as_joined_task_groups_do(folder: Path, old: dict) -> None:
    pooled, merged = load(folder, pooled=1), load(folder)
    assert all(torch.equal(pooled[key], merged[key]) for key in merged if "gate" not in key)


def test_without_merges_everything_is_as_it_was(folder: Path, old: dict) -> None:
    new = load(folder, PLAN.keep(()))
    assert all(torch.equal(new[key], old[key]) for key in old)


def test_a_model_with_other_tensors_is_refused(folder: Path) -> None:
    names = tuple(shapes(PLAN.after))
    manifest = store.check(folder, tasks=TASKS)
    with pytest.raises(CheckpointError, match=r"no source: extra[\s\S]*left over: none"):
        carrier((*names, "extra")).load(folder, manifest=manifest, fragments=[])
    with pytest.raises(CheckpointError, match=r"left over: pooler.weight"):
        replace(carrier(names), names=names[1:]).load(folder, manifest=manifest, fragments=[])
