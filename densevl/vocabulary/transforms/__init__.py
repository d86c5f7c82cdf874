"""What is done last to the embeddings of words: one contract, a file a kind. Importing this loads no torch."""

from densevl.vocabulary.transforms.base import TextTransform

__all__ = ["TextTransform"]
