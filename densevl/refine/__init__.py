"""Sharpening of scores and label maps with the photo, another model's features, or given regions."""

from densevl.refine.clusters import dbscan, segment_by_affinity
from densevl.refine.morphology import grey_closing, majority_filter
from densevl.refine.pamr import Pamr
from densevl.refine.pooling import pool_in_segments
from densevl.refine.propagation import PatchGraph, PixelPropagation, propagate_patches
from densevl.refine.vote import majority_vote

__all__ = [
    "Pamr",
    "PixelPropagation",
    "PatchGraph",
    "propagate_patches",
    "pool_in_segments",
    "majority_vote",
    "segment_by_affinity",
    "dbscan",
    "majority_filter",
    "grey_closing",
]
