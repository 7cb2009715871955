"""What jobs around a training call: the cache made beforehand, a checkpoint scored afterwards, a sweep's table."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.integration.commands import ROOT, metrics, overrides, run_alone


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_tool", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_prepared_cache_is_used_and_the_checkpoint_scores_as_it_did_in_the_run(tmp_path: Path, capsys) -> None:
    arguments = overrides(tmp_path)
    assert tool("preprocess").main(["--resume", "never", *arguments]) == 0
    assert "64 train" in capsys.readouterr().out
    prepared = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert prepared

    assert run_alone(tmp_path, arguments).code == 0
    assert sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "cache").rglob("*") if p.is_file()) == prepared

    assert tool("evaluate").main([str(tmp_path / "run" / "checkpoints" / "step_12")]) == 0
    found = json.loads(capsys.readouterr().out)
    line = next(
        one["evaluation"] for one in metrics(tmp_path / "run")
        if one["step"] == 12 and one.get("evaluation", {}).get("split") == "validation"
    )  # fmt: skip
    assert found["macro"] == pytest.approx(line["macro"])
    assert found["tasks"] == {name: pytest.approx(row) for name, row in line["tasks"].items()}


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path, capsys) -> None:
    assert tool("evaluate").main([str(tmp_path)]) == 2
    assert "not a complete checkpoint" in capsys.readouterr().err


def test_the_table_of_a_sweep_has_a_line_per_run_and_their_mean(tmp_path: Path) -> None:
    for index, score in ((1, 0.5), (2, 0.7)):
        folder = tmp_path / f"sweep-{index}"
        folder.mkdir()
        result = {"ended": "Finished", "step": 12, "best": {"step": 6, "score": score}, "test": {"macro": score - 0.1}}
        (folder / "result.json").write_text(json.dumps(result))
    lines = tool("collect").collect(tmp_path, "sweep")
    assert len(lines) == 4
    assert lines[1].split() == ["sweep-1", "12", "0.5000", "0.4000", "Finished"]
    assert lines[-1] == "2 runs: best 0.6000 +- 0.1414"
