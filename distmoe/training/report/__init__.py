"""The report of a run: a pure function of its folder."""

from distmoe.training.report.draw import draw_report
from distmoe.training.report.history import RunHistory, read_history

__all__ = ["RunHistory", "draw_report", "read_history"]
