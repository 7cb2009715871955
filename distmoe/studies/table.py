"""The outcome of a study as Markdown: arms, comparisons, tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from distmoe.studies.intervals import Estimate, by_seed, difference, estimate, macro, spread, worst
from distmoe.studies.markdown import interval, markdown
from distmoe.studies.shift_table import shift_lines
from distmoe.studies.study import Comparison, Study

Records = Mapping[tuple[str, int], Mapping[str, Any]]


def study_lines(study: Study, records: Records) -> list[str]:
    """Returns the lines of all tables; arms without a run are left out."""
    arms = [name for name in study.arms if by_seed(records, name)]
    tasks = list(dict.fromkeys(task for record in records.values() for task in record["tasks"]))
    return [
        f"## {study.question}",
        "",
        "Test scores at the best validation step. Mean over seeds [95 % interval, Student's t].",
        "",
        *_arm_table(study, arms, records),
        "",
        "Differences are paired by seed. Supported: the interval is as the claim expects, above 0 or around it.",
        "",
        *_comparison_table(study, arms, records),
        "",
        *shift_lines(study, arms, records),
        *_grouping_table(arms, records),
        "Mean test score per task.",
        "",
        *_task_table(arms, tasks, records),
    ]


def outcome_of(comparison: Comparison, found: Estimate) -> str:
    """``supported``, ``not supported`` or, where the interval says the opposite, ``contradicted``."""
    if not math.isfinite(found.low):
        return "one seed: open"
    wanted = "open" if comparison.expect == "equal" else "higher"
    if found.verdict == wanted:
        return "supported"
    return "not supported" if found.verdict == "open" else "contradicted" if found.verdict == "lower" else "not equal"


def _arm_table(study: Study, arms: Sequence[str], records: Records) -> list[str]:
    header = ("arm", "", "seeds", "macro", "worst task", "SD over tasks", "trained / total parameters", "updates",
              "distinct data", "forward-equivalents", "seconds")  # fmt: skip
    rows = []
    for name in arms:
        runs = list(by_seed(records, name).values())

        def mean(value: Callable[[Mapping[str, Any]], float], runs: Sequence[Mapping[str, Any]] = runs) -> float:
            return float(np.mean([value(run) for run in runs]))

        rows.append(
            (
                name,
                study.arms[name].title,
                str(len(runs)),
                interval(estimate([macro(run) for run in runs])),
                f"{mean(worst):.4f}",
                f"{mean(spread):.4f}",
                f"{mean(lambda run: run['trained']):,.0f} / {mean(lambda run: run['parameters']):,.0f}",
                f"{mean(lambda run: run['samples']['updates']):,.0f}",
                f"{100 * mean(lambda run: run['samples']['distinct_share']):.1f} %"
                if all("distinct_share" in run["samples"] for run in runs)
                else "–",
                f"{mean(lambda run: run['samples']['forward_equivalents']):,.0f}",
                f"{mean(lambda run: run['seconds']):,.0f}",
            )
        )
    return markdown(header, rows)


def _comparison_table(study: Study, arms: Sequence[str], records: Records) -> list[str]:
    rows = []
    for comparison in study.comparisons:
        if comparison.arm in arms and comparison.against in arms:
            found = difference(records, comparison.arm, comparison.against)
            if found is not None:
                what = f"{comparison.arm} - {comparison.against}"
                wanted = "> 0" if comparison.expect == "higher" else "about 0"
                verdict = outcome_of(comparison, found)
                rows.append((comparison.claim, what, wanted, interval(found, signed=True), verdict))
    return markdown(("claim", "difference", "expected", "found", ""), rows)


def _task_table(arms: Sequence[str], tasks: Sequence[str], records: Records) -> list[str]:
    rows = []
    for name in arms:
        runs = list(by_seed(records, name).values())
        cells = [[run["tasks"][task] for run in runs if task in run["tasks"]] for task in tasks]
        rows.append((name, *(f"{np.mean(values):.3f}" if values else "–" for values in cells)))
    return markdown(("arm", *tasks), rows)


def _grouping_table(arms: Sequence[str], records: Records) -> list[str]:
    """Task groups of the arms whose runs have several, and how well they agree with the tasks' families."""
    rows = []
    for name in arms:
        runs = by_seed(records, name)
        if any(max(run.get("task_groups") or [1]) > 1 for run in runs.values()):
            sizes = "; ".join(" / ".join(map(str, run["task_groups"])) for run in runs.values())
            found = [run["agreement"] for run in runs.values() if run["agreement"] is not None]
            rows.append((name, sizes, " ".join(f"{value:.2f}" for value in found), f"{np.mean(found or [np.nan]):.2f}"))
    header = ("arm", "task groups per routed layer, by seed", "adjusted Rand index at the last one, by seed", "mean")
    return [*markdown(header, rows), ""] if rows else []
