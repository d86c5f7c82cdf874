"""Models that judge each text for itself: is it in the photo, and where; SAM 3 and CLIPSeg, by transformers.

A photo is seen once and a text encoded once; texts do not compete, and no softmax runs over them.
"""

from densevl.concepts.base import ConceptModel, Judged
from densevl.concepts.load import concept_kind, load_concepts

__all__ = ["ConceptModel", "Judged", "concept_kind", "load_concepts"]
