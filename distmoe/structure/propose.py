"""From similarities to a proposed change of the grouping. Similarity proposes; a trial may still reject.

::

    frontiers = start(TaskGrouping.one_per_task(num_tasks, num_layers))
    proposals = [propose(frontier, similarity_at(frontier), threshold=0.8, bans=bans) for frontier in frontiers]
    plan = plan_merges(grouping, proposals, version=0, loads=tokens_per_task)
    frontiers = advance(plan.after, frontiers, plan.merges)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from distmoe.errors import ConfigError
from distmoe.structure.frontier import Frontier
from distmoe.structure.plan import Ban, Merge, MergePlan, tasks_of
from distmoe.structure.search import find_clearest, find_partition
from distmoe.structure.similarity import Similarity
from distmoe.tasks import TaskGrouping
from distmoe.tasks.grouping import TaskGroup


@dataclass(frozen=True)
class Proposal:
    """What is proposed for one frontier.

    Attributes:
        frontier: The task groups that were compared.
        similarity: Of the frontier's members, in their order.
        threshold: That the paper's rule was applied with; None: the similarity is relative.
        partition: Of the frontier's tasks, those that stay alone included.
        value: V of the partition: the mean over members of their mean similarity to the others of their set.
        merges: The task groups that the similarity suggests, ascending.
        mean_similarities: Mean similarity inside each merge.
        whole: The merge of all members, if it is to be tried beside them.
    """

    frontier: Frontier
    similarity: Similarity
    threshold: float | None
    partition: tuple[TaskGroup, ...]
    value: float
    merges: tuple[Merge, ...]
    mean_similarities: tuple[float, ...]
    whole: Merge | None = None

    def to_json(self) -> dict[str, object]:
        """One record for metrics, reports and checkpoints."""
        return {
            "frontier": self.frontier.to_json(),
            "similarity": self.similarity.to_json(),
            "threshold": self.threshold,
            "partition": [list(tasks) for tasks in self.partition],
            "value": self.value,
            "merges": [merge.to_json() for merge in self.merges],
            "mean_similarities": list(self.mean_similarities),
            "whole": None if self.whole is None else self.whole.to_json(),
        }

    @classmethod
    def from_json(cls, value: dict) -> Proposal:
        return cls(
            Frontier.from_json(value["frontier"]),
            Similarity.from_values(value["similarity"]),
            value["threshold"],
            tuple(tuple(tasks) for tasks in value["partition"]),
            value["value"],
            tuple(Merge.from_json(row) for row in value["merges"]),
            tuple(value["mean_similarities"]),
            None if value["whole"] is None else Merge.from_json(value["whole"]),
        )


def propose(
    frontier: Frontier,
    similarity: Similarity,
    *,
    threshold: float | None,
    bans: Collection[Ban] = (),
) -> Proposal:
    """Applies the grouping rule to a frontier.

    A relative similarity (``threshold`` None) tells which members are more alike than others, not whether all of them
    are: the merge of all is proposed beside its task groups, and a trial decides between them.

    Args:
        frontier: The task groups that may be joined.
        similarity: Of ``frontier.members``, in their order.
        threshold: See :func:`distmoe.structure.search.find_partition`; None: see
            :func:`distmoe.structure.search.find_clearest`.
        bans: Merges that were tried and rejected.

    Raises:
        ConfigError: If the threshold is outside (0, 1) or the matrix belongs to another frontier.
    """
    if similarity.num_members != len(frontier.members):
        raise ConfigError(
            "the similarity matrix does not fit the frontier",
            got=f"similarities of {similarity.num_members} members",
            expected=f"{len(frontier.members)}: {[list(member) for member in frontier.members]}",
            remedy="compute the similarities of the frontier's members, in their order",
        )

    def merge_of(members: Sequence[int]) -> Merge:
        return Merge(frontier.layer, tuple(frontier.members[member] for member in members))

    def banned(members: Sequence[int]) -> bool:
        tasks = tasks_of(frontier.members[member] for member in members)
        return any(ban.forbids(frontier.layer, tasks) for ban in bans)

    everyone = tuple(range(len(frontier.members)))
    if threshold is None:
        found = find_clearest(similarity, banned=banned)
        whole = None if banned(everyone) or found.accepted == (everyone,) else merge_of(everyone)
    else:
        found = find_partition(similarity, threshold=threshold, banned=banned)
        whole = None
    accepted = sorted((merge_of(members), members) for members in found.accepted)
    return Proposal(
        frontier,
        similarity,
        threshold,
        tuple(tasks_of(frontier.members[member] for member in members) for members in found.partition),
        found.value,
        tuple(merge for merge, _ in accepted),
        tuple(similarity.mean_within(members) for _, members in accepted),
        whole,
    )


def plan_merges(
    grouping: TaskGrouping, proposals: Iterable[Proposal], *, version: int, loads: Sequence[int]
) -> MergePlan:
    """The suggested task groups of all frontiers as one plan.

    Args:
        grouping: The grouping in force.
        proposals: One per frontier; frontiers are disjoint, so their merges are.
        version: Structure changes so far.
        loads: What each task weighs in a merge, see :class:`~distmoe.structure.plan.MergePlan`.

    Raises:
        ConfigError: If a load is missing or not positive.
    """
    merges = tuple(sorted(merge for proposal in proposals for merge in proposal.merges))
    return MergePlan(version, grouping, merges, tuple(int(load) for load in loads))


def plan_trials(
    grouping: TaskGrouping,
    proposals: Sequence[Proposal],
    *,
    version: int,
    loads: Sequence[int],
    with_wholes: bool = True,
    to_the_end: bool = False,
) -> tuple[MergePlan, ...]:
    """All plans that a structural phase tries: whole frontiers merged, then the suggested task groups.

    Plans without merges are left out; if nothing is proposed, the one plan has none.

    Args:
        grouping: The grouping in force.
        proposals: See :func:`plan_merges`.
        version: Structure changes so far.
        loads: See :func:`plan_merges`.
        with_wholes: Whether whole frontiers are tried. Nothing suggests them, so only a trial can keep them.
        to_the_end: Whether tasks that are joined at a layer are joined at all deeper ones, too.

    Raises:
        ConfigError: If a load is missing or not positive.
    """
    fine = plan_merges(grouping, proposals, version=version, loads=loads)
    plans = [fine]
    if with_wholes:
        wholes = [proposal.merges if proposal.whole is None else (proposal.whole,) for proposal in proposals]
        plans.insert(0, replace(fine, merges=tuple(sorted(merge for merges in wholes for merge in merges))))
    if to_the_end:
        plans = [
            replace(plan, merges=tuple(sorted(deep for merge in plan.merges for deep in _to_the_end(grouping, merge))))
            for plan in plans
        ]
    return tuple(plan for plan in dict.fromkeys(plans) if plan.merges) or (fine,)


def _to_the_end(grouping: TaskGrouping, merge: Merge) -> Iterator[Merge]:
    """The merge, and those that join its tasks at deeper layers."""
    wanted = frozenset(merge.result)
    for layer in range(merge.layer, grouping.num_layers):
        members = tuple(sorted(task_group for task_group in grouping.layers[layer] if wanted.issuperset(task_group)))
        if len(members) > 1:
            yield Merge(layer, members)
