"""The three ratios, from the tensors of a checkpoint and through the command that prints them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distmoe.checkpoint.manifest import TensorRecord
from distmoe.checkpoint.shares import parameter_shares_of, shares_text
from tests.unit.checkpoint.test_convert_tools import _main_of
from tests.unit.checkpoint.test_manifest import manifest

# Backbone 6 + 4 = 10, of which 6 are frozen; additions 2 + 3 = 5.
TENSORS = {
    "encoder.embeddings.word.weight": TensorRecord("frozen", (2, 3), "float32"),
    "pooler.dense.weight": TensorRecord("trainable", (2, 2), "float32"),
    "heads.weight": TensorRecord("trainable", (1, 1, 2), "float32", added=True),
    "encoder.conditioner.table.z_Tk": TensorRecord("trainable", (3, 1), "float32", added=True),
    "gate.counts": TensorRecord("buffer", (100,), "int64"),
}


def test_shares_count_global_tensors_by_hand() -> None:
    shares = parameter_shares_of(TENSORS)
    assert (shares.backbone, shares.added, shares.frozen, shares.total) == (10, 5, 6, 15)
    assert (shares.frozen_of_total, shares.frozen_of_backbone, shares.trainable_to_backbone) == (6 / 15, 0.6, 0.9)


def test_the_line_names_all_three_ratios() -> None:
    text = shares_text(parameter_shares_of(TENSORS))
    assert "frozen / total 0.400, frozen / backbone 0.600, trainable / backbone 0.900" in text


def test_inspect_checkpoint_prints_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest(tensors=TENSORS).write(tmp_path)
    assert _main_of("inspect_checkpoint")([str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["frozen_of_backbone"] == 0.6
    assert _main_of("inspect_checkpoint")([str(tmp_path)]) == 0
    assert "trainable / backbone 0.900" in capsys.readouterr().out


def test_inspect_checkpoint_refuses_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main_of("inspect_checkpoint")([str(tmp_path / "nothing")]) == 2
    assert "not a complete checkpoint" in capsys.readouterr().err
