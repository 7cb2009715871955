"""Scores of a study's arms on shifted test texts: how they hold where texts are not those that were trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from distmoe.studies.intervals import by_seed, difference, estimate, macro, under_shift
from distmoe.studies.markdown import interval, markdown
from distmoe.studies.study import Study

Records = Mapping[tuple[str, int], Mapping[str, Any]]


def shift_lines(study: Study, arms: Sequence[str], records: Records) -> list[str]:
    """Returns the lines of both tables, with an empty one at the end; none if no run was scored under shift.

    A shift that only some runs have is left out, so that all means are over the same shifts.
    """
    scored = {place: record for place, record in records.items() if record.get("shifts")}
    names = [name for name in _shifts(scored) if all(name in record["shifts"] for record in scored.values())]
    if not names:
        return []
    return [
        "Under shift: macro scores on changed test texts; the mean is over the shifts.",
        "",
        *_arm_table(arms, names, scored),
        "",
        "Differences under shift, paired by seed; the relative one is that of the means over shifts and seeds.",
        "",
        *_comparison_table(study, names, scored),
        "",
    ]


def _shifts(records: Records) -> list[str]:
    return list(dict.fromkeys(name for record in records.values() for name in record["shifts"]))


def _arm_table(arms: Sequence[str], names: Sequence[str], records: Records) -> list[str]:
    rows = []
    for arm in arms:
        runs = list(by_seed(records, arm).values())
        if runs:
            mean = estimate([np.mean([run["shifts"][name]["macro"] for name in names]) for run in runs])
            each = [f"{np.mean([run['shifts'][name]['macro'] for run in runs]):.4f}" for name in names]
            test = f"{np.mean([macro(run) for run in runs]):.4f}"
            rows.append((arm, str(len(runs)), test, interval(mean), *each))
    return markdown(("arm", "seeds", "test", "mean", *names), rows)


def _comparison_table(study: Study, names: Sequence[str], records: Records) -> list[str]:
    rows = []
    for comparison in study.comparisons:
        found = [
            difference(records, comparison.arm, comparison.against, value=partial(under_shift, shifts=shifts))
            for shifts in (names, *([name] for name in names))
        ]
        cells = [interval(one, signed=True) for one in found if one is not None]
        if cells:
            relative = _relative(records, comparison.arm, comparison.against, names)
            rows.append((f"{comparison.arm} - {comparison.against}", relative, *cells))
    return markdown(("difference", "relative", "mean", *names), rows)


def _relative(records: Records, arm: str, against: str, names: Sequence[str]) -> str:
    """Difference in per cent of the other arm's mean, over the seeds that both have."""
    ours, theirs = by_seed(records, arm), by_seed(records, against)
    pairs = [
        (ours[seed]["shifts"][name]["macro"], theirs[seed]["shifts"][name]["macro"])
        for seed in ours
        if seed in theirs
        for name in names
    ]
    own, other = np.mean(pairs, axis=0)
    return f"{100 * (own / other - 1):+.1f} %" if other > 0 else "–"
