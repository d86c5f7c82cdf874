"""Methods as data: the `Recipe` type, the catalogue of papers, and the engine that runs one on a last block."""

from densevl.recipes.catalogue import get, names
from densevl.recipes.recipe import Gaussian, Recipe, Source

__all__ = ["Gaussian", "Recipe", "Source", "get", "names"]
