"""Results: their common base (`base`) and that of a segmentation. Other results are in the packages of their tasks."""

from densevl.results.base import RESULT, UNLABELLED, Result, chosen, from_json, photo_of, require_facts, to_json
from densevl.results.segmentation import SegmentationResult

__all__ = [
    "RESULT",
    "UNLABELLED",
    "Result",
    "SegmentationResult",
    "chosen",
    "from_json",
    "photo_of",
    "require_facts",
    "to_json",
]
