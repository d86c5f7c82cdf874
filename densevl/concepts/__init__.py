"""Models that judge each text by itself: whether it is in the photo, and where. SAM 3 and CLIPSeg, by transformers.

A photo is encoded once, and so is each text; texts do not compete, and there is no softmax over them.
"""

from densevl.concepts.base import ConceptModel, Judged
from densevl.concepts.load import concept_kind, load_concepts

__all__ = ["ConceptModel", "Judged", "concept_kind", "load_concepts"]
