"""Sizes and resizing as in the papers' code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import ImageError
from densevl.images.pixels import UInt8Array

Rows = Callable[[int, int], UInt8Array]
"""Takes the first and last (exclusive) row, and returns these rows of an image, uint8 (rows, W, C)."""


def keep_ratio_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Return the size of an image fitted into a box with its aspect ratio kept (mmcv's rule).

    Args:
        height, width: size of the image in pixels.
        short_side, long_side: limits of its shorter and longer side, in pixels. The largest scale that keeps both is
            used, so the image may grow.

    Returns:
        (height, width), rounded half up, each at least 1.

    Raises:
        ImageError: If a number is below 1.
    """
    if min(height, width, short_side, long_side) < 1:
        raise ImageError(f"cannot fit {height}x{width} into {short_side}x{long_side}: every side must be at least 1")
    scale = min(long_side / max(height, width), short_side / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize(rgb: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """Resize by bilinear interpolation between the four nearest pixels, without antialiasing.

    This is what the papers' code does (mmcv, OpenCV's INTER_LINEAR, torch with align_corners=False). Results agree with
    theirs within one grey level. Shrinking skips pixels, on purpose: that is the protocol.

    Args:
        rgb: uint8 (H, W, C), 0-255.
        size: the new (height, width), each at least 1.

    Returns:
        uint8 (height, width, C), rounded half up, C-contiguous.

    Raises:
        ImageError: If the array is not uint8 (H, W, C) or is empty, or the size is below 1.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or 0 in rgb.shape:
        raise ImageError(f"cannot resize {rgb.dtype} {rgb.shape}: give uint8 (H, W, C), at least 1x1")
    height, width = size
    if min(size) < 1:
        raise ImageError(f"cannot resize to {height}x{width}: both sides must be at least 1")
    return resized_rows(lambda start, stop: rgb[start:stop], (rgb.shape[0], rgb.shape[1]), size)(0, height)


def resized_rows(read: Rows, source: tuple[int, int], size: tuple[int, int]) -> Rows:
    """Return a function that gives rows of an image resized as by `resize`, from rows of the image.

    Args:
        read: gives rows of the image, uint8 (rows, W, C). source: its (height, width). size: the new (height, width).
    """
    top, bottom, down = _taps(source[0], size[0])
    left, right, across = _taps(source[1], size[1])
    down, across = down[:, None, None], across[:, None]

    def rows(first: int, last: int) -> UInt8Array:
        lowest = int(top[first])
        rgb = read(lowest, int(bottom[last - 1]) + 1)
        out = np.empty((last - first, size[1], rgb.shape[2]), np.uint8)
        step = max(1, 2**18 // out[0].size)  # bands that fit in the processor's cache
        for start in range(first, last, step):
            band = slice(start, min(start + step, last))
            lines, places = np.unique(np.concatenate([top[band], bottom[band]]), return_inverse=True)
            wide = rgb[lines - lowest]
            wide = _lerp(wide.take(left, axis=1), wide.take(right, axis=1), across)
            above, below = wide[places[: len(places) // 2]], wide[places[len(places) // 2 :]]
            out[band.start - first : band.stop - first] = _lerp(above, below, down[band]) + np.float32(0.5)
        return out

    return rows


class Band:
    """Rows of an image that is read once from top to bottom. Rows that overlap the previous request are kept."""

    def __init__(self, read: Rows) -> None:
        self._read, self._first = read, 0
        self._rows: UInt8Array = np.empty((0, 0, 3), np.uint8)

    def __call__(self, start: int, stop: int) -> UInt8Array:
        """Return rows from `start` to `stop`. Neither may decrease."""
        end = self._first + len(self._rows)
        if end <= start:
            self._rows = self._read(start, stop)
        elif end < stop:
            self._rows = np.concatenate([self._rows[start - self._first :], self._read(end, stop)])
        else:
            return self._rows[start - self._first : stop - self._first]
        self._first = start
        return self._rows


def _taps(old: int, new: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Return for each new position its two old neighbours and the weight of the second, each (new,)."""
    centre = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    first = centre.astype(np.intp)
    return first, np.minimum(first + 1, old - 1), (centre - first).astype(np.float32)


def _lerp(first: npt.NDArray[Any], second: npt.NDArray[Any], share: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    mixed = second.astype(np.float32)
    mixed -= first
    mixed *= share
    mixed += first
    return mixed
