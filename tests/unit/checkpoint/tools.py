"""The scripts of ``tools/``, called as functions."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).resolve().parents[3] / "tools"


def main_of(script: str) -> Callable[[list[str]], int]:
    """The ``main`` of ``tools/SCRIPT.py``."""
    return module_of(script).main  # type: ignore[no-any-return]


def module_of(script: str) -> ModuleType:
    """``tools/SCRIPT.py``."""
    spec = importlib.util.spec_from_file_location(f"tool_{script.replace('/', '_')}", TOOLS / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module
