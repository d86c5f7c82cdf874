"""Results: what all of them share (`base`), and that of a segmentation; those of other uses lie in their rooms."""

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
