from __future__ import annotations

import json
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
    for draft in (".out.distmoe-draft", "out.draft"):
        (tmp_path / draft).mkdir()
        (tmp_path / draft / "file").touch()
    _fill(tmp_path / "out")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "out",
        "out.draft",  # the user's own
        "out.draft/file",
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


def _export(out: Path, *names: str) -> Path:
    """An export as its files look."""
    out.mkdir()
    for name in names:
        (out / name).write_text("old")
    (out / "config.json").write_text(f'{{"{VERSION_KEY}": "0"}}')
    return out


def _new(out: Path) -> None:
    with new_export(out) as draft:
        (draft / "config.json").write_text(f'{{"{VERSION_KEY}": "1"}}')
        (draft / "vocab.txt").write_text("new")


def test_an_older_export_stays_whole_until_the_new_one_takes_its_place(tmp_path: Path) -> None:
    out = _export(tmp_path / "out", "modeling_distmoe.py", "tokenizer.json")
    with new_export(out) as draft:
        (draft / "config.json").touch()
        assert len(list(out.iterdir())) == 3
    assert [path.name for path in out.iterdir()] == ["config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("instant", ["rename", "rmtree"])
def test_an_export_that_is_killed_while_it_replaces_another_can_be_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant: str
) -> None:
    """Killed after the older export was moved away, or before it is removed."""
    out, real = _export(tmp_path / "out", "tokenizer.json"), Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name.endswith("draft"):
            raise KeyboardInterrupt
        return real(path, target)

    with monkeypatch.context() as patch:
        if instant == "rename":
            patch.setattr(Path, "rename", killed)
            with pytest.raises(KeyboardInterrupt):
                _new(out)
        else:
            patch.setattr("distmoe.checkpoint.export_folder.shutil.rmtree", lambda *_, **__: None)
            _new(out)
    _new(out)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "vocab.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_in_the_folder_that_the_user_stands_in_is_replaced_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = _export(tmp_path / "out", "tokenizer.json")
    monkeypatch.chdir(out)
    number = out.stat().st_ino
    _new(Path("."))
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "vocab.txt"]
    assert json.loads(Path("config.json").read_text()) == {VERSION_KEY: "1"}
    assert out.stat().st_ino == number


@pytest.mark.parametrize("name", ["notes.txt", "train.py", ".gitattributes", "vocab.txt/inner"])
def test_an_export_with_the_user_s_own_files_is_not_replaced(tmp_path: Path, name: str) -> None:
    out = _export(tmp_path / "out")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("years of work")
    with pytest.raises(CheckpointError, match=rf"no export has\n  got:      .*out with {name.partition('/')[0]}\n"):
        _new(out)
    assert (out / name).read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_body_that_fails_leaves_no_draft(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of the body"), new_folder(tmp_path / "out"):
        raise ValueError("of the body")
    assert not list(tmp_path.iterdir())
