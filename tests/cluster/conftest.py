"""The cluster of ``tests/cluster``: started per file (a killed node stays away), skipped where Slurm cannot be had.

``DISTMOE_REQUIRE_SLURM=1`` turns the skip into a failure, for a machine that is meant to have it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.nodes import SCRIPTS, Nodes, missing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def slurm() -> None:
    reason = missing()
    if reason and os.environ.get("DISTMOE_REQUIRE_SLURM") == "1":
        pytest.fail(f"Slurm is required: {reason}")
    if reason:
        pytest.skip(f"no Slurm: {reason}")


@pytest.fixture(scope="module")
def nodes(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("slurm")
    script = str(SCRIPTS / "nodes.sh")
    done = subprocess.run([script, "up", str(folder)], text=True, capture_output=True, timeout=120)
    try:
        assert done.returncode == 0, done.stderr
        yield Nodes(folder)
    finally:
        subprocess.run([script, "down", str(folder)], timeout=120, check=True)
