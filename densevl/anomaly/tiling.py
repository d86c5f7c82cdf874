"""Large images in tiles: each is run alone, and the results are joined on one grid.

A tower knows patches of the size it was trained on. Small damage on a large image is visible only if the image is fed
large, and then tiles of the trained size cost less and keep the tower near its training. Shape letters: B images, T
tiles, H/W pixels, y/x cells of a tile, Y/X cells of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from densevl.inference.windows import WindowGrid

TILES = 16  # run through the tower at a time


def look_by_tiles(
    look: Callable[[torch.Tensor], Any], pixels: torch.Tensor, tile: int, patch: int, overlap: int
) -> Any:
    """Run `look` on pixels (B, 3, H, W), sides in whole patches, cut into square tiles.

    Args:
        look: pixels to a `scorer.Looked`. tile: side in pixels, whole patches. overlap: smallest number of patches that
            neighbours share; features and logits there are averaged. It must be at least one less than the largest
            window.

    Returns:
        A `Looked` of the images. An image's own logit is the largest of its tiles'.
    """
    batch, _, height, width = pixels.shape
    grid = WindowGrid.place(height, width, tile, max(patch, tile - overlap * patch), patch, "patch")
    seen = [look(part) for part in grid.batches(pixels, TILES)]
    corners = [(top // patch, left // patch) for top, left in grid.corners]
    cells = height // patch, width // patch
    inner = grid.rows.tokens, grid.cols.tokens

    def laid(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return stitch(torch.cat(list(parts)).unflatten(0, (len(corners), batch)), corners, cells, inner)

    first = seen[0]
    return replace(
        first,
        text=None if first.text is None else laid([one.text for one in seen]),
        image=None if first.image is None else torch.cat([one.image for one in seen]).view(-1, batch).amax(dim=0),
        levels={level: laid([one.levels[level] for one in seen]) for level in first.levels},
    )


def stitch(
    values_TByx: torch.Tensor, corners: Sequence[tuple[int, int]], cells: tuple[int, int], inner: tuple[int, int]
) -> torch.Tensor:
    """Join maps of tiles (T, B, y, x, ...) into one map (B, Y, X, ...), averaged where they overlap.

    Args:
        corners: row and column of the first patch of each tile. cells, inner: patches of the image and of a tile. Maps
            of windows, and the result, have fewer cells than patches.
    """
    lost = inner[0] - values_TByx.shape[2], inner[1] - values_TByx.shape[3]
    size = cells[0] - lost[0], cells[1] - lost[1]
    trailing = (1,) * (values_TByx.ndim - 4)
    total = values_TByx.new_zeros(values_TByx.shape[1], *size, *values_TByx.shape[4:])
    count = values_TByx.new_zeros(1, *size, *trailing)
    for (top, left), part in zip(corners, values_TByx, strict=True):
        place = (slice(None), slice(top, top + part.shape[1]), slice(left, left + part.shape[2]))
        total[place] += part
        count[place] += 1
    return total / count
