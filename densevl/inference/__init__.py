"""Windows over an image, the papers' sliding-window protocol, and decoding to labels."""

from densevl.inference.decoding import LabelMap, class_scores, decode
from densevl.inference.sliding import slide, window_scores
from densevl.inference.windows import WindowGrid

__all__ = ["LabelMap", "WindowGrid", "class_scores", "decode", "slide", "window_scores"]
