"""Run lengths as Label Studio's brush stores them: a bit stream of its own, which differs from COCO's.

The picture has four channels, so each pixel of the mask is four values of 0 or 255, stored as runs. The header has the
number of values (32 bits), their width (5), and the widths of four length fields (4 each). Each run then has a 1, the
index of its length field (2 bits), the length less 1, and the value (8 bits).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

CHANNELS, WORD, WIDTHS = 4, 8, (3, 4, 8, 16)


def brush(mask: npt.NDArray[np.bool_]) -> list[int]:
    """A mask, bool (H, W), as the bytes of a brush."""
    flat = mask.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    starts = np.concatenate([[0], edges])
    lengths = np.diff(np.concatenate([starts, [flat.size]])) * CHANNELS
    bits = [f"{flat.size * CHANNELS:032b}{WORD - 1:05b}", *(f"{width - 1:04b}" for width in WIDTHS)]
    for length, inside in zip(lengths.tolist(), flat[starts].tolist(), strict=True):
        while length:
            part = min(length, 1 << WIDTHS[-1])
            which = next(number for number, width in enumerate(WIDTHS) if part <= 1 << width)
            bits.append(f"1{which:02b}{part - 1:0{WIDTHS[which]}b}{255 * inside:08b}")
            length -= part
    stream = "".join(bits)
    stream += "0" * (8 - len(stream) % 8)  # at least one, as Label Studio has it
    packed: npt.NDArray[Any] = np.packbits(np.frombuffer(stream.encode(), np.uint8) - ord("0"))
    return packed.tolist()
