"""Scores made sharper with the help of the photo."""

from densevl.refine.pamr import Pamr

__all__ = ["Pamr"]
