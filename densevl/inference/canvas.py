"""Average tokens of windows on the patch grid of the whole image, as the windows come.

Only sums are stored, so memory does not grow with the overlap. Shape letters: B batch, N tokens, C channels.
"""

from __future__ import annotations

import torch

from densevl.inference.windows import WindowGrid


class Canvas:
    """The mean of window tokens at each place of the image's grid, and of leading tokens over all windows.

    Attributes:
        windows: as placed, with the tokens they gave. grid: (Y, X) of the whole image.
    """

    def __init__(self, windows: WindowGrid, batch: int, prefix: int = 0) -> None:
        """`windows` have blend "patch"; `batch` images, `prefix` leading tokens per window."""
        self.windows, self._batch, self._prefix = windows, batch, prefix
        self._corners, self._added = windows.corners, 0
        self._total = torch.empty(0)

    @property
    def grid(self) -> tuple[int, int]:
        whole = self.windows.whole()
        return whole.rows.tokens, whole.cols.tokens

    def add(self, tokens_BNC: torch.Tensor, size: tuple[int, int] | None = None) -> None:
        """Add the next windows' tokens (n*B, prefix + h*w, C), in the order of `WindowGrid.batches`.

        Args:
            size: (h, w) if it is not the windows' own; the same for all.
        """
        size = size or (self.windows.rows.tokens, self.windows.cols.tokens)
        self.windows = self.windows.with_tokens(*size)
        if not self._added:
            places = self._prefix + self.grid[0] * self.grid[1]
            self._total = tokens_BNC.new_zeros(self._batch, places, tokens_BNC.shape[2])
        leading, places_BYXC = self._parts()
        for part in tokens_BNC.split(self._batch):
            leading += part[:, : self._prefix]
            rows, columns = self._place(self._added)
            places_BYXC[:, rows, columns] += part[:, self._prefix :].unflatten(1, size)
            self._added += 1

    def mean(self) -> torch.Tensor:
        """Return the mean (B, prefix + Y*X, C) after all windows were added. The sums are divided in place."""
        leading, places_BYXC = self._parts()
        count = leading.new_zeros(*self.grid, 1)
        for window in range(self._added):
            count[self._place(window)] += 1
        leading /= self._added
        places_BYXC /= count
        return self._total

    def _parts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return views of the sums: leading tokens (B, prefix, C), and places (B, Y, X, C)."""
        return self._total[:, : self._prefix], self._total[:, self._prefix :].unflatten(1, self.grid)

    def _place(self, window: int) -> tuple[slice, slice]:
        top, left = self._corners[window]
        rows, cols = self.windows.rows, self.windows.cols
        y, x = top // (rows.crop // rows.tokens), left // (cols.crop // cols.tokens)
        return slice(y, y + rows.tokens), slice(x, x + cols.tokens)
