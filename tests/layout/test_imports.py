"""Imports go down the floors of ``docs/architecture.md``, and DeepSpeed stays inside ``engine/``.

The sources are read as syntax trees, so an import inside a function counts as well.
"""

from __future__ import annotations

import ast
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "distmoe"

# First part below distmoe/ -> floor. Packages of one floor do not import each other.
FLOORS = {
    "__init__": 0, "errors": 0, "log": 0, "seed": 0,
    "config": 1, "tasks": 1,
    "nn": 2, "parallel": 2, "tokenization": 2,
    "data": 3, "moe": 3, "structure": 3,
    "models": 4,
    "checkpoint": 5,
    "engine": 6,
    "training": 7,
    "doctor": 8, "forecast": 8, "recipes": 8,
    "studies": 9, "train": 9,
    "launch": 10,
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """``distmoe/moe/gates/base.py`` lives in ``moe``, ``distmoe/errors.py`` in ``errors``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names that a file imports, with their lines; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def test_every_module_has_a_floor():
    assert {room(path) for path in modules()} <= set(FLOORS)


def test_imports_go_down_and_never_across_a_floor():
    wrong = []
    for path in modules():
        here = room(path)
        for name, line in imported(path):
            parts = name.split(".")
            if parts[0] != "distmoe" or len(parts) == 1:
                continue
            there = parts[1] if parts[1] in FLOORS else "__init__"
            if there != here and FLOORS[there] >= FLOORS[here] and not (FLOORS[here] == FLOORS[there] == 0):
                wrong.append(
                    f"{path.relative_to(ROOT)}:{line} (floor {FLOORS[here]}) imports {name} (floor {FLOORS[there]})"
                )
    assert not wrong, "\n".join(wrong)


def test_imports_are_absolute_except_in_the_exported_modelling_code():
    """Files of ``checkpoint/hf`` are copied beside an export, where only relative imports of each other work."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in modules()
        for name, line in imported(path)
        if name.startswith(".") and path.parent != PACKAGE / "checkpoint" / "hf"
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_engine_imports_deepspeed():
    users = {room(path) for path in modules() for name, _ in imported(path) if name.split(".")[0] == "deepspeed"}
    assert users <= {"engine"}


def test_the_exported_modelling_code_never_imports_distmoe():
    wrong = [
        f"{path.name}:{line}"
        for path in (PACKAGE / "checkpoint" / "hf").glob("*.py")
        for name, line in imported(path)
        if name.split(".")[0] == "distmoe"
    ]
    assert not wrong, "\n".join(wrong)


def test_no_child_of_the_package_shadows_another_module():
    """Running ``distmoe/train.py`` puts its folder first on the path: ``distmoe/types.py`` would hide ``types``."""
    elsewhere = [entry for entry in sys.path if entry and Path(entry).resolve() not in (ROOT, PACKAGE)]
    children = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()} - {
        "__init__",
        "__pycache__",
    }
    installed = {module.name for module in pkgutil.iter_modules(elsewhere)} | set(sys.stdlib_module_names)
    assert not children & installed
    assert {"yaml", "torch", "types"} <= installed  # the check sees what it should compare with


@pytest.fixture(scope="module")
def imports_of_all() -> dict[str, str]:
    """Imports every module of the package below ``engine`` and above in a fresh process and reports what happened."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in modules()
        if FLOORS[room(path)] < FLOORS["engine"] and path.parent != PACKAGE / "checkpoint" / "hf"
    ]
    code = f"""
import importlib, logging, sys
for name in {names!r}:
    importlib.import_module(name)
import torch
print("deepspeed", "deepspeed" in sys.modules)
print("initialized", torch.distributed.is_available() and torch.distributed.is_initialized())
print("cuda", torch.cuda.is_initialized())
print("handlers", bool(logging.getLogger("distmoe").handlers))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return dict(line.split() for line in done.stdout.splitlines() if line.count(" ") == 1)


@pytest.mark.parametrize("effect", ["deepspeed", "initialized", "cuda", "handlers"])
def test_importing_below_the_engine_does_nothing(imports_of_all, effect):
    """No DeepSpeed, no process group, no CUDA context, no log handler."""
    assert imports_of_all[effect] == "False"


def test_the_floors_of_the_docs_are_the_floors_of_this_test():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [
        line.split("|")[1:3]
        for line in text.partition("## Floors")[2].partition("\n## ")[0].splitlines()
        if line.startswith("| ") and line.split("|")[1].strip().isdigit()
    ]
    told = {name.strip(" `/").removesuffix(".py"): int(floor) for floor, names in rows for name in names.split(",")}
    assert told == {name: floor for name, floor in FLOORS.items() if name != "__init__"}
