"""Where DeepSpeed compiles its operators, and their locks: a killed build leaves one, and every later build hangs."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """The folder of builds, one level per environment below it where none is named."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")


def locks(builds: Path) -> list[Path]:
    """Locks of builds that run or were killed, sorted; a build lies one or two levels deep."""
    return sorted([*builds.glob("*/lock"), *builds.glob("*/*/lock")])
