"""Rules from the number stored in a label file to a class index: shifts, gaps, and ignored numbers.

A rule is a table over all 16-bit numbers. Numbers that no benchmark stores are ILLEGAL, so a damaged or foreign label
file is an error and never silently a class. Shape letters: H/W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.int32]

IGNORE = -1
"""Pixels that no measure counts."""
ILLEGAL = -2
SIZE = 2**16


def identity(classes: int, ignore: Iterable[int] = (255,)) -> Table:
    """The stored number is the class index."""
    return mapped({value: value for value in range(classes)}, ignore)


def shifted(classes: int, ignore: Iterable[int] = (0, 255)) -> Table:
    """Numbers start at 1; 0 is not scored (mmsegmentation's reduce_zero_label)."""
    return mapped({value + 1: value for value in range(classes)}, ignore)


def mapped(pairs: Mapping[int, int], ignore: Iterable[int] = (255,)) -> Table:
    """Each stored number maps to its class index."""
    table = np.full(SIZE, ILLEGAL, np.int32)
    table[list(ignore)] = IGNORE
    table[list(pairs)] = list(pairs.values())
    return table


def mmseg_default255(classes: int) -> Table:
    """The rule of evaluations that leave the ignore number at 255 although labels use 65535.

    Class 255 is not scored, and unlabelled pixels count as false positives of the predicted class: they have the index
    `classes`, outside all classes. Use it only for tables that compare with such work.
    """
    table = identity(classes, ignore=())
    table[255], table[65535] = IGNORE, classes
    return table


_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_RAW = mapped(
    {raw: index for index, raw in enumerate(_CITYSCAPES_IDS)}, {*range(34), 255} - {*_CITYSCAPES_IDS}
)
"""labelIds of Cityscapes, 34 of them, to the 19 that are scored."""

_COCO_GAPS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91})
_COCO_IDS = tuple(number for number in range(1, 183) if number not in _COCO_GAPS)
"""COCO's ids of the 80 things and 91 stuff classes; the pixel maps store them minus one."""
COCO_STUFF_RAW = mapped({number - 1: index for index, number in enumerate(_COCO_IDS)})
COCO_OBJECT_RAW = mapped(
    {number - 1: (index + 1 if index < 80 else 0) for index, number in enumerate(_COCO_IDS)} | {255: 0}, ignore=()
)
"""Things from 1; stuff and unlabelled pixels are background, as in the common converter behind published figures."""
COCO_OBJECT_KEEP_IGNORE = mapped(
    {number - 1: (index + 1 if index < 80 else 0) for index, number in enumerate(_COCO_IDS)}
)
