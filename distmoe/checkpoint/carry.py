"""Loads a checkpoint into a model whose task groups have been merged since: every tensor carried by name, or merged.

1. Tensors that no merge touches are read bit by bit, under the name that their task group had before.
2. Pools of a merge are read whole, one layer at a time. An expert that is made of several is aligned, its weights
   averaged by load, its moments added; one that a larger pool has kept is carried bit by bit.
   Layers of task groups' own (unit ``block``) are merged as a whole, attention heads brought to one order too.
3. Gate tensors follow the experts: see :mod:`distmoe.structure.gate_rows`.

Every rank that hosts a merged task group computes the merge itself, in float64 and in one order: equal bits everywhere.

Source: specification of MTSL, sections 5 and 6.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from distmoe.checkpoint.fragments import Fragment
from distmoe.checkpoint.global_view import replicated
from distmoe.checkpoint.manifest import Manifest
from distmoe.checkpoint.store import LoadedState, read_fragments, read_rest
from distmoe.checkpoint.together import number_of_ranks
from distmoe.structure.carrying import PoolMode, expert_sources, name_sources, task_group_sources
from distmoe.structure.feed_forward_tensors import FeedForwardTensors
from distmoe.structure.gate_rows import ExpertTable, Reach, has_experts, regroup, regroup_moments
from distmoe.structure.layer_merging import align_layer, permute_layer
from distmoe.structure.least_squares import Grams, merge_feed_forward_least_squares
from distmoe.structure.merging import shares_of, weighted_mean
from distmoe.structure.moment_merging import AdamMoments, mean_moments, sum_moments
from distmoe.structure.plan import Merge, MergePlan
from distmoe.structure.pools import align_pools, permute_pool, similar_experts
from distmoe.tasks.grouping import TaskGroup

_WEIGHT, _MEAN, _SQUARE = "fp32", "exp_avg", "exp_avg_sq"
_GATE = re.compile(r"encoder\.layers\.(\d+)\.feed_forward\.gate\.")
_OWNED = re.compile(r"(encoder\.layers\.\d+\.(?:feed_forward\.pools|variants)\.g\d+)\.(.+)")
# Follows from the grouping, so the new model has it right already.
_TABLE = "table_MK"

Parts = dict[str, Tensor]
"""Weight and both moments of one tensor, by the first part of a checkpoint's keys."""
Member = dict[str, dict[str, Tensor]]
"""The same the other way round: by the first part of a key, the tensors of one member by name."""


@dataclass(frozen=True)
class Carrier:
    """How to fill a model after the merges of ``plan`` from a checkpoint before them.

    Attributes:
        plan: Merges; none carries everything as it is.
        routed_layers: Model layer of each routed layer.
        sizes_before: Experts of each task group, per routed layer, in the checkpoint.
        sizes_after: The same of the new model.
        mode: Whether joined task groups merge their experts or pool them.
        unit: What a routed layer has once per expert, or with ``block`` once per task group.
        num_heads: Attention heads of the model.
        betas: Adam's.
        names: All tensors of the new model, over all ranks.
        grams: What the members of each merge saw: their experts are joined by least squares then.
        created: Weights of layers that were made anew, by merge; their moments are the plain mean of the members'.
    """

    plan: MergePlan
    routed_layers: tuple[int, ...]
    sizes_before: tuple[tuple[int, ...], ...]
    sizes_after: tuple[tuple[int, ...], ...]
    mode: PoolMode
    unit: Literal["ffn", "block"]
    num_heads: int
    betas: tuple[float, float]
    names: tuple[str, ...]
    grams: Mapping[tuple[int, TaskGroup], Sequence[Grams]] = field(default_factory=dict)
    created: Mapping[Merge, Mapping[str, Tensor]] = field(default_factory=dict)

    def load(self, folder: Path, *, manifest: Manifest, fragments: list[Fragment]) -> LoadedState:
        """Fills the fragments in place; takes the place of :func:`distmoe.checkpoint.store.load`. Collective.

        Raises:
            CheckpointError: If a tensor would be lost or made up.
        """
        prefixes = [self._owned_name(index, "") for index in range(len(self.routed_layers))]
        sources = name_sources(manifest.tensors, self.names, self.plan.before, self.plan.after, prefixes=prefixes)
        tables = self._tables(folder, manifest)
        carried, merged = [], []
        for fragment in fragments:
            name = fragment.view.name
            if (layer := self._gate_layer(name)) is not None:
                self._fill_gate(folder, manifest, fragment, layer, tables[layer])
            elif len(sources[name]) == 1:
                part = fragment.key.partition("/")[0]
                view = replace(fragment.view, name=sources[name][0])
                carried.append(replace(fragment, key=f"{part}/{view.name}", view=view))
            else:
                merged.append(fragment)
        read_fragments(folder, carried, no_dist=number_of_ranks() == 1)
        for owner in sorted({_split(fragment.view.name)[0] for fragment in merged}):
            own = [fragment for fragment in merged if _split(fragment.view.name)[0] == owner]
            leaves = sorted(_split(name)[1] for name in sources if name.startswith(f"{owner}."))
            if self.unit == "block":
                self._fill_variant(folder, manifest, own, owner, leaves)
            else:
                self._fill_pool(folder, manifest, own, owner, leaves, tables)
        return read_rest(folder, manifest)

    def _tables(self, folder: Path, manifest: Manifest) -> list[ExpertTable]:
        """Per routed layer, the old experts of each new one; a pool that would be too large has similar ones merged."""
        tables = expert_sources(self.plan.before, self.plan.after, self.sizes_before, mode=self.mode)
        result: list[ExpertTable] = []
        for index, (table, sizes) in enumerate(zip(tables, self.sizes_after, strict=True)):
            rows, new = iter(table), list[tuple[int, ...]]()
            for task_group, members in enumerate(task_group_sources(self.plan.before, self.plan.after)[index]):
                own = list(islice(rows, self._rows_of(index, members)))
                if len(own) > sizes[task_group]:
                    pools = [self._owned_name(index, member) for member in members]
                    leaves = sorted(_split(name)[1] for name in manifest.tensors if name.startswith(f"{pools[0]}."))
                    whole = {
                        leaf: torch.cat([_read(folder, manifest, f"{pool}.{leaf}")[_WEIGHT] for pool in pools])
                        for leaf in leaves
                    }
                    chosen = similar_experts(whole, sizes[task_group])
                    own = [tuple(expert for place in places for expert in own[place]) for places in chosen]
                new += own
            result.append(tuple(new))
        return result

    def _rows_of(self, index: int, members: Sequence[int]) -> int:
        sizes = [self.sizes_before[index][member] for member in members]
        return sum(sizes) if self.mode == "pool" else sizes[0]

    def _owned_name(self, index: int, task_group: int | str) -> str:
        """Name of what a task group owns at a routed layer."""
        part = "variants" if self.unit == "block" else "feed_forward.pools"
        return f"encoder.layers.{self.routed_layers[index]}.{part}.g{task_group}"

    def _fill_pool(
        self,
        folder: Path,
        manifest: Manifest,
        fragments: Sequence[Fragment],
        pool: str,
        leaves: Sequence[str],
        tables: Sequence[ExpertTable],
    ) -> None:
        layer, task_group = self._place_of(pool)
        members = task_group_sources(self.plan.before, self.plan.after)[layer][task_group]
        stops = list(accumulate(self.sizes_before[layer]))
        experts: dict[int, dict[str, Parts]] = {}
        loads: dict[int, int] = {}
        grams: dict[int, Grams] = {}
        for member in members:
            read = {leaf: _read(folder, manifest, f"{self._owned_name(layer, member)}.{leaf}") for leaf in leaves}
            load = self._load_of(layer, member)
            first = stops[member] - self.sizes_before[layer][member]
            for row in range(self.sizes_before[layer][member]):
                experts[first + row] = {
                    leaf: {part: tensor[row : row + 1] for part, tensor in parts.items()}
                    for leaf, parts in read.items()
                }
                loads[first + row] = load
                if self.grams:
                    grams[first + row] = self.grams[layer, self.plan.before.layers[layer][member]][row]
        start, step = sum(self.sizes_after[layer][:task_group]), int(manifest.optimizer["adam_step"])
        rows = [
            experts[old[0]]
            if len(old) == 1
            else self._merge(
                [experts[one] for one in old], [loads[one] for one in old], [grams[one] for one in old if grams], step
            )
            for old in tables[layer][start : start + self.sizes_after[layer][task_group]]
        ]
        for fragment in fragments:
            part, _, name = fragment.key.partition("/")
            _fill(fragment, torch.cat([row[_split(name)[1]][part] for row in rows]))

    def _fill_variant(
        self, folder: Path, manifest: Manifest, fragments: Sequence[Fragment], owner: str, leaves: Sequence[str]
    ) -> None:
        layer, task_group = self._place_of(owner)
        members = task_group_sources(self.plan.before, self.plan.after)[layer][task_group]
        read = [
            {leaf: _read(folder, manifest, f"{self._owned_name(layer, member)}.{leaf}") for leaf in leaves}
            for member in members
        ]
        result = self.plan.after.layers[layer][task_group]
        merge = next(one for one in self.plan.merges if one.layer == layer and one.result == result)
        if merge in self.created:
            self._fill_created(fragments, read, self.created[merge])
            return
        first = {leaf: parts[_WEIGHT] for leaf, parts in read[0].items()}
        aligned: list[Member] = []
        for own in read:
            tensors = {part: {leaf: parts[part] for leaf, parts in own.items()} for part in (_WEIGHT, _MEAN, _SQUARE)}
            order = align_layer(first, tensors[_WEIGHT], num_heads=self.num_heads)
            aligned.append({part: permute_layer(tensors[part], order, num_heads=self.num_heads) for part in tensors})
        loads = [self._load_of(layer, member) for member in members]
        merged = self._average(aligned, loads, int(manifest.optimizer["adam_step"]))
        for fragment in fragments:
            part, _, name = fragment.key.partition("/")
            _fill(fragment, merged[_split(name)[1]][part])

    def _fill_created(
        self, fragments: Sequence[Fragment], members: Sequence[Mapping[str, Parts]], weights: Mapping[str, Tensor]
    ) -> None:
        """A layer that learned to stand in for its members, with the mean of their moments, as published."""
        for fragment in fragments:
            part, _, name = fragment.key.partition("/")
            leaf = _split(name)[1]
            moments = mean_moments([AdamMoments(own[leaf][_MEAN], own[leaf][_SQUARE]) for own in members])
            _fill(fragment, {_WEIGHT: weights[leaf], _MEAN: moments.mean, _SQUARE: moments.square}[part])

    def _load_of(self, layer: int, member: int) -> int:
        return sum(self.plan.loads[task] for task in self.plan.before.layers[layer][member])

    def _merge(
        self, members: list[dict[str, Parts]], loads: Sequence[int], grams: Sequence[Grams], step: int
    ) -> dict[str, Parts]:
        """One expert out of several, each a pool of one."""
        permutations = align_pools([{leaf: parts[_WEIGHT] for leaf, parts in own.items()} for own in members])
        aligned: list[Member] = [
            {
                part: permute_pool({leaf: parts[part] for leaf, parts in own.items()}, permutation)
                for part in (_WEIGHT, _MEAN, _SQUARE)
            }
            for own, permutation in zip(members, permutations, strict=True)
        ]
        merged = self._average(aligned, loads, step)
        if grams:
            weights = merge_feed_forward_least_squares(
                [FeedForwardTensors.of(own[_WEIGHT], 0) for own in aligned],
                [seen.permuted(order_eF[0]) for seen, order_eF in zip(grams, permutations, strict=True)],
            )
            for leaf, weight in weights.by_name().items():
                merged[leaf][_WEIGHT] = weight.unsqueeze(0)
        return merged

    def _average(self, members: list[Member], loads: Sequence[int], step: int) -> dict[str, Parts]:
        shares = shares_of(loads)
        result: dict[str, Parts] = {}
        for leaf in members[0][_WEIGHT]:
            moments = sum_moments(
                [AdamMoments(own[_MEAN][leaf], own[_SQUARE][leaf]) for own in members], step=step, betas=self.betas
            )
            weight = weighted_mean([own[_WEIGHT][leaf] for own in members], shares)
            result[leaf] = {_WEIGHT: weight, _MEAN: moments.mean, _SQUARE: moments.square}
        return result

    def _place_of(self, pool: str) -> tuple[int, int]:
        """Routed layer and task group of a pool, or of a layer of a task group's own."""
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(?:feed_forward\.pools|variants)\.g(\d+)", pool)
        assert match is not None, f"{pool} belongs to no task group"
        return self.routed_layers.index(int(match[1])), int(match[2])

    def _gate_layer(self, name: str) -> int | None:
        """The routed layer whose gate has this tensor with one entry per expert, else None."""
        match = _GATE.match(name)
        if match is None or not (has_experts(name) or name.endswith(_TABLE)):
            return None
        return self.routed_layers.index(int(match[1]))

    def _fill_gate(self, folder: Path, manifest: Manifest, fragment: Fragment, layer: int, table: ExpertTable) -> None:
        name = fragment.view.name
        if name.endswith(_TABLE):
            return
        reach_M = [
            Reach(old, new)
            for old, new in zip(
                _experts_by_task(self.plan.before.table(layer), self.sizes_before[layer]),
                _experts_by_task(self.plan.after.table(layer), self.sizes_after[layer]),
                strict=True,
            )
        ]
        old = _read(folder, manifest, name)
        part = fragment.key.partition("/")[0]
        if part in (_WEIGHT, "frozen"):
            _fill(fragment, regroup(name, old[part], table, reach_M))
            return
        moments = regroup_moments(
            name,
            AdamMoments(old[_MEAN], old[_SQUARE]),
            table,
            reach_M,
            step=int(manifest.optimizer["adam_step"]),
            betas=self.betas,
        )
        _fill(fragment, moments.mean if part == _MEAN else moments.square)


def _experts_by_task(task_group_of: Sequence[int], sizes: Sequence[int]) -> list[range]:
    """Experts of each task's own task group, numbered over the layer."""
    stops = list(accumulate(sizes))
    return [range(stops[own] - sizes[own], stops[own]) for own in task_group_of]


def _split(name: str) -> tuple[str, str]:
    """What belongs to a task group, and the tensor's name inside it."""
    match = _OWNED.fullmatch(name)
    assert match is not None, f"{name} belongs to no task group"
    return match[1], match[2]


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
    local = fragment.view.take(whole).reshape(-1)
    fragment.data.copy_(local[fragment.lo : fragment.lo + fragment.data.numel()])
