from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from distmoe.checkpoint.manifest import Manifest, TensorRecord
from distmoe.checkpoint.progress import folder_bytes, reported, spell_bytes, tensor_bytes


def test_bytes_of_a_manifest_are_those_of_weights_moments_and_buffers() -> None:
    records = {
        "trained": TensorRecord("trainable", (2, 3), "float32"),  # 6 elements, 4 bytes, weight and two moments
        "frozen": TensorRecord("frozen", (5,), "bfloat16"),
        "buffer": TensorRecord("buffer", (), "int64"),
    }
    assert tensor_bytes(Manifest(step=1, tasks=[], grouping={}, tensors=records)) == 6 * 4 * 3 + 5 * 2 + 8


def test_bytes_of_a_folder_are_those_of_all_files_below_it(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "a").write_bytes(b"123")
    (tmp_path / "b").write_bytes(b"45")
    assert folder_bytes(tmp_path) == 5
    assert folder_bytes(tmp_path / "absent") == 0


def test_a_folder_that_vanishes_meanwhile_counts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "a").write_bytes(b"123")
    (tmp_path / "b").write_bytes(b"45")
    real = os.scandir

    def scandir(path: str) -> Any:
        if Path(path).name == "gone":
            raise FileNotFoundError(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert folder_bytes(tmp_path) == 2


def test_sizes_are_spelled_with_decimal_units() -> None:
    assert [spell_bytes(count) for count in (999, 1000, 1_234_567, 5 * 10**9, 7 * 10**15)] == [
        "999 B", "1.0 kB", "1.2 MB", "5.0 GB", "7000.0 TB",
    ]  # fmt: skip


def test_a_long_save_says_how_far_it_is_and_falls_silent_at_its_end(tmp_path: Path) -> None:
    said: list[str] = []
    draft = tmp_path / "step_7.tmp"
    draft.mkdir()
    (draft / "half").write_bytes(b"x" * 50)
    with reported(draft, 100, said.append, every=0.01):
        deadline = time.monotonic() + 30
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
    assert said[0] == "writing step_7: 50% of 100 B"
    number = len(said)
    time.sleep(0.05)
    assert len(said) == number
