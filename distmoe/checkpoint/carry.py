"""Loads a checkpoint into a model whose task groups have been merged since: every tensor carried by name, or merged.

1. Tensors that no merge touches are read bit by bit, under the name that their task group had before.
2. Pools of a merge are read whole, one layer at a time: aligned, weights averaged by load, moments added.
3. Gate tensors follow the experts: see :mod:`distmoe.structure.gate_rows`.

Every rank that hosts a merged task group computes the merge itself, in float64 and in one order: equal bits everywhere.

Source: specification of MTSL, sections 5 and 6.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from distmoe.checkpoint.fragments import Fragment
from distmoe.checkpoint.global_view import replicated
from distmoe.checkpoint.manifest import Manifest
from distmoe.checkpoint.store import LoadedState, read_fragments, read_rest
from distmoe.checkpoint.together import number_of_ranks
from distmoe.structure.carrying import expert_sources, name_sources
from distmoe.structure.gate_rows import has_experts, regroup, regroup_moments
from distmoe.structure.merging import shares_of, weighted_mean
from distmoe.structure.moment_merging import AdamMoments, sum_moments
from distmoe.structure.plan import MergePlan
from distmoe.structure.pools import align_pools, permute_pool

_WEIGHT, _MEAN, _SQUARE = "fp32", "exp_avg", "exp_avg_sq"
_GATE = re.compile(r"encoder\.layers\.(\d+)\.feed_forward\.gate\.")
# Follows from the grouping, so the new model has it right already.
_TABLE = "table_MK"

Parts = dict[str, Tensor]
"""Weight and both moments of one tensor, by the first part of a checkpoint's keys."""


@dataclass(frozen=True)
class Carrier:
    """How to fill a model after the merges of ``plan`` from a checkpoint before them.

    Attributes:
        plan: Merges; none carries everything as it is.
        routed_layers: Model layer of each routed layer.
        experts_per_task_group: Experts of every task group.
        betas: Adam's.
        names: All tensors of the new model, over all ranks.
    """

    plan: MergePlan
    routed_layers: tuple[int, ...]
    experts_per_task_group: int
    betas: tuple[float, float]
    names: tuple[str, ...]

    def load(self, folder: Path, *, manifest: Manifest, fragments: list[Fragment]) -> LoadedState:
        """Fills the fragments in place; takes the place of :func:`distmoe.checkpoint.store.load`. Collective.

        Raises:
            CheckpointError: If a tensor would be lost or made up.
        """
        prefixes = [f"encoder.layers.{layer}.feed_forward.pools.g" for layer in self.routed_layers]
        sources = name_sources(manifest.tensors, self.names, self.plan.before, self.plan.after, prefixes=prefixes)
        carried, merged = [], []
        for fragment in fragments:
            name = fragment.view.name
            if self._gate_layer(name) is not None:
                self._fill_gate(folder, manifest, fragment)
            elif len(sources[name]) == 1:
                part = fragment.key.partition("/")[0]
                view = replace(fragment.view, name=sources[name][0])
                carried.append(replace(fragment, key=f"{part}/{view.name}", view=view))
            else:
                merged.append(fragment)
        read_fragments(folder, carried, no_dist=number_of_ranks() == 1)
        for pool in sorted({_pool_of(fragment.view.name) for fragment in merged}):
            own = [fragment for fragment in merged if _pool_of(fragment.view.name) == pool]
            self._fill_pool(folder, manifest, own, pool, sources)
        return read_rest(folder, manifest)

    def _fill_pool(
        self,
        folder: Path,
        manifest: Manifest,
        fragments: Sequence[Fragment],
        pool: str,
        sources: Mapping[str, tuple[str, ...]],
    ) -> None:
        leaves = sorted(name.rpartition(".")[2] for name in sources if _pool_of(name) == pool)
        members = [_pool_of(name) for name in sources[f"{pool}.{leaves[0]}"]]
        read = [{leaf: _read(folder, manifest, f"{member}.{leaf}") for leaf in leaves} for member in members]
        merged = self._merge(read, self._loads_of(pool), int(manifest.optimizer["adam_step"]))
        for fragment in fragments:
            part, _, name = fragment.key.partition("/")
            _fill(fragment, merged[name.rpartition(".")[2]][part])

    def _merge(self, members: list[dict[str, Parts]], loads: tuple[int, ...], step: int) -> dict[str, Parts]:
        permutations = align_pools([{leaf: parts[_WEIGHT] for leaf, parts in own.items()} for own in members])
        aligned: list[dict[str, dict[str, Tensor]]] = [
            {
                part: permute_pool({leaf: parts[part] for leaf, parts in own.items()}, permutation)
                for part in (_WEIGHT, _MEAN, _SQUARE)
            }
            for own, permutation in zip(members, permutations, strict=True)
        ]
        shares = shares_of(loads)
        result: dict[str, Parts] = {}
        for leaf in members[0]:
            moments = sum_moments(
                [AdamMoments(own[_MEAN][leaf], own[_SQUARE][leaf]) for own in aligned], step=step, betas=self.betas
            )
            weight = weighted_mean([own[_WEIGHT][leaf] for own in aligned], shares)
            result[leaf] = {_WEIGHT: weight, _MEAN: moments.mean, _SQUARE: moments.square}
        return result

    def _loads_of(self, pool: str) -> tuple[int, ...]:
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.feed_forward\.pools\.g(\d+)", pool)
        assert match is not None, f"{pool} is no pool"
        layer = self.routed_layers.index(int(match[1]))
        tasks = self.plan.after.layers[layer][int(match[2])]
        merge = next(one for one in self.plan.merges if one.layer == layer and one.result == tasks)
        return self.plan.member_loads(merge)

    def _gate_layer(self, name: str) -> int | None:
        """The routed layer whose gate has this tensor with one entry per expert, else None."""
        match = _GATE.match(name)
        if match is None or not (has_experts(name) or name.endswith(_TABLE)):
            return None
        return self.routed_layers.index(int(match[1]))

    def _fill_gate(self, folder: Path, manifest: Manifest, fragment: Fragment) -> None:
        name = fragment.view.name
        if name.endswith(_TABLE):
            return
        layer = self._gate_layer(name)
        assert layer is not None
        experts = [self.experts_per_task_group] * len(self.routed_layers)
        table = expert_sources(self.plan.before, self.plan.after, experts, mode="merge")[layer]
        own = [task_group * self.experts_per_task_group for task_group in self.plan.before.table(layer)]
        old = _read(folder, manifest, name)
        part = fragment.key.partition("/")[0]
        if part in (_WEIGHT, "frozen"):
            _fill(fragment, regroup(name, old[part], table, own, self.experts_per_task_group))
            return
        moments = regroup_moments(
            name,
            AdamMoments(old[_MEAN], old[_SQUARE]),
            table,
            own,
            self.experts_per_task_group,
            step=int(manifest.optimizer["adam_step"]),
            betas=self.betas,
        )
        _fill(fragment, moments.mean if part == _MEAN else moments.square)


def _pool_of(name: str) -> str:
    return name.rpartition(".")[0]


def _read(folder: Path, manifest: Manifest, name: str) -> Parts:
    """The whole tensor and its moments, read by this rank alone."""
    record = manifest.tensors[name]
    keys: Iterable[str] = (_WEIGHT, _MEAN, _SQUARE) if record.kind == "trainable" else (record.kind,)
    parts = {key: torch.empty(record.shape) for key in keys}
    view = replicated(name, record.shape)
    fragments = [Fragment(f"{key}/{name}", view, 0, tensor.view(-1)) for key, tensor in parts.items()]
    read_fragments(folder, fragments, no_dist=True)
    return parts


def _fill(fragment: Fragment, whole: Tensor) -> None:
    """Copies this rank's piece of a global tensor."""
    view = fragment.view
    assert tuple(whole.shape) == view.global_shape, f"{view.name}: {tuple(whole.shape)} is not {view.global_shape}"
    index = tuple(slice(start, start + length) for start, length in zip(view.offset, view.local_shape, strict=True))
    local = whole[index].reshape(-1)
    fragment.data.copy_(local[fragment.lo : fragment.lo + fragment.data.numel()])
