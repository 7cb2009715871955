#!/usr/bin/env python3
"""Adds a task to a trained model, or removes one. OUT is a new run that trains on.

python tools/edit_tasks.py runs/NAME/checkpoints/step_N runs/NEW --add FOLDER --policy nearest
python tools/edit_tasks.py runs/NAME/checkpoints/step_N runs/NEW --add FOLDER --recipe add_task_frozen
python tools/edit_tasks.py runs/NAME/checkpoints/step_N runs/NEW --remove sst2
deepspeed --num_gpus 2 distmoe/train.py --recipe runs/NEW/config.yaml

FOLDER has a task.json and its splits (docs/recipes.md). What the other tasks compute does not change by a bit.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if TYPE_CHECKING:
    from distmoe.checkpoint.edited_run import EditedRun


def main(argv: list[str] | None = None) -> int:
    from distmoe.checkpoint.new_task import POLICIES
    from distmoe.errors import DistmoeError

    parser = argparse.ArgumentParser(description="Add or remove a task of a trained distmoe model.")
    parser.add_argument("checkpoint", type=Path, help="folder runs/NAME/checkpoints/step_N")
    parser.add_argument("out", type=Path, help="folder of the new run")
    change = parser.add_mutually_exclusive_group(required=True)
    change.add_argument("--add", type=Path, metavar="FOLDER", help="task folder with task.json")
    change.add_argument("--remove", metavar="NAME", help="name of a task")
    parser.add_argument("--policy", choices=POLICIES, help="how it finds its route (default: nearest)")
    parser.add_argument("--like", metavar="TASK", help="task whose task groups it joins (default: by description)")
    parser.add_argument("--name", help="name of the new task (default: the folder's)")
    parser.add_argument(
        "--recipe",
        default="add_task",
        help="recipe whose values the new run takes: add_task (default), add_task_frozen, or your own",
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that win over the recipe's")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.remove is not None:
        given = [key for key in ("policy", "like", "name") if getattr(arguments, key) is not None]
        if given:
            parser.error(f"only --add reads {', '.join(f'--{key}' for key in given)}")
    arguments.policy = arguments.policy or "nearest"
    try:
        done = _edit(arguments)
    except DistmoeError as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 2
    before, after = done.parameters
    if done.like is not None:
        print(f"{done.tasks.names[-1]} joins the task groups of {done.like}; policy {arguments.policy}")
    print(f"tasks: {', '.join(done.tasks.names)}")
    print(f"parameters: {before:,d} -> {after:,d}")
    print(f"wrote {done.folder}; train on: deepspeed distmoe/train.py --recipe {done.folder / 'config.yaml'}")
    return 0


def _complete(values: dict[str, Any]) -> dict[str, Any]:
    """Refuses contradictions at once, and gives keys that the old run's distmoe did not know their defaults."""
    from distmoe.config import build
    from distmoe.recipes.contradictions import check
    from distmoe.training.config import RunConfig

    config = build(RunConfig, values)
    check(config)
    return config.model_dump()


def _edit(arguments: argparse.Namespace) -> EditedRun:
    from dataclasses import replace

    from distmoe.checkpoint.edit_tasks import add_task, remove_task
    from distmoe.config import apply_overrides
    from distmoe.data.sources import LocalSource
    from distmoe.errors import DataError
    from distmoe.recipes.loader import load_recipe

    overlay = apply_overrides(load_recipe(arguments.recipe), arguments.overrides)
    if arguments.remove is not None:
        return remove_task(arguments.checkpoint, arguments.out, arguments.remove, overlay=overlay, complete=_complete)
    folder = arguments.add.resolve()
    if not (folder / "task.json").is_file():
        raise DataError(
            "the new task has no folder with task.json",
            got=arguments.add,
            expected="a folder with task.json and a training split, see docs/recipes.md",
            remedy="correct --add",
        )
    spec = replace(LocalSource(str(folder.parent)).spec(folder.name), name=arguments.name or folder.name)
    return add_task(
        arguments.checkpoint,
        arguments.out,
        spec,
        task_folder=folder,
        policy=arguments.policy,
        like=arguments.like,
        overlay=overlay,
        complete=_complete,
    )


if __name__ == "__main__":
    sys.exit(main())
