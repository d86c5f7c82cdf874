"""Few-shot heads: a few labelled features, of images, regions or places, beside the words for the same classes.

All have one contract (`Head`): `fit(features, labels, text)`, `logits(features)`, some `partial_fit`. `build` makes one
by name.
"""

from densevl.fewshot.head import Head
from densevl.fewshot.heads.catalogue import HEADS, build, restore

__all__ = ["HEADS", "Head", "build", "restore"]
