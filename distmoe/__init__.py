"""distmoe: train one sparse Transformer on many tasks.

The one idea is :class:`distmoe.tasks.TaskGrouping`: who shares what with whom. Gates, placement,
process groups, gradient reduction, checkpoints and export all read that value.
"""

__version__ = "0.1.0"
