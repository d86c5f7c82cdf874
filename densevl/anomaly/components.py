"""Connected regions of a mask, by runs of its rows; neighbours touch at sides or corners."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def label_regions(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], int]:
    """Number the 8-connected regions of a mask (H, W): int64 (H, W), 0 outside and 1..n inside, and n."""
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    parents = list(range(len(rows)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    above = 0
    row_list, start_list, end_list = rows.tolist(), starts.tolist(), ends.tolist()
    for run, (row, start, end) in enumerate(zip(row_list, start_list, end_list, strict=True)):
        # Runs above that end left of this one's start can touch no later run of this row either.
        while above < run and (row_list[above] < row - 1 or (row_list[above] == row - 1 and end_list[above] < start)):
            above += 1
        other = above
        while other < run and row_list[other] == row - 1 and start_list[other] <= end:
            first, second = sorted((root(other), root(run)))
            parents[second] = first
            other += 1
    roots = np.array([root(run) for run in range(len(rows))], np.int64)
    kept, number = np.unique(roots, return_inverse=True)
    labels = np.zeros(height * width + 1, np.int64)
    if len(rows):
        # Each run adds its number where it starts and takes it off where it ends.
        np.add.at(labels, rows * width + starts, number + 1)
        np.subtract.at(labels, rows * width + ends, number + 1)
    return labels.cumsum()[:-1].reshape(height, width), len(kept)
