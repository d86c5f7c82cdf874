"""Words: label sets, prompt templates, and their embeddings. Importing this loads no torch."""

from densevl.vocabulary.background import NOTHING, Background
from densevl.vocabulary.descriptors import Descriptors
from densevl.vocabulary.labels import LabelSet
from densevl.vocabulary.options import TextOptions
from densevl.vocabulary.prompts import Example, Vector

__all__ = ["NOTHING", "Background", "Descriptors", "Example", "LabelSet", "TextOptions", "Vector"]
