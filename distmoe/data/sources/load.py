"""From configuration to a checked task set and the source that holds its examples."""

from __future__ import annotations

from distmoe.data.config import DataConfig, TasksConfig
from distmoe.data.sources.base import TaskSource
from distmoe.data.sources.folders import FolderSource
from distmoe.data.sources.hub import HubSource
from distmoe.data.sources.indexed import IndexedSource
from distmoe.data.sources.local import LocalSource
from distmoe.data.sources.suite import SuiteSource
from distmoe.data.sources.text_suite import TextSuiteSource
from distmoe.errors import DataError
from distmoe.tasks import TaskSet


def load_tasks(config: TasksConfig, data: DataConfig) -> tuple[TaskSet, TaskSource]:
    """Returns the tasks of a run in the order of ``tasks.names`` (null: all, in the source's order) and their source.

    Raises:
        DataError: If a task does not exist, is named twice, or is described wrongly.
        ConfigError: If the source cannot be opened.
    """
    source = _open(config, data)
    if config.folders:
        source = FolderSource(source, config.folders)
    names = source.names if config.names is None else tuple(config.names)
    if not names:
        raise DataError(
            "the source offers no task",
            got=f"tasks.source={config.source}, data.root={data.root}",
            expected="one task or more",
            remedy="add a task folder with task.json, or describe tasks under tasks.hub",
        )
    return TaskSet(tuple(source.spec(name) for name in names)), source


def _open(config: TasksConfig, data: DataConfig) -> TaskSource:
    if config.source == "local":
        return LocalSource(data.root)
    if config.source == "hub":
        return HubSource(config.hub)
    if config.source == "indexed":
        return IndexedSource(config.indexed, root=data.root)
    if config.source == "text_suite":
        return TextSuiteSource(config.text_suite)
    return SuiteSource(config.suite)
