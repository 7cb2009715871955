"""What jobs around a training call: the cache made beforehand, a checkpoint scored afterwards, a sweep's table."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from tests.integration.commands import ROOT, metrics, overrides, run_alone


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_tool", ROOT / "tools" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny run on one process whose data was prepared before."""
    folder = tmp_path_factory.mktemp("tools")
    arguments = overrides(folder)
    assert tool("preprocess").main(["--resume", "never", *arguments]) == 0
    prepared = sorted((path, path.stat().st_mtime_ns) for path in (folder / "cache").rglob("*") if path.is_file())
    assert prepared
    assert run_alone(folder, arguments).code == 0
    assert sorted((p, p.stat().st_mtime_ns) for p in (folder / "cache").rglob("*") if p.is_file()) == prepared
    return folder


def validation_of(run: Path) -> dict:
    """The last validation line of a run's log."""
    return next(
        one["evaluation"] for one in metrics(run)
        if one["step"] == 12 and one.get("evaluation", {}).get("split") == "validation"
    )  # fmt: skip


def test_a_prepared_cache_is_used_and_the_checkpoint_scores_as_it_did_in_the_run(folder: Path, capsys) -> None:
    assert tool("evaluate").main([str(folder / "run" / "checkpoints" / "step_12")]) == 0
    found, line = json.loads(capsys.readouterr().out), validation_of(folder / "run")
    assert found["macro"] == pytest.approx(line["macro"])
    assert found["tasks"] == {name: pytest.approx(row) for name, row in line["tasks"].items()}


def test_checkpoints_are_compared_in_one_table(folder: Path, capsys) -> None:
    last, other = (str(folder / "run" / "checkpoints" / name) for name in ("step_12", "step_8"))
    assert tool("evaluate").main([last, "--compare", other]) == 0
    lines, line = capsys.readouterr().out.splitlines(), validation_of(folder / "run")
    assert lines[:2] == [f"[1] {last} validation", f"[2] {other} validation"]
    assert lines[2].split() == ["task", "metric", "[1]", "[2]"]
    assert lines[-1].split()[:2] == ["macro", f"{line['macro']:.4f}"]
    assert {row.split()[0]: row.split()[2] for row in lines[3:-1]} == {
        name: f"{row['score']:.4f}" for name, row in line["tasks"].items()
    }


@pytest.mark.slow
def test_every_export_of_a_run_gives_the_full_models_logits_and_scores(folder: Path, capsys, monkeypatch) -> None:
    check = tool("check_export")
    checkpoint, out = folder / "run" / "checkpoints" / "step_12", folder / "exports"
    out.mkdir()
    rows = check.compare(checkpoint, out, num_examples=20)
    assert [row.spec.name for row in rows] == ["planted0_a", "planted0_low", "planted1_a", "planted1_low"]
    for row in rows:
        assert row.export.architecture == "BertForSequenceClassification"
        assert row.num_examples == 20
        assert 0 < row.difference <= 1e-5
        assert row.alone == pytest.approx(row.full, abs=1e-12)
    arguments = [str(checkpoint), str(out)]
    monkeypatch.setattr(check, "compare", lambda *_, **__: rows)
    assert check.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("largest difference of a logit: ")
    for wrong in ({"difference": 2e-5}, {"alone": rows[1].full - 0.05}):
        monkeypatch.setattr(check, "compare", lambda *_, wrong=wrong, **__: [rows[0], replace(rows[1], **wrong)])
        assert check.main(arguments) == 1
        assert capsys.readouterr().err == "planted0_low: the export is not the full model's task\n"


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path, capsys) -> None:
    assert tool("evaluate").main([str(tmp_path)]) == 2
    assert "not a complete checkpoint" in capsys.readouterr().err


def test_the_table_of_a_sweep_has_a_line_per_run_and_their_mean(tmp_path: Path) -> None:
    aside = ("sweep-2.old-20260102-030405", "sweep-2.old-20260102-030405-1")
    for name, score in (("sweep-1", 0.5), ("sweep-2", 0.7), *((name, 0.9) for name in aside)):
        folder = tmp_path / name
        folder.mkdir()
        result = {"ended": "Finished", "step": 12, "best": {"step": 6, "score": score}, "test": {"macro": score - 0.1}}
        (folder / "result.json").write_text(json.dumps(result))
    lines = tool("collect").collect(tmp_path, "sweep")
    assert len(lines) == 4
    assert lines[1].split() == ["sweep-1", "12", "0.5000", "0.4000", "Finished"]
    assert lines[-1] == "2 runs: best 0.6000 +- 0.1414"
