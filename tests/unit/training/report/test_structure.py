"""The report of a run that learned its structure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from distmoe.training.report import draw_report, read_history
from distmoe.training.report.structure import explanation
from tests.unit.training.synthetic_run import train_line, write_run

APART = [[task] for task in range(6)]
GROUPED = [[0, 2], [1], [3, 4, 5]]


def phase_line(step: int, phase: int, *, accepted: bool, seconds: float = 1.0) -> dict:
    """Phase 1 proposes {0, 2} and {3, 4, 5} at layer 0; only the second is kept unless both are."""
    similarity = [[1.0 if a == b else 0.9 if {a, b} <= {0, 2} or {a, b} <= {3, 4, 5} else 0.2 for b in range(6)]
                  for a in range(6)]  # fmt: skip
    merges = [[[0], [2]], [[3], [4], [5]]]
    return {
        "step": step,
        "structure": {
            "phase": phase,
            "version": 1,
            "proposals": [{"frontier": {"layer": 0, "members": APART}, "similarity": similarity, "threshold": 0.8}],
            "verdicts": [
                {
                    "merge": {"layer": 0, "members": members},
                    "against_control": {"change": 0.01, "noise": 0.004},
                    "against_rival": None if len(members) == 2 else {"change": -0.01, "noise": 0.003},
                    "against_before": -0.07 if len(members) == 2 else None,  # a loss was not finite
                    "accepted": accepted or len(members) == 3,
                }
                for members in merges
            ],
            "grouping": [GROUPED, APART],
            "bans": [],
            "parameters": {"before": 5000, "after": 4000},
            "next_phase_at": None,
            "family_agreement": 0.5,
            "seconds": seconds,
            "steps_worth": 20 * seconds,
        },
    }


def learned_run(folder: Path) -> Path:
    run = write_run(folder)
    late = train_line(410)
    late["routing"]["layer_1"] = {"load": [10, 20, 30], "tasks": {"sst2": [10, 0, 0], "cola": [0, 20, 30]}}
    lines = [phase_line(100, 1, accepted=False), phase_line(100, 1, accepted=True, seconds=2.0), late]
    with (run / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_phases_are_read_once_and_say_the_last_grouping(tmp_path: Path) -> None:
    history = read_history(learned_run(tmp_path / "run"))
    assert [line["structure"]["seconds"] for line in history.structure] == [2.0]
    assert history.partitions == [GROUPED, APART]
    assert history.recent_routing()["layer_1"]["load"] == [10, 20, 30]


def test_the_page_shows_merges_and_similarities(tmp_path: Path) -> None:
    page = draw_report(learned_run(tmp_path / "run"))
    text = page.read_text()
    assert "Structural learning" in text
    assert "Similarity of task groups at each phase; a frame" in text
    assert "sst2 + stsb" in text
    assert "+1.0 ± 0.4" in text
    assert "-1.0 ± 0.3" in text
    assert "structural phases: 1. They took 2 s, as long as 40 training steps." in text
    assert "the tasks' families: 0.50 (adjusted Rand index)" in text
    assert "-7.0" in text
    assert "not finite" in text
    assert "5,000 → 4,000" in text
    assert (page.parent / "similarity.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("learn", "said", "unsaid"),
    [
        ({"similarity": "cka", "trial_steps": 100}, ["(cka: unbiased linear CKA", "without the merge"], "no trial"),
        ({"similarity": "transfer", "trial_steps": 50}, ["(transfer: how well the layers", "decide nothing"], "CKA"),
        ({"similarity": "answers", "trial_steps": 0}, ["(answers: how well what", "no trial: every"], "compares"),
    ],
)
def test_the_page_explains_the_similarity_and_the_trial_of_its_run(
    tmp_path: Path, learn: dict, said: list[str], unsaid: str
) -> None:
    run = learned_run(tmp_path / "run")
    (run / "config.yaml").write_text(yaml.safe_dump({"run": {"name": "run"}, "structure": {"learn": learn}}))
    told = explanation(read_history(run))
    assert all(one in told for one in said)
    assert unsaid not in told
