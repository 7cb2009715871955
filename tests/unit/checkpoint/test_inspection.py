from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distmoe.checkpoint.inspection import Pool, inspect
from distmoe.checkpoint.integrity import refuse_damage, verify
from distmoe.checkpoint.manifest import read_manifest
from distmoe.checkpoint.storage import INDEX_NAME
from distmoe.errors import CheckpointError
from tests.unit.checkpoint.runs import trained, write_run
from tests.unit.checkpoint.tools import main_of
from tests.unit.models.samples import model_config, moe_config


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = model_config(moe_config("task"))
    return write_run(tmp_path, config, trained(config))


def test_an_inspection_counts_experts_and_parameters(checkpoint: Path) -> None:
    """Layer 1 of 2 is routed, D 16, F 32: an expert has 2 * 16 * 32 + 32 + 16 = 1072 parameters."""
    found = inspect(checkpoint)
    pools = (Pool(0, ("mood", "topic"), 2, 32, 2 * 1072), Pool(1, ("score",), 2, 32, 2 * 1072))
    assert found.routed_layers == {1: pools}
    assert found.parameters["experts"] == 4 * 1072
    assert found.parameters["gates"] == 3 * 4
    assert found.parameters["heads"] == 3 * 3 * (16 + 1)
    assert sum(found.parameters.values()) == sum(p.numel() for p in trained(model_config(moe_config())).parameters())
    assert (found.step, found.drawn) == (7, {"mood": 10, "topic": 20, "score": 30})
    assert found.data == {"window": 3, "step_in_window": 1}
    assert found.total_bytes == sum(
        f.stat().st_size for f in checkpoint.rglob("*") if f.name != "manifest.json" and f.is_file()
    )


def test_an_inspection_counts_whole_layers_of_task_groups(tmp_path: Path) -> None:
    """D 16, F 32: attention 3 * (16 * 16 + 16) + 16 * 16 + 16 = 1088, two norms 64, feed-forward part 1072."""
    config = model_config(moe_config("task", unit="block", experts_per_task_group=1))
    found = inspect(write_run(tmp_path, config, trained(config)))
    assert found.routed_layers == {1: (Pool(0, ("mood", "topic"), 1, 32, 2224), Pool(1, ("score",), 1, 32, 2224))}
    assert found.parameters["experts"] == 2 * 2224


def test_a_whole_checkpoint_is_intact(checkpoint: Path) -> None:
    found = verify(checkpoint, read_manifest(checkpoint), contents=True)
    assert found.intact
    assert found.chunks == 3 * sum(record.kind == "trainable" for record in read_manifest(checkpoint).tensors.values())


def _edit_index(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "shards" / INDEX_NAME
        index = json.loads(path.read_text())
        change(index["entries"])
        path.write_text(json.dumps(index))

    return edit


def _drop_rows(entries: dict[str, Any]) -> None:
    entries["exp_avg/heads.weight"]["chunks"][0]["size"][0] -= 1


def _overlap(entries: dict[str, Any]) -> None:
    chunk = entries["exp_avg/heads.bias"]["chunks"][0]
    halves = [chunk | {"size": [1, 3]}, chunk | {"size": [2, 3]}]
    entries["exp_avg/heads.bias"]["chunks"] = halves


def _beyond(entries: dict[str, Any]) -> None:
    entries["exp_avg/heads.bias"]["chunks"][0]["offset"][0] += 1


def _past_the_end(entries: dict[str, Any]) -> None:
    entries["exp_avg/heads.bias"]["chunks"][0]["start"] += 10**9


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_drop_rows, "exp_avg/heads.weight: chunks hold 96 of 144 elements"),
        (_overlap, "exp_avg/heads.bias: chunk at [0, 0] overlaps another"),
        (_beyond, "exp_avg/heads.bias: a chunk reaches beyond the tensor"),
        (_past_the_end, "exp_avg/heads.bias: chunk at [0, 0] ends at byte 1000"),
        (lambda entries: entries["exp_avg/heads.bias"]["chunks"].clear(), "exp_avg/heads.bias: chunks hold 0 of 9 el"),
        (lambda entries: entries.pop("fp32/heads.bias"), "fp32/heads.bias is missing in the index"),
        (lambda entries: entries.update(x=entries["fp32/heads.bias"]), "x is in the index and not in the manifest"),
    ],
)
def test_chunks_that_do_not_make_up_the_tensors_are_found(
    checkpoint: Path, change: Callable[[dict[str, Any]], None], text: str
) -> None:
    _edit_index(change)(checkpoint)
    problems = verify(checkpoint, read_manifest(checkpoint), contents=False).problems
    assert any(problem.startswith(text) for problem in problems), problems


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("start", None),
        ("start", "0"),
        ("bytes", -1),
        ("size", [2.0, 3]),
        ("size", 6),
        ("offset", ["0", 0]),
        ("file", 3),
    ],
)
def test_an_index_with_values_of_another_kind_is_damage(checkpoint: Path, key: str, value: Any) -> None:
    def change(entries: dict[str, Any]) -> None:
        chunk = entries["exp_avg/heads.bias"]["chunks"][0]
        chunk[key] = value
        if value is None:
            del chunk[key]

    _edit_index(change)(checkpoint)
    problems = verify(checkpoint, read_manifest(checkpoint), contents=False).problems
    assert any("index.json cannot be read" in problem for problem in problems), problems


def test_a_changed_bit_is_found_by_checksum_alone_and_a_stranger_by_name(checkpoint: Path) -> None:
    path = checkpoint / "shards" / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (checkpoint / "shards" / "left.over").write_text("")
    manifest = read_manifest(checkpoint)
    assert verify(checkpoint, manifest, contents=False).problems == ("shards/left.over is not listed in the manifest",)
    assert verify(checkpoint, manifest, contents=True).problems[0] == (
        "shards/__0_0.distcp has another SHA-256 than the manifest says"
    )


def test_the_command_prints_tree_experts_and_sizes(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_of("inspect_checkpoint")([str(checkpoint), "--verify"]) == 0
    text = capsys.readouterr().out
    assert "  layer 1 g0: mood, topic" in text
    assert "    1          g1        2     32       2,144  score" in text
    assert "step 7, format 1" in text
    assert "integrity: intact" in text
    assert "frozen / backbone 0.000, trainable / backbone 1.000" in text
    assert main_of("inspect_checkpoint")([str(checkpoint), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["integrity"]["intact"] is True
    assert found["shares"]["total"] == found["shares"]["backbone"] == sum(found["parameters"].values())
    assert found["routed_layers"]["1"][0]["tasks"] == ["mood", "topic"]


def test_the_command_says_what_is_damaged_by_its_exit_code(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / "trainer.json").unlink()
    assert main_of("inspect_checkpoint")([str(checkpoint)]) == 1
    assert "trainer.json is missing" in capsys.readouterr().out
    assert main_of("inspect_checkpoint")([str(checkpoint.parent)]) == 2
    assert "not a complete checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_an_index_that_cannot_be_read_is_damage(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    path = checkpoint / "shards" / INDEX_NAME
    path.unlink() if text is None else path.write_text(text)
    assert main_of("inspect_checkpoint")([str(checkpoint), "--verify"]) == 1
    assert "index.json cannot be read" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="is damaged"):
        refuse_damage(checkpoint, read_manifest(checkpoint))
