"""Manifests of older formats, brought to today's one version at a time.

A change of the format raises ``FORMAT_VERSION`` and adds one function here, from the version before to the new one::

    def _from_1(values):                       # version 2 calls the score by its metric
        values["scores"] = {"macro": values.pop("score")}
        return values

    MIGRATIONS = {1: _from_1}

A migration works on the plain values of ``manifest.json`` in memory; files are never rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distmoe.errors import CheckpointError

Migration = Callable[[dict[str, Any]], dict[str, Any]]

MIGRATIONS: Mapping[int, Migration] = {}
"""Format version -> how its manifest becomes one of the next version. Version 1 is the first."""


def migrated(
    values: dict[str, Any], *, path: Path, current: int, migrations: Mapping[int, Migration] = MIGRATIONS
) -> dict[str, Any]:
    """Returns the values of a manifest in the current format.

    Args:
        values: As read; ``format_version`` says of which format.
        path: Where they were read, for messages.
        current: Today's version.
        migrations: The known steps.

    Raises:
        CheckpointError: If the format is newer than the current one, or no step leads from it.
    """
    version = values["format_version"]
    if not isinstance(version, int) or isinstance(version, bool) or version > current:
        raise CheckpointError(
            f"{path} was written by a newer distmoe",
            got=f"format {version}",
            expected=f"format {current} or older",
            remedy="install a newer distmoe",
        )
    while version < current:
        if version not in migrations:
            raise CheckpointError(
                f"{path} has a format that this version of distmoe cannot read any more",
                got=f"format {version}",
                expected=f"format {', '.join(map(str, sorted({*migrations, current})))}",
                remedy="export it with the version of distmoe that wrote it",
            )
        values, version = dict(migrations[version](dict(values))), version + 1
        values["format_version"] = version
    return values
