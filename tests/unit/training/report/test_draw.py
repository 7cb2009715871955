from pathlib import Path

import pytest
from matplotlib.image import imread

from distmoe.errors import DataError
from distmoe.training.report import draw_report, read_history
from distmoe.training.report.scores import score_rows
from distmoe.training.report.style import smooth
from tests.unit.training.synthetic_run import TASKS, evaluation_line, write_run

PICTURES = ("loss", "task_losses", "scores", "score_changes", "routing", "load", "load_history", "tree", "throughput")


def test_report_has_every_picture_in_both_themes_and_one_self_contained_page(tmp_path: Path) -> None:
    page = draw_report(write_run(tmp_path / "run"))
    names = {path.name for path in page.parent.iterdir()}
    assert names == {"index.html", *(f"{name}{theme}.png" for name in PICTURES for theme in ("", "-dark"))}
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 2 * len(PICTURES)
    assert 'src="http' not in text
    assert "Structural learning" not in text
    assert all(f"<td>{task}</td>" in text for task in TASKS)
    assert imread(page.parent / "loss.png").std() > 0.01


def test_a_dense_run_has_neither_routing_nor_structural_pictures(tmp_path: Path) -> None:
    page = draw_report(write_run(tmp_path / "run", routed=False))
    assert not (page.parent / "routing.png").exists()
    assert "Task groups" not in page.read_text()
    assert "Structural learning" not in page.read_text()


def test_a_run_that_has_not_evaluated_yet_is_drawn(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", num_steps=50)
    lines = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if "evaluation" not in line]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 60, "lo')
    for name in ("result.json", "summary.json"):
        (folder / name).unlink()
    assert "has not ended yet" in draw_report(folder).read_text()


def test_scores_compare_the_newest_evaluation_with_the_one_before(tmp_path: Path) -> None:
    rows = score_rows(read_history(write_run(tmp_path / "run", num_steps=300)))
    old, new = (evaluation_line(step)["evaluation"] for step in (200, 300))
    assert [row.task for row in rows] == [*TASKS, "macro score"]
    assert rows[0].current == new["tasks"]["sst2"]["score"]
    assert rows[0].delta == new["tasks"]["sst2"]["score"] - old["tasks"]["sst2"]["score"]
    assert rows[-1].test == evaluation_line(300, "test")["evaluation"]["macro"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not the folder of a run"):
        draw_report(tmp_path)


def test_smoothing_of_a_constant_is_the_constant() -> None:
    assert smooth([2.0] * 5) == pytest.approx([2.0] * 5)


def test_recent_routing_adds_up_the_newest_lines(tmp_path: Path) -> None:
    history = read_history(write_run(tmp_path / "run", num_steps=100))
    lines = [line["routing"]["layer_3"] for line in history.train]
    found = history.recent_routing(num_lines=2)["layer_3"]
    assert found["load"] == [a + b for a, b in zip(lines[-2]["load"], lines[-1]["load"], strict=True)]
    assert found["tasks"]["cola"] == [
        a + b for a, b in zip(*(line["tasks"]["cola"] for line in lines[-2:]), strict=True)
    ]
