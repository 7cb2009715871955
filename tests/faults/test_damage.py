"""Checkpoints damaged in every way that we know: refused by name, with what was got and expected and what to do.

``make test-faults`` prints what a user reads. Each case resumes the damaged checkpoint as a user would
(``--resume PATH``); a case that is marked as forged has checksums that fit, as somebody who wants to be loaded would
make them.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distmoe.checkpoint import folders
from distmoe.checkpoint.manifest import FORMAT_VERSION, MANIFEST_NAME, record_file
from distmoe.checkpoint.storage import INDEX_NAME
from tests.faults.runs import Ranks, overrides, use_fork_server

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

CHUNKS, INDEX = "shards/__1_0.distcp", f"shards/{INDEX_NAME}"


def truncated(folder: Path) -> None:
    path = folder / CHUNKS
    path.write_bytes(path.read_bytes()[:-100])


def bit_flipped(folder: Path) -> None:
    data = bytearray((folder / CHUNKS).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / CHUNKS).write_bytes(data)


def missing_chunk_file(folder: Path) -> None:
    (folder / CHUNKS).unlink()


def missing_chunk_in_the_index(folder: Path) -> None:
    """A tensor's last piece is not there any more; checksums fit."""
    index = json.loads((folder / INDEX).read_text())
    max(index["entries"].values(), key=lambda entry: len(entry["chunks"]))["chunks"].pop()
    (folder / INDEX).write_text(json.dumps(index))
    _forge(folder, INDEX)


def manifest_of_another_step(folder: Path) -> None:
    other = next(path for path in folders.steps(folder.parent) if path != folder)
    shutil.copy(other / MANIFEST_NAME, folder / MANIFEST_NAME)


def manifest_cut_short(folder: Path) -> None:
    text = (folder / MANIFEST_NAME).read_text()
    (folder / MANIFEST_NAME).write_text(text[: len(text) // 2])


def pickle_in_place_of_a_tensor(folder: Path) -> None:
    """Would create a file if it were unpickled; checksums and places fit."""
    evil = pickle.dumps(_Payload(str(folder / "ran")))
    (folder / CHUNKS).write_bytes(evil)
    index = json.loads((folder / INDEX).read_text())
    for entry in index["entries"].values():
        for chunk in entry["chunks"]:
            chunk["file"], chunk["start"], chunk["bytes"] = Path(CHUNKS).name, 0, len(evil)
    (folder / INDEX).write_text(json.dumps(index))
    _forge(folder, CHUNKS, INDEX)


def path_out_of_the_folder_in_the_index(folder: Path) -> None:
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace(Path(CHUNKS).name, "../../../secret"))
    _forge(folder, INDEX)


def path_out_of_the_folder_in_the_manifest(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    manifest["files"]["../../secret"] = manifest["files"].pop(CHUNKS)
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


def link_out_of_the_folder(folder: Path) -> None:
    outside = folder.parent / "elsewhere"
    (folder / "shards").rename(outside)
    (folder / "shards").symlink_to(outside)


def newer_format(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    manifest["format_version"] = FORMAT_VERSION + 1
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


def without_a_manifest(folder: Path) -> None:
    (folder / MANIFEST_NAME).unlink()


DAMAGES: dict[Callable[[Path], None], str] = {
    truncated: r"is damaged\n.*__1_0\.distcp has \d+ bytes instead of \d+",
    bit_flipped: r"is damaged\n.*__1_0\.distcp has another SHA-256",
    missing_chunk_file: r"is damaged\n.*__1_0\.distcp is missing",
    missing_chunk_in_the_index: r"is not complete\n.*elements",
    manifest_of_another_step: r"is damaged\n.*(SHA-256|bytes instead of)",
    manifest_cut_short: r"manifest\.json is damaged",
    pickle_in_place_of_a_tensor: r"cannot be read\n.*something else than a tensor, which was not unpickled",
    path_out_of_the_folder_in_the_index: r"points outside the checkpoint\n.*\.\./\.\./\.\./secret",
    path_out_of_the_folder_in_the_manifest: r"names a file outside the checkpoint\n.*\.\./\.\./secret",
    link_out_of_the_folder: r"names a file outside the checkpoint",
    newer_format: rf"{FORMAT_VERSION + 1}(.|\n)*{FORMAT_VERSION}",
    without_a_manifest: r"not a complete checkpoint",
}
"""How a checkpoint is damaged -> what the refusal says."""


class _Payload:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.mknod, (self.target, 0o600)


def _forge(folder: Path, *names: str) -> None:
    """Makes the manifest's sizes and checksums fit."""
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    for name in names:
        record = record_file(folder / name)
        manifest["files"][name] = {"size": record.size, "sha256": record.sha256}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks with two checkpoints."""
    root = tmp_path_factory.mktemp("good")
    use_fork_server(root / "extensions")
    ended = Ranks(root, overrides(root, root / "cache", "schedule.num_steps=4")).wait()
    assert ended.codes == (0, 0), ended.outputs[0]
    return root


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    rows: list[str] = []
    yield rows
    print(f"\n{len(rows)} damaged checkpoints, each refused with exit code 2:\n")
    print("\n\n".join(rows))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_refused_in_four_parts(
    damage: Callable[[Path], None], good: Path, table: list[str], tmp_path: Path
) -> None:
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(good / "run" / "checkpoints", checkpoints)
    folder = checkpoints / "step_4"
    damage(folder)
    arguments = overrides(tmp_path, good / "cache", "schedule.num_steps=5")  # behind step 4 something is left to train
    (code,), (output,) = _resume(tmp_path, ["--resume", str(folder), *arguments])
    assert code == 2, output
    match = re.search(r"error: .*\n  got:      .+\n  expected: .+\n  remedy:   .+", output)
    assert match, output
    assert re.search(DAMAGES[damage], match[0]), match[0]
    assert not (folder / "ran").exists()
    shown = match[0].replace(str(checkpoints), "CHECKPOINTS").replace("\n", "\n    ")
    table.append(f"{damage.__name__.replace('_', ' ')}\n    {shown}")


def _resume(folder: Path, arguments: list[str]) -> tuple[tuple[int | None, ...], tuple[str, ...]]:
    ended = Ranks(folder / "start", arguments, num_ranks=1).wait()
    return ended.codes, ended.outputs
