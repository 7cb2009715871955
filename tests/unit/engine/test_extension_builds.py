from __future__ import annotations

from pathlib import Path

from distmoe.engine import extension_builds


def test_locks_lie_one_or_two_levels_below_the_folder_that_torch_uses(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert extension_builds.locks(extension_builds.folder() / "absent") == []
    wanted = [tmp_path / "fused_adam" / "lock", tmp_path / "py311_cpu" / "shm" / "lock"]
    for lock in (*wanted, tmp_path / "a" / "b" / "c" / "lock"):
        lock.parent.mkdir(parents=True)
        lock.touch()
    assert extension_builds.locks(extension_builds.folder()) == wanted
