"""Where tasks come from: the embedded suite, local folders, or the Hugging Face hub."""

from distmoe.data.sources.base import SPLITS, Split, TaskSource
from distmoe.data.sources.hub import HubSource
from distmoe.data.sources.load import load_tasks
from distmoe.data.sources.local import LocalSource
from distmoe.data.sources.suite import SuiteSource

__all__ = ["SPLITS", "HubSource", "LocalSource", "Split", "SuiteSource", "TaskSource", "load_tasks"]
