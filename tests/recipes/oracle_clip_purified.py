"""Float64 readings of the methods that repair outlier tokens: SC-CLIP and SFP.

Written from the papers' public code, sharing nothing with densevl; see `oracle_clip` for the conventions.
"""

from __future__ import annotations

import torch
from oracle_clip import Trunk, soft, unit
from torch import Tensor

Cells = list[tuple[int, int]]


def cells_of(indices: Tensor, grid: tuple[int, int], by_rows: bool) -> Cells:
    """Flat indices to (row, column). `by_rows`: divided by the number of rows, as in the code, which is right on
    squares only; a cell that falls off the grid is an error there (IndexError)."""
    divisor = grid[0] if by_rows else grid[1]
    cells = [divmod(int(i), divisor) for i in indices]
    if any(r >= grid[0] or c >= grid[1] for r, c in cells):
        raise IndexError(f"{grid[0]} x {grid[1]}: an outlier falls off the grid")
    return cells


def repair(x: Tensor, cells: Cells, grid: tuple[int, int], lonely: float) -> Tensor:
    """x (N, D) with each cell replaced by the mean of its up to eight neighbours that are not listed themselves.
    A cell with none is multiplied by `lonely`: 1 keeps it (SC-CLIP), 0 blanks it (SFP)."""
    plane, out = x.reshape(*grid, -1), x.reshape(*grid, -1).clone()
    for r, c in set(cells):
        around = [
            plane[i, j]
            for i in range(max(r - 1, 0), min(r + 2, grid[0]))
            for j in range(max(c - 1, 0), min(c + 2, grid[1]))
            if (i, j) not in cells
        ]
        out[r, c] = sum(around) / len(around) if around else lonely * plane[r, c]
    return out.reshape(x.shape)


def local_outliers(x: Tensor, neighbours: int = 30, share: float = 0.05) -> Tensor:
    """SC-CLIP's outlier indices of x (N, D): mean over the nearest of own k-distance / theirs (squared euclidean,
    the nearest of all taken to be the point itself) above the 1 - share quantile."""
    distances = ((x[:, None] - x[None]) ** 2).sum(-1)
    near = distances.topk(neighbours + 1, largest=False)
    reach = near.values[:, -1]
    score = (reach * (1 / reach[near.indices[:, 1:]]).mean(1)).float()  # the quantile is one of float32 scores: the
    # rank (1 - share) (N - 1) can be whole (N = 441), and the last bit then decides whether that score is above it
    return (score > torch.quantile(score, 1 - share)).nonzero()[:, 0]


def similarity(x: Tensor, floor: float | None = 0.4) -> Tensor:
    cosines = unit(x) @ unit(x).T
    return cosines if floor is None else torch.where(cosines < floor, 0, cosines)


def spread(weights: Tensor, x: Tensor) -> Tensor:
    return weights / (weights.sum(-1, keepdim=True) + 1e-6) @ x


def relative(cosines: Tensor) -> Tensor:
    """softmax of 3 (cosine - mean of the whole matrix) over the entries that are not negative."""
    centred = 3 * (cosines - cosines.mean())
    return torch.softmax(centred.masked_fill(centred < 0, -torch.inf), -1)


def sc_clip(
    t: Trunk,
    pixels: Tensor,
    early: int = 9,
    late: int = 4,
    several: tuple[int, int] = (4, 10),
    cls: float = 0.3,
    by_rows: bool = True,
) -> Tensor:
    """SuleBai/SC-CLIP, `visual.forward(return_all=True)`: patches only, (N, E). Layers count blocks run, from 1:
    `early` the similarity source (pre_adjust_idx + 1), `late` the last smoothing's (post_adjust_idx + 1), `several`
    first and last of the summed sources (multi_start_idx + 1, multi_end_idx)."""
    grid, last = t.grid(pixels), t.layers - 1
    xs, _ = t.run_all(pixels)
    cells = cells_of(local_outliers(xs[last][1:]), grid, by_rows)
    cosines = similarity(repair(xs[early][1:], cells, grid, 1), None)
    smooth = similarity(xs[late][1:])

    def attend(x: Tensor, token: Tensor) -> Tensor:
        _, k, v = t.qkv(t.ln1(x, last), last)
        return spread(smooth, t.out((soft(k, k) + relative(cosines)) / 2 @ v, last) + cls * token)

    clean = spread(torch.where(cosines < 0.4, 0, cosines), repair(xs[last][1:], cells, grid, 1))
    total = sum(xs[several[0] : several[1] + 1])
    return t.project(attend(clean, xs[last][0]) + attend(total[1:], total[0]))


def sfp(t: Trunk, pixels: Tensor, cls: float = 0.3, gain: float = 5.0, limit: int = 10, by_rows: bool = True) -> Tensor:
    """Kimsure/SFP, `visual.forward(return_each=True)` with the segmenter's default detector: patches only, (N, E).

    Outliers: patches whose head-mean attention from CLS in the last block but one, times cls * gain, exceeds their
    attention to themselves; the `limit` largest.
    """
    grid, last = t.grid(pixels), t.layers - 1
    xs, attentions = t.run_all(pixels)
    mean = attentions[last - 1].mean(0)
    from_cls = mean[0, 1:] * cls * gain
    order = from_cls.argsort(descending=True)
    chosen = [i for i in order if from_cls[i] > mean[1 + i, 1 + i]][:limit]
    cells = cells_of(torch.tensor(chosen), grid, by_rows)
    early = similarity(repair(xs[9][1:], cells, grid, 0))
    smooth = similarity(xs[4][1:])
    q, k, v = t.qkv(t.ln1(spread(early, repair(xs[last][1:], cells, grid, 0)), last), last)
    first = t.out((soft(k, k) + soft(q, q) + relative(early)) / 3 @ v, last) + cls * xs[last][0]
    total = sum(xs[4:11])
    second = t.out(relative(early) @ t.qkv(t.ln1(total[1:], last), last)[2], last) + cls * total[0]
    return t.project(spread(smooth, first) + spread(smooth, second))
