"""Shipped run configurations and the way from a recipe's name to a checked ``RunConfig``."""

from distmoe.recipes.loader import available, load_recipe, resolve

__all__ = ["available", "load_recipe", "resolve"]
