"""The tools around exports refuse what they cannot do: four parts or a usage line, exit code 2, no traceback."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.unit.checkpoint.tools import main_of, module_of

CLASSES = {"name": "mood", "kind": "classification", "labels": ["bad", "good"], "num_outputs": 2, "pair": False,
           "metric": "accuracy"}  # fmt: skip
NUMBER = {"name": "score", "kind": "regression", "labels": [], "num_outputs": 1, "pair": True, "metric": "pearson"}
TEXTS = {"name": "sum", "kind": "generation", "labels": [], "num_outputs": 0, "pair": False}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text(json.dumps({"tasks": [CLASSES, NUMBER, TEXTS]}))
    return tmp_path / "out"


def _rows(export: Path, text: str | None) -> str:
    path = export.parent / "rows.jsonl"
    if text is not None:
        path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("mood", '{"text": "a", "label": "fair"}', "line 1: no example of task mood"),
        ("mood", '{"text": "a", "label": 1}\n\n{"text": "a", "label": 2}', "line 3: no example of task mood"),
        ("mood", '{"text": "a"}', "and label: one of bad | good, or its number"),
        ("mood", '{"label": 1}', "a JSON object with text, and label"),
        ("mood", '{"text": ', "line 1: no example"),
        ("mood", "[1]", "line 1: no example"),
        ("score", '{"text": "a", "label": 1}', "a JSON object with text and text_pair, and label: a number"),
        ("score", '{"text": "a", "text_pair": "b", "label": NaN}', "line 1: no example of task score"),
        ("mood", "\n", "there is no example to score"),
        ("mood", None, "the examples cannot be read"),
        (None, "", "does not have this task"),
        ("sum", "", "are texts, not classes or numbers"),
    ],
)
def test_examples_that_cannot_be_scored_are_refused(
    export: Path, capsys: pytest.CaptureFixture[str], task: str | None, text: str | None, message: str
) -> None:
    arguments = [str(export), _rows(export, text), *([] if task is None else ["--task", task])]
    assert main_of("score_export")(arguments) == 2
    assert message in capsys.readouterr().err


def test_labels_are_names_or_numbers_of_classes(export: Path) -> None:
    scorer = module_of("score_export")
    rows = Path(_rows(export, '{"text": "a\u2028b", "label": "good"}\n\n{"text": "b", "label": 0}\n'))
    assert [example["label"] for example in scorer.read(rows, CLASSES, None)] == [1.0, 0.0]
    assert len(scorer.read(rows, CLASSES, 1)) == 1


@pytest.mark.parametrize("labels", [[1.0, 1.0, 1.0], [1.0]])
def test_a_correlation_that_is_undefined_is_zero_as_in_training(labels: list[float]) -> None:
    logits_NC = np.asarray([[0.1], [0.2], [0.3]], dtype=np.float32)[: len(labels)]
    assert module_of("score_export")._metric(NUMBER, logits_NC, labels) == 0.0


@pytest.mark.parametrize("text", ["{", "[]", '{"tasks": 3}', '{"tasks": [{}]}', '{"tasks": null}'])
@pytest.mark.parametrize("script", ["predict", "score_export"])
def test_a_broken_config_is_no_export(export: Path, capsys: pytest.CaptureFixture[str], script: str, text: str) -> None:
    (export / "config.json").write_text(text)
    assert main_of(script)([str(export), "a text", "--task", "mood"]) == 2
    assert "error: not an exported model" in capsys.readouterr().err


@pytest.mark.parametrize("room", [0, -3])
def test_an_answer_of_no_token_is_refused(export: Path, capsys: pytest.CaptureFixture[str], room: int) -> None:
    assert main_of("predict")([str(export), "a text", "--task", "sum", f"--max_new_tokens={room}"]) == 2
    assert f"--max_new_tokens {room}\n  expected: 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "option"),
    [
        ("reshard", "--file-size=nan"),
        ("reshard", "--file-size=0"),
        ("reshard", "--file-size=inf"),
        ("check_export", "--examples=0"),
        ("score_export", "--limit=0"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], script: str, option: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main_of(script)([str(tmp_path), str(tmp_path / "out"), option])
    assert option.partition("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"difference": math.nan}, {"alone": math.nan}, {"full": math.nan}], ids=str)
def test_a_comparison_of_nan_does_not_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: dict[str, Any]
) -> None:
    check = module_of("check_export")
    row = {"spec": SimpleNamespace(name="mood"), "difference": 0.0, "full": 0.5, "alone": 0.5}
    monkeypatch.setattr(check, "table", lambda rows: [])
    for values, code in ((row, 0), (row | wrong, 1)):
        monkeypatch.setattr(check, "compare", lambda *_, values=values, **__: [SimpleNamespace(**values)])
        assert check.main(["step_1", "out"]) == code
    assert capsys.readouterr().err == "mood: the export is not the full model's task\n"
