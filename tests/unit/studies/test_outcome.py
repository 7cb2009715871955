"""Intervals, tables and pictures of records; expected numbers can be worked out on paper."""

from __future__ import annotations

import math

import pytest
from matplotlib.image import imread

from distmoe.config import build
from distmoe.studies.intervals import difference, estimate
from distmoe.studies.launch import side_by_side
from distmoe.studies.picture import draw_study
from distmoe.studies.study import Study
from distmoe.studies.table import study_lines
from tests.unit.studies.records import by_place, record

STUDY = build(
    Study,
    {
        "question": "Does it help?",
        "recipe": "demo",
        "arms": {name: {"title": f"arm {name}"} for name in ("C", "D", "X")},
        "comparisons": [
            {"claim": "D helps", "arm": "D", "against": "C"},
            {"claim": "C is D", "arm": "C", "against": "D", "expect": "equal"},
            {"claim": "X helps", "arm": "X", "against": "C"},
        ],
    },
)
RECORDS = by_place(
    *(record("C", seed, 0.4 + 0.1 * seed, 0.6) for seed in range(3)),
    *(record("D", seed, 0.5 + 0.1 * seed + wobble, 0.6) for seed, wobble in enumerate((0.0, 0.02, -0.02))),
)


def test_an_interval_is_students():
    """Of 1, 2, 3: standard error 1 / sqrt(3), and t with 2 degrees of freedom is 4.3027 at 97.5 %."""
    found = estimate([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2 - half, 2 + half))
    assert found.verdict == "open"


def test_one_seed_decides_nothing_and_equal_values_have_no_width():
    assert estimate([0.5]).verdict == "open"
    assert (estimate([0.5, 0.5]).low, estimate([0.5, 0.5]).high) == (0.5, 0.5)


def test_arms_are_compared_seed_by_seed():
    """What seeds share drops out: arms spread by 0.1 over seeds, their differences by 0.01."""
    found = difference(RECORDS, "D", "C")
    assert found.mean == pytest.approx(0.05)
    assert found.verdict == "higher"
    assert difference(RECORDS, "D", "C", value=lambda run: run["tasks"]["t1"]).mean == 0
    only_first = {place: one for place, one in RECORDS.items() if place != ("C", 1)}
    assert difference(only_first, "D", "C").num_seeds == 2
    assert difference(RECORDS, "D", "X") is None


def test_the_tables_name_what_is_supported_and_leave_out_what_was_not_trained():
    text = "\n".join(study_lines(STUDY, RECORDS))
    assert "| D helps | D - C | > 0 | +0.0500 [" in text
    assert text.count("| supported |") == 1
    assert "| C is D | C - D | about 0 | -0.0500 [" in text
    assert "| contradicted |" in text
    assert "X" not in text
    assert "| C | arm C | 3 | 0.5500 [" in text
    assert "600 / 1,000 | 200 | 50.0 % | 600 | 2 |" in text
    assert "| D | 0.600 | 0.600 |" in text


def test_arms_are_compared_under_shift_over_the_runs_that_have_scores_there():
    """C loses 0.1 and 0.2 under the shifts, D 0.1 twice: 0.05 more between them, 0.1 of 0.4 being 25 %."""
    records = by_place(*(record(arm, seed, 0.55) for arm in "CD" for seed in range(2)))
    text = "\n".join(study_lines(STUDY, records))
    assert "| arm | seeds | test | mean | noise_0.1 | drop_0.2 |" in text
    assert "| C | 2 | 0.5500 | 0.4000 [0.4000, 0.4000] | 0.4500 | 0.3500 |" in text
    row = "| D - C | +12.5 % | +0.0500 [+0.0500, +0.0500] | +0.0000 [+0.0000, +0.0000] | +0.1000 [+0.1000, +0.1000] |"
    assert row in text
    for one in ("shifts", "drop_0.2"):
        older = by_place(*(record(arm, seed, 0.55) for arm in "CD" for seed in range(2)))
        first = older["C", 0]
        (first if one == "shifts" else first["shifts"]).pop(one)
        text = "\n".join(study_lines(STUDY, older))
        assert ("| C | 1 | 0.5500 | 0.4000 [one seed]" in text) == (one == "shifts")
        assert "| arm | seeds | test | mean | noise_0.1 |" + (" drop_0.2 |" if one == "shifts" else "\n") in text
    assert "shift" not in "\n".join(study_lines(STUDY, {place: run | {"shifts": {}} for place, run in records.items()}))


def test_the_picture_has_both_themes(tmp_path):
    for path in draw_study(STUDY, RECORDS, tmp_path):
        assert imread(path).std() > 0.01


def test_models_of_single_tasks_stand_side_by_side_and_their_costs_add_up():
    first, second = record("A", 0, 0.5), record("A", 0, 0.25) | {"tasks": {"other": 0.25}}
    second["shifts"] = {name: {"macro": 0.15, "tasks": {"other": 0.15}} for name in second["shifts"]}
    merged = side_by_side([first, second])
    assert merged["tasks"] == {"t0": 0.5, "other": 0.25}
    assert (merged["steps"], merged["parameters"], merged["samples"]["updates"]) == (20, 2000, 400)
    assert "distinct_share" not in merged["samples"]
    assert merged["shifts"]["noise_0.1"] == {
        "macro": pytest.approx((0.4 + 0.15) / 2),
        "tasks": {"t0": 0.4, "other": 0.15},
    }
    assert side_by_side([first]) == first
