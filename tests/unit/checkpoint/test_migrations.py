from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distmoe.checkpoint.manifest import FORMAT_VERSION, MANIFEST_NAME, Manifest, read_manifest
from distmoe.checkpoint.migrations import MIGRATIONS, migrated
from distmoe.errors import CheckpointError

PATH = Path("step_1/manifest.json")


def _rename(values: dict[str, Any]) -> dict[str, Any]:
    values["new"] = values.pop("old")
    return values


def _double(values: dict[str, Any]) -> dict[str, Any]:
    return values | {"new": 2 * values["new"]}


STEPS = {1: _rename, 2: _double}


def test_an_old_manifest_takes_every_step_in_order() -> None:
    old = {"format_version": 1, "old": 21}
    assert migrated(old, path=PATH, current=3, migrations=STEPS) == {"format_version": 3, "new": 42}
    assert old == {"format_version": 1, "old": 21}
    halfway = {"format_version": 2, "new": 1}
    assert migrated(halfway, path=PATH, current=3, migrations=STEPS)["new"] == 2


def test_a_format_without_a_step_is_refused_with_those_that_can_be_read() -> None:
    with pytest.raises(
        CheckpointError, match=r"cannot read any more\n  got:      format 0\n  expected: format 1, 2, 3"
    ):
        migrated({"format_version": 0}, path=PATH, current=3, migrations=STEPS)


@pytest.mark.parametrize("version", [4, "1", True, None])
def test_a_newer_or_senseless_version_is_refused(version: object) -> None:
    with pytest.raises(CheckpointError, match=r"newer distmoe\n  got:      format .*\n  expected: format 3 or older"):
        migrated({"format_version": version}, path=PATH, current=3, migrations=STEPS)


def test_every_older_version_has_its_step() -> None:
    assert sorted(MIGRATIONS) == list(range(1, FORMAT_VERSION))


def test_reading_a_manifest_goes_through_the_steps(tmp_path: Path) -> None:
    Manifest(step=1, tasks=[], grouping={}).write(tmp_path)
    path = tmp_path / MANIFEST_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 0}))
    with pytest.raises(CheckpointError, match="cannot read any more"):
        read_manifest(tmp_path)
