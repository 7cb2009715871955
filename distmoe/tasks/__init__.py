"""Tasks, task sets and the grouping of tasks: who shares what with whom."""

from distmoe.tasks.grouping import TaskGrouping
from distmoe.tasks.spec import MetricName, TaskKind, TaskSpec
from distmoe.tasks.task_set import TaskSet

__all__ = ["MetricName", "TaskGrouping", "TaskKind", "TaskSet", "TaskSpec"]
