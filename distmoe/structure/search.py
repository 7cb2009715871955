"""Which members of a frontier should share a layer, given their similarities.

The grouping rule of MTSL (arXiv 2305.00441; specification section 2.3). ``S`` is the similarity matrix of T members,
``v_t(g)`` the mean of ``S_tu`` over the other members u of t's set g (0 if t is alone), ``V(P)`` the mean of ``v_t``
over all members:

1. For k = 1 .. T-1: P is the partition into at most k sets that maximises V. Stop at the first k with V >= threshold.
2. Accept each set of two or more whose mean of ``v_t`` is above the threshold.

Up to five members by enumeration, beyond by average linkage cut at the threshold, which agrees with step 2: merge
heights above the threshold make the mean similarity of a set exceed it. All comparisons are of integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import lcm

from distmoe.errors import ConfigError
from distmoe.structure.similarity import UNIT, Similarity

Members = tuple[int, ...]
Banned = Callable[[Members], bool]
EXACT_UP_TO = 5


@dataclass(frozen=True)
class Found:
    """Outcome of a search over members 0 .. T-1.

    Attributes:
        partition: All members, sets in order of their smallest member.
        value: V of the partition.
        accepted: The sets of two or more that pass the threshold.
    """

    partition: tuple[Members, ...]
    value: float
    accepted: tuple[Members, ...]


def find_partition(
    similarity: Similarity,
    *,
    threshold: float,
    banned: Banned = lambda members: False,
    exact_up_to: int = EXACT_UP_TO,
) -> Found:
    """Applies the grouping rule.

    Args:
        similarity: Of the members.
        threshold: In (0, 1). Larger merges less. It is not portable between models: the residual pushes all
            similarities towards 1. 0.8 is usual.
        banned: Whether a set of members must not be merged.
        exact_up_to: Enumerate all partitions up to so many members (52 partitions of 5, 4140 of 8).

    Raises:
        ConfigError: If the threshold is outside (0, 1).
    """
    check_threshold(threshold)
    limit = round(threshold * UNIT)
    if similarity.num_members <= exact_up_to:
        partition = _exact(similarity, limit, banned)
    else:
        partition = _average_linkage(similarity, limit, banned)
    value = Fraction(sum(_score(similarity, members) for members in partition), similarity.num_members * UNIT)
    accepted = tuple(
        members
        for members in partition
        if len(members) > 1 and _score(similarity, members) > limit * len(members) and not banned(members)
    )
    return Found(partition, float(value), accepted)


def find_clearest(similarity: Similarity, *, banned: Banned = lambda members: False) -> Found:
    """The level of average linkage whose sets tell pairs apart best; for a relative similarity, which has no threshold.

    Best is the largest point-biserial correlation between the similarity of two members and whether they are in one
    set (Milligan and Cooper 1985, among their rules for the number of clusters). It compares pairs inside sets with
    pairs between sets, so it cannot propose all members together. All alone stay those that nothing tells apart: equal
    similarities, or three members of a relative similarity. Of equal levels the finer.

    Args:
        similarity: Of the members, for example :func:`distmoe.structure.transfer.affinity`.
        banned: Whether a set of members must not be merged.
    """
    size = similarity.num_members
    num_pairs, total = size * (size - 1) // 2, similarity.pairs_total(tuple(range(size)))
    best = Fraction(0)
    partition: tuple[Members, ...] = tuple((member,) for member in range(size))
    for level in _linkage_levels(similarity, banned):
        inside = sum(len(members) * (len(members) - 1) // 2 for members in level)
        if not 0 < inside < num_pairs:
            continue
        excess = num_pairs * sum(similarity.pairs_total(members) for members in level) - inside * total
        squared = Fraction(max(excess, 0) ** 2, inside * (num_pairs - inside))  # the correlation's, up to a constant
        if squared > best:
            best, partition = squared, level
    value = Fraction(sum(_score(similarity, members) for members in partition), size * UNIT)
    return Found(partition, float(value), tuple(members for members in partition if len(members) > 1))


def check_threshold(threshold: float) -> None:
    """Raises ConfigError if a similarity threshold is outside (0, 1)."""
    if not 0.0 < threshold < 1.0:
        raise ConfigError(
            "the similarity threshold is outside its range",
            got=threshold,
            expected="0 < threshold < 1; 0.8 is usual",
            remedy="correct the threshold in the structure section",
        )


def set_partitions(num_members: int) -> Iterator[tuple[Members, ...]]:
    """All partitions of 0 .. n-1, those first that put the lowest members together.

    In order of their restricted growth strings: 012, 01|2, 02|1, 0|12, 0|1|2.
    """

    def extend(labels: list[int], num_labels: int) -> Iterator[tuple[Members, ...]]:
        if len(labels) == num_members:
            yield tuple(
                tuple(member for member, label in enumerate(labels) if label == wanted) for wanted in range(num_labels)
            )
            return
        for label in range(num_labels + 1):
            yield from extend([*labels, label], max(num_labels, label + 1))

    yield from extend([], 0)


def _score(similarity: Similarity, members: Members) -> Fraction:
    """Sum of ``v_t`` over a set, in millionths."""
    return Fraction(2 * similarity.pairs_total(members), max(len(members) - 1, 1))


def _exact(similarity: Similarity, limit: int, banned: Banned) -> tuple[Members, ...]:
    size = similarity.num_members
    scale = lcm(*range(1, size))  # makes every score a whole number
    scores = {
        members: int(_score(similarity, members) * scale)
        for length in range(1, size + 1)
        for members in combinations(range(size), length)
        if length == 1 or not banned(members)
    }
    best: dict[int, tuple[int, tuple[Members, ...]]] = {}
    for partition in set_partitions(size):
        if not all(members in scores for members in partition):
            continue
        total = sum(scores[members] for members in partition)
        for at_most in range(len(partition), size):
            # Of equal values the finer partition, whose sets are more alike; then the first, which has the lowest
            # members together.
            rank = total, len(partition)
            if at_most not in best or rank > (best[at_most][0], len(best[at_most][1])):
                best[at_most] = total, partition
    for at_most in sorted(best):
        if best[at_most][0] >= limit * size * scale:
            return best[at_most][1]
    return best[max(best)][1] if best else tuple((member,) for member in range(size))


def _average_linkage(similarity: Similarity, limit: int, banned: Banned) -> tuple[Members, ...]:
    """The last level whose joins all have a mean above the limit."""
    partition: tuple[Members, ...] = tuple((member,) for member in range(similarity.num_members))
    for level in _linkage_levels(similarity, banned, limit=limit):
        partition = level
    return partition


def _linkage_levels(
    similarity: Similarity, banned: Banned, *, limit: int | None = None
) -> Iterator[tuple[Members, ...]]:
    """Joins the two most similar sets, by the mean over cross pairs, while that mean is above the limit.

    Our own loop: libraries leave open which of several equal pairs they join. Here it is the one with the lowest
    members.
    """
    sets: list[Members] = [(member,) for member in range(similarity.num_members)]
    while True:
        candidates = [
            (-_mean_between(similarity, first, second), first, second)
            for first, second in combinations(sets, 2)
            if not banned(tuple(sorted(first + second)))
        ]
        if not candidates or (limit is not None and -min(candidates)[0] <= limit):
            return
        _, first, second = min(candidates)
        sets = sorted([*(kept for kept in sets if kept not in (first, second)), tuple(sorted(first + second))])
        yield tuple(sets)


def _mean_between(similarity: Similarity, first: Members, second: Members) -> Fraction:
    total = sum(similarity.millionths[a][b] for a in first for b in second)
    return Fraction(total, len(first) * len(second))
