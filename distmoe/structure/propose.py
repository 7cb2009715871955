"""From similarities to a proposed change of the grouping. Similarity proposes; a trial may still reject.

::

    frontiers = start(TaskGrouping.one_per_task(num_tasks, num_layers))
    proposals = [propose(frontier, similarity_at(frontier), threshold=0.8, bans=bans) for frontier in frontiers]
    plan = plan_merges(grouping, proposals, version=0, loads=tokens_per_task)
    frontiers = advance(plan.after, frontiers, plan.merges)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from distmoe.errors import ConfigError
from distmoe.structure.frontier import Frontier
from distmoe.structure.plan import Ban, Merge, MergePlan, tasks_of
from distmoe.structure.search import EXACT_UP_TO, find_partition
from distmoe.structure.similarity import Similarity
from distmoe.tasks import TaskGrouping
from distmoe.tasks.grouping import TaskGroup


@dataclass(frozen=True)
class Proposal:
    """What the grouping rule says about one frontier.

    Attributes:
        frontier: The task groups that were compared.
        similarity: Of the frontier's members, in their order.
        threshold: That the rule was applied with.
        partition: The rule's partition of the frontier's tasks, those below the threshold included.
        value: V of the partition.
        merges: The task groups that pass the threshold, ascending.
        mean_similarities: Mean similarity inside each merge.
    """

    frontier: Frontier
    similarity: Similarity
    threshold: float
    partition: tuple[TaskGroup, ...]
    value: float
    merges: tuple[Merge, ...]
    mean_similarities: tuple[float, ...]

    def to_json(self) -> dict[str, object]:
        """One record for metrics and reports."""
        return {
            "frontier": self.frontier.to_json(),
            "similarity": self.similarity.to_json(),
            "threshold": self.threshold,
            "partition": [list(tasks) for tasks in self.partition],
            "value": self.value,
            "merges": [merge.to_json() for merge in self.merges],
            "mean_similarities": list(self.mean_similarities),
        }


def propose(
    frontier: Frontier,
    similarity: Similarity,
    *,
    threshold: float,
    bans: Collection[Ban] = (),
    exact_up_to: int = EXACT_UP_TO,
) -> Proposal:
    """Applies the grouping rule to a frontier.

    Args:
        frontier: The task groups that may be joined.
        similarity: Of ``frontier.members``, in their order.
        threshold: See :func:`distmoe.structure.search.find_partition`.
        bans: Merges that were tried and rejected.
        exact_up_to: See :func:`distmoe.structure.search.find_partition`.

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

    def task_groups(members: Sequence[int]) -> tuple[TaskGroup, ...]:
        return tuple(frontier.members[member] for member in members)

    def banned(members: tuple[int, ...]) -> bool:
        tasks = tasks_of(task_groups(members))
        return any(ban.forbids(frontier.layer, tasks) for ban in bans)

    found = find_partition(similarity, threshold=threshold, banned=banned, exact_up_to=exact_up_to)
    accepted = sorted((Merge(frontier.layer, task_groups(members)), members) for members in found.accepted)
    return Proposal(
        frontier,
        similarity,
        threshold,
        tuple(tasks_of(task_groups(members)) for members in found.partition),
        found.value,
        tuple(merge for merge, _ in accepted),
        tuple(similarity.mean_within(members) for _, members in accepted),
    )


def plan_merges(
    grouping: TaskGrouping, proposals: Iterable[Proposal], *, version: int, loads: Sequence[int]
) -> MergePlan:
    """All proposals of a structural phase as one plan.

    Args:
        grouping: The grouping in force.
        proposals: One per frontier; frontiers are disjoint, so their merges are.
        version: Structure changes so far.
        loads: Tokens that each task has trained on, over all ranks.

    Raises:
        ConfigError: If a load is missing or not positive.
    """
    merges = tuple(sorted(merge for proposal in proposals for merge in proposal.merges))
    return MergePlan(version, grouping, merges, tuple(int(load) for load in loads))
