"""Which score of a run is called its best."""

from __future__ import annotations

import json
from pathlib import Path

from distmoe.training.report import draw_report, read_history
from distmoe.training.report.scores import best_of, score_rows
from tests.unit.training.report.test_structure import phase_line
from tests.unit.training.synthetic_run import evaluation_line, write_run


def test_the_best_score_is_one_of_the_structure_in_force(tmp_path: Path) -> None:
    """Step 200 scores best, but the merge of step 200 has ended its structure; the phase of step 300 keeps nothing."""

    def validation(step: int, macro: float) -> dict:
        line = evaluation_line(step)
        return line | {"evaluation": line["evaluation"] | {"macro": macro}}

    kept, undone = phase_line(200, 1, accepted=True), phase_line(300, 2, accepted=False)
    undone["structure"]["verdicts"] = [row | {"accepted": False} for row in undone["structure"]["verdicts"]]
    lines = [validation(100, 0.7), validation(200, 0.9), kept, undone]
    folder = tmp_path / "run"
    write_run(folder)
    for more, best in (([], None), ([validation(300, 0.6), validation(400, 0.5)], (300, 0.6))):
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *more]))
        history = read_history(folder)
        found = best_of(history)
        assert (None if found is None else (found[0], found[1]["macro"])) == best
        assert score_rows(history)[-1].best == (None if best is None else best[1])
    page = draw_report(folder).read_text()
    assert "best macro score (step 300)" in page
    assert "best macro score (step 200)" not in page
