from __future__ import annotations

from pathlib import Path

import pytest

from distmoe.checkpoint.export_folder import VERSION_KEY, new_export
from distmoe.checkpoint.new_folder import new_folder, refuse_content
from distmoe.errors import CheckpointError


def _fill(out: Path) -> None:
    with new_folder(out) as draft:
        (draft / "inner").mkdir()
        (draft / "inner" / "file").write_text("x")
        assert not list(out.glob("*"))


def test_a_new_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    (tmp_path / "out.draft").mkdir()
    (tmp_path / "out.draft" / "of a killed process").touch()
    _fill(tmp_path / "out")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "out",
        "out/inner",
        "out/inner/file",
    ]


def test_the_folder_that_the_user_stands_in_is_filled_and_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    number = here.stat().st_ino
    _fill(Path("."))
    assert Path("inner/file").read_text() == "x"
    assert here.stat().st_ino == number
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_folder_with_content_is_refused_and_an_empty_one_is_not(tmp_path: Path) -> None:
    refuse_content(tmp_path, "the set")
    refuse_content(tmp_path / "new", "the set")
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(CheckpointError, match="the set would overwrite something"):
            refuse_content(out, "the set")


def test_an_older_export_leaves_nothing_in_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "config.json").write_text(f'{{"{VERSION_KEY}": "0"}}')
    with new_export(tmp_path) as draft:
        (draft / "new").touch()
        assert (tmp_path / "sub").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
