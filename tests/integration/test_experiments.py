"""A study as users run it: real training of two arms, and nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.commands import ROOT, TINY, environment

STUDY = """
question: Does a gate help?
recipe: demo
arms:
  dense: {title: dense, overrides: [model.moe=null, structure.grouping=one]}
  moe: {title: task-routed}
comparisons:
  - {claim: it helps, arm: moe, against: dense}
"""


@pytest.mark.slow
def test_a_study_is_trained_once_and_compared(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(STUDY)
    moe = [text for text in TINY if text.startswith("model.moe.")]
    command = [sys.executable, str(ROOT / "tools" / "experiments.py"), str(tmp_path / "mine.yaml"), "--seeds", "1",
               "--out", str(tmp_path / "out"), *(text for text in TINY if text not in moe)]  # fmt: skip

    def run(*more: str) -> str:
        done = subprocess.run(
            [*command, *more], capture_output=True, text=True, env=environment(tmp_path), cwd=tmp_path, timeout=240
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    assert "[2/2] arm moe seed 0: macro" in run()
    assert "seed 0: macro" not in run()
    first, second = map(json.loads, (tmp_path / "out" / "runs.jsonl").read_text().splitlines())
    assert (first["arm"], first["steps"], second["arm"]) == ("dense", 12, "moe")
    assert first["samples"]["updates"] == 12 * 16
    assert first["parameters"] < second["parameters"]

    run("--in-process", "--out", str(tmp_path / "again"))
    again = [json.loads(line)["tasks"] for line in (tmp_path / "again" / "runs.jsonl").read_text().splitlines()]
    assert again == [first["tasks"], second["tasks"]]
