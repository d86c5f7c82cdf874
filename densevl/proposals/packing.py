"""Masks of eight pixels per byte: packing, unpacking, counting, boxes and comparison without unpacking all at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Packed = npt.NDArray[np.uint8]

_BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1).astype(np.uint8)
_LEADING = np.array([8, *(8 - int(byte).bit_length() for byte in range(1, 256))])
_TRAILING = np.array([8, *(int(byte & -byte).bit_length() - 1 for byte in range(1, 256))])


def row_bytes(size: tuple[int, int]) -> int:
    """Bytes that one packed mask of (H, W) takes."""
    return -(-size[0] * size[1] // 8)


def pack(mask: npt.NDArray[np.bool_]) -> Packed:
    """Pack bool (..., H, W), row by row, to uint8 (..., ceil(H*W / 8)); bits after the last pixel are 0."""
    return np.packbits(mask.reshape(*mask.shape[:-2], mask.shape[-2] * mask.shape[-1]), axis=-1)


def put(packed: Packed, first: int, bits: npt.NDArray[np.bool_]) -> None:
    """Write bits (n,) into one packed mask (bytes,) of zeros, from pixel `first` on; other bytes are not touched."""
    lead, start = first % 8, first // 8
    own = np.packbits(np.concatenate([np.zeros(lead, np.bool_), bits]) if lead else bits)
    packed[start : start + len(own)] = own


def unpack(packed: Packed, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Undo `pack`: uint8 (..., bytes) to bool (..., H, W)."""
    flat = np.unpackbits(packed, axis=-1, count=size[0] * size[1]).view(np.bool_)
    return flat.reshape(*packed.shape[:-1], *size)


def unpack_rows(packed: Packed, size: tuple[int, int]) -> tuple[int, npt.NDArray[np.bool_]]:
    """Unpack only the rows of one mask (bytes,) that hold pixels.

    Returns:
        The first such row, and bool (rows, W); (0, bool (0, W)) for an empty mask.
    """
    width = size[1]
    used = np.flatnonzero(packed)
    if not len(used):
        return 0, np.zeros((0, width), np.bool_)
    first = 8 * used[0] + _LEADING[packed[used[0]]]
    last = 8 * used[-1] + 7 - _TRAILING[packed[used[-1]]]
    top, bottom = int(first // width), int(last // width) + 1
    start = top * width // 8
    bits = np.unpackbits(packed[start : -(-bottom * width // 8)])
    shift = top * width - 8 * start
    return top, bits[shift : shift + (bottom - top) * width].view(np.bool_).reshape(bottom - top, width)


def popcount(packed: Packed) -> npt.NDArray[np.int64]:
    """Count the pixels of packed masks: uint8 (..., bytes) to int64 (...)."""
    if hasattr(np, "bitwise_count"):  # numpy 2
        aligned = packed.shape[-1] // 8 * 8
        words = np.ascontiguousarray(packed[..., :aligned]).view(np.uint64)
        counted = np.bitwise_count(words).sum(axis=-1, dtype=np.int64)
        return np.asarray(counted + _BITS_OF_BYTE[packed[..., aligned:]].sum(axis=-1, dtype=np.int64))
    return np.asarray(_BITS_OF_BYTE[packed].sum(axis=-1, dtype=np.int64))


def tight_boxes(packed: Packed, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """The smallest boxes around packed masks, x0 y0 x1 y1, x1 and y1 exclusive: float32 (M, 4), 0 for empty ones."""
    boxes = np.zeros((len(packed), 4), np.float32)
    for index, mask in enumerate(packed):
        top, rows = unpack_rows(mask, size)
        if len(rows):
            columns = np.flatnonzero(rows.any(axis=0))
            boxes[index] = columns[0], top, columns[-1] + 1, top + len(rows)
    return boxes


def rle_counts(counts: Any) -> npt.NDArray[np.int64]:
    """Run lengths of COCO's list or short string, int64 (N,); alternately outside and inside, starting outside.

    In the string a number is a sequence of characters from 48 on with five bits each, lowest first. The sixth bit says
    that more follow, and the highest bit of the last is the sign. From the fourth number on it is the difference to the
    number two places before.

    Raises:
        ValueError: the string is not COCO's, or the list holds something other than integers.
    """
    if not isinstance(counts, str | bytes):
        array = np.asarray(counts)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise ValueError("counts are neither a string nor a list of integers")
        return array.astype(np.int64)
    data = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    if not len(data):
        return np.zeros(0, np.int64)
    if data.min() < 0 or data.max() > 63 or data[-1] & 0x20:
        raise ValueError("counts are not a string of COCO's, or a cut one")
    last = data & 0x20 == 0
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    lengths = np.diff(starts, append=len(data))
    if lengths.max() > 8:
        raise ValueError("counts hold a number of more than 40 bits")
    place = np.arange(len(data)) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((data & 0x1F) << (5 * place), starts)
    numbers -= np.where(data[last] & 0x10, np.int64(1) << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
