"""Configuration of the task grouping: who shares what with whom."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from distmoe.config import Section


class StructureConfig(Section):
    grouping: Literal["one", "per_task", "family"] | list[list[str]] | list[list[list[str]]] = Field(
        "one",
        description="Task groups: all together, one per task, by TaskSpec.family, one partition for all routed layers, "
        "or one partition per routed layer (task names).",
    )
