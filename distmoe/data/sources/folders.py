"""Single task folders besides the tasks of another source: how a run gets one task more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from distmoe.data.example import TaskExample
from distmoe.data.sources.base import Split, TaskSource
from distmoe.data.sources.local import LocalSource
from distmoe.errors import ConfigError
from distmoe.tasks import TaskSpec


class FolderSource(TaskSource):
    """The tasks of a source, then those of single folders.

    Args:
        source: The other tasks.
        folders: Task name -> its folder, which may be called otherwise.

    Raises:
        ConfigError: If a name is one of the source's own tasks, or a folder does not exist.
    """

    def __init__(self, source: TaskSource, folders: Mapping[str, str]) -> None:
        twice = sorted(set(folders) & set(source.names))
        if twice:
            raise ConfigError(
                "tasks.folders names tasks that the source has already",
                got=", ".join(twice),
                expected="other names",
                remedy="rename them in tasks.folders, or remove them there",
            )
        for name, folder in folders.items():
            if not Path(folder).is_dir():
                raise ConfigError(
                    f"tasks.folders.{name} is not a folder",
                    got=folder,
                    expected="a folder with task.json and a file per split",
                    remedy=f"correct tasks.folders.{name}, or remove it",
                )
        self._source = source
        self._folders = {name: Path(folder) for name, folder in folders.items()}
        self._own = {name: LocalSource(str(folder.parent)) for name, folder in self._folders.items()}

    @property
    def names(self) -> tuple[str, ...]:
        return (*self._source.names, *self._folders)

    def spec(self, name: str) -> TaskSpec:
        source, own_name = self._find(name)
        return replace(source.spec(own_name), name=name)

    def splits(self, name: str) -> tuple[Split, ...]:
        source, own_name = self._find(name)
        return source.splits(own_name)

    def examples(self, name: str, split: Split) -> list[TaskExample]:
        source, own_name = self._find(name)
        return source.examples(own_name, split)

    def filler_words(self, name: str) -> tuple[str, ...] | None:
        source, own_name = self._find(name)
        return source.filler_words(own_name)

    def indexed_sets(self, name: str, split: Split) -> Mapping[str, float] | None:
        source, own_name = self._find(name)
        return source.indexed_sets(own_name, split)

    def fingerprint(self, name: str, split: Split) -> str:
        source, own_name = self._find(name)
        return source.fingerprint(own_name, split)

    @property
    def vocabulary(self) -> tuple[str, ...] | None:
        return self._source.vocabulary

    def _find(self, name: str) -> tuple[TaskSource, str]:
        if name in self._own:
            return self._own[name], self._folders[name].name
        return self._source, name
