"""Words: label sets, prompt templates, and their embeddings. Importing this loads no torch."""

from densevl.vocabulary.labels import NOTHING, Background, LabelSet

__all__ = ["NOTHING", "Background", "LabelSet"]
