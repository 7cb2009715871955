"""The typed configuration mechanism: strict sections, dotted overrides, clear errors."""

from distmoe.config.overrides import apply_overrides, merged
from distmoe.config.section import Section, build, describe, leaves
from distmoe.config.yaml_values import read_yaml

__all__ = ["Section", "apply_overrides", "build", "describe", "leaves", "merged", "read_yaml"]
