"""Checks of label maps and segment maps from callers: convert them to one form, or say in one line what is wrong."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import ProposalError
from densevl.images import read_labels
from densevl.proposals.checks import VOID, as_array, soft_cut


def integer_map(given: Any, size: tuple[int, ...], what: str = "a label map") -> npt.NDArray[np.int64]:
    """A map of numbers: int64 (H, W).

    Args:
        given: integers (H, W), an array, a tensor, or a PIL image with a palette or in grey; floats if all are whole;
            or the path of a PNG or TIFF, as `read_labels` takes it. size: (H, W) of the image. what: for messages.

    Raises:
        ProposalError: it is a colour picture, scores, or has another size.
        ImageError: the file cannot be read.
    """
    if isinstance(given, (str, bytes, os.PathLike)):
        given = read_labels(given)
    if getattr(given, "mode", "P") in ("RGB", "RGBA", "CMYK", "YCbCr", "LA", "PA"):
        raise ProposalError(f"{what} is a picture of mode {given.mode}: {_COLOUR}")
    array = as_array(given, what, "of integers (H, W)")
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim == 3 and array.shape[2] in (3, 4) and array.shape[:2] == tuple(size):
        raise ProposalError(f"{what} is {array.shape}, a colour picture: {_COLOUR}")
    if array.ndim == 3 and array.shape[1:] == tuple(size):
        raise ProposalError(f"{what} is {array.shape}, one map per class: give scores.argmax(0), integers (H, W)")
    if array.ndim != 2:
        raise ProposalError(f"{what} is {array.dtype} {array.shape}: integers (H, W)")
    if array.shape != tuple(size):
        turned = ": it looks transposed, give its .T" if array.shape == tuple(size)[::-1] else ""
        raise ProposalError(f"{what} is {array.shape}, the image {tuple(size)}{turned or ': they must be of one size'}")
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array % 1 == 0).all()):
        cut = soft_cut(array)
        raise ProposalError(
            f"{what} holds {array.min():g} to {array.max():g}, not whole numbers: integers (H, W); resize maps with "
            "the nearest value" + f", and of a soft mask give mask {cut}" * (cut is not None)
        )
    if array.dtype == np.uint64 and array.max(initial=0) > np.iinfo(np.int64).max:
        raise ProposalError(f"{what} holds {array.max()}: numbers fit 63 bits")
    return array.astype(np.int64)


def segment_map(given: Any, size: tuple[int, ...] | None = None) -> npt.NDArray[np.int64]:
    """A map of segments: int64 (H, W), 0 for no segment; a map of only 0 and 255 has one segment.

    Args:
        given: as `integer_map` takes it; 0 and below is no segment. size: (H, W) of the image; None takes the map's.

    Raises:
        ProposalError: it is not such a map, or a soft mask or grey picture, or has 255 beside lower numbers, which may
            mean unknown.
    """
    what = "a segment map"
    if size is None:
        given = read_labels(given) if isinstance(given, (str, bytes, os.PathLike)) else given
        shape = as_array(given, what, "of integers (H, W)").shape
        size = shape[:2] if len(shape) == 3 and shape[2] == 1 else shape[-2:]
    found = np.maximum(integer_map(given, size, what), 0)
    numbers = np.unique(found)
    if cut := soft_cut(found, numbers):
        raise ProposalError(
            f"{what} holds {numbers[0]} to {numbers[-1]}, like a soft mask or a grey picture: give map {cut} "
            "for one region, or masks (M, H, W)"
        )
    numbers = numbers[numbers > 0]
    if len(numbers) > 1 and numbers[-1] in (VOID, 65535) and numbers[-2] < numbers[-1] - 1:
        void = numbers[-1]
        raise ProposalError(
            f"{what} holds {void} beside {numbers[-2]}: give numpy.where(map == {void}, 0, map) if it is not known "
            f"there, numpy.where(map == {void}, {numbers[-2] + 1}, map) if it is a region, map > {void // 2} of a soft "
            "mask"
        )
    return found


def class_map(given: Any, names: Sequence[str], size: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """A map of class numbers, of which it may show some only: int64 (H, W), -1 for unknown.

    Args:
        given: as `integer_map` takes it; below 0, or 255 if there are fewer than 256 names, means unknown.
        names: of the classes, from 0. size: (H, W) of the image.

    Raises:
        ProposalError: it is not such a map, has a number without a name or no class anywhere, or only 0 and 255, which
            may be two classes or one.
    """
    found = integer_map(given, size)
    if len(names) > 1 and np.array_equal(np.unique(found), [0, VOID]):
        raise ProposalError(
            "a label map holds only 0 and 255: give (map == 255).astype(int) if 255 is a class, "
            "numpy.where(map == 255, -1, 0) if it is not known there"
        )
    if len(names) <= VOID:
        found[found == VOID] = -1
    found = np.maximum(found, -1)
    if found.max(initial=-1) >= len(names):
        known = found[found >= 0]
        from_one = found.max() == len(names) and known.min() >= 1
        raise ProposalError(
            f"a label map holds {found.max()}: {len(names)} names allow 0 to {len(names) - 1}, or below 0"
            + (
                "; if it counts from 1, give map - 1"
                if from_one
                else "; numpy.where(map == n, -1, map) if n is not a class"
            )
        )
    if found.max(initial=-1) < 0:
        raise ProposalError("a label map holds no class: below 0 and 255 are where it is not known; leave it out")
    return found


_COLOUR = "one class number a pixel is needed; save it as a palette or grey PNG, or look its colours up"
