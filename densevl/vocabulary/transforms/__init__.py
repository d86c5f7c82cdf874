"""The last step on the embeddings of words: one interface, one file per kind. Importing this loads no torch."""

from densevl.vocabulary.transforms.base import TextTransform

__all__ = ["TextTransform"]
