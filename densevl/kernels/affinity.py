"""Values spread over like tokens: `affinity_apply`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from densevl.kernels.common import empty, need, runs, types, wide
from densevl.kernels.dispatch import runs_kernel, wants_gradients

AFFINITY_ROWS = 384  # rows of an N x N affinity held at once
COSINES_HELD = 2304**2  # entries of an N x N affinity that may be held whole


def affinity_apply(
    x: torch.Tensor,
    v: torch.Tensor,
    *,
    gamma: float = 1.0,
    beta: float | None = None,
    floor: float | None = None,
    linear: bool = False,
    regions: torch.Tensor | None = None,
    blank: int | None = None,
    mean: torch.Tensor | None = None,
) -> torch.Tensor:
    """Spread values over like tokens: an affinity of unit rows applied to values, a few rows of it at a time.

    Threshold after ProxyCLIP (ECCV 2024), floor after SFP (ICCV 2025), regions after CorrCLIP (ICCV 2025).

    Args:
        x: (B, N, P) unit rows; v: (B, N, E).
        gamma, beta: weights are softmax(gamma * (G - beta * mean G)) with what is under zero left out; beta None
            leaves nothing out. G = x x^T, the mean is an image's own unless `mean` (B,) is given.
        floor: cosines under it count as 0, in the mean too.
        linear: weights are G itself, floored, divided by their row sum; gamma and beta are not used.
        regions: (B, N) integers: a token looks only at tokens of its own region; these go to torch.
        blank: the region of tokens that belong to none: a pair with one of them counts if its cosine is above the mean.

    Returns:
        (B, N, E). A token always looks at itself, so that no row is empty: where the papers' code is finite this
        changes nothing, and where it divides by nothing the token keeps its own value.

    Raises:
        KernelError: shapes that do not fit.
    """
    need(x.ndim == 3, "x", x, "(B, N, P)")
    need(v.ndim == 3 and v.shape[:2] == x.shape[:2], "v", v, "({}, {}, E)", *x.shape[:2])
    if regions is not None:
        need(regions.shape == x.shape[:2], "regions", regions, "({}, {})", *x.shape[:2])
    if mean is not None:
        need(mean.numel() == x.shape[0], "mean", mean, "one value per image, {}", x.shape[0])
    beta = None if linear else beta

    if runs_kernel("affinity_apply", (x, v, mean), lambda: _cannot(x, v, regions, gamma, linear)):
        from densevl.kernels.triton.affinity import affinity_apply as kernel

        if mean is None and beta is not None:
            mean = affinity_mean(x.float(), floor)
        cut = None if beta is None or mean is None else beta * mean.float().flatten()
        return kernel(x, v, cut, gamma, floor, linear)

    kind = v.dtype
    x, v, mean = wide(x), wide(v), wide(mean)
    if mean is None and (beta is not None or blank is not None):
        mean = affinity_mean(x, floor)
    spread = v.new_empty(v.shape)
    for rows, weights in _cosine_rows(x):
        out = None
        if regions is not None:
            out = _elsewhere(weights, regions[:, rows, None], regions[:, None, :], blank, mean)
        if floor is not None:
            low = weights < floor
            weights.masked_fill_(low, 0)
            if linear:
                out = low if out is None else out | low
        if beta is not None and mean is not None:
            under = weights < (beta * mean).view(-1, 1, 1)
            out = under if out is None else out | under
        if out is not None:
            out = _seen_by_itself(out, rows)
        if linear:
            weights = weights if out is None else weights.masked_fill_(out, 0)
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-6)
        else:
            weights = weights.mul_(gamma)
            weights = (weights if out is None else weights.masked_fill_(out, -torch.inf)).softmax(dim=-1)
        spread[:, rows] = weights @ v
    return spread.to(kind)


def _cannot(x: torch.Tensor, v: torch.Tensor, regions: torch.Tensor | None, gamma: float, linear: bool) -> str | None:
    if regions is not None:
        return "regions are for torch"
    if not linear and not gamma > 0:
        return f"gamma {gamma} is not above 0"
    return types(x, v) or empty(x, v)


def affinity_mean(x: torch.Tensor, floor: float | None = None) -> torch.Tensor:
    """Mean of all N^2 cosines of unit rows x (B, N, P), an image at a time: (B,).

    Without a floor it is ||mean_i x_i||^2, no N x N pass; with one, cosines under it count as 0.
    """
    if floor is None:
        return x.mean(dim=1).square().sum(dim=-1)
    total = x.new_zeros(x.shape[0])
    for rows in runs(x.shape[1], AFFINITY_ROWS):
        cosines = x[:, rows] @ x.mT
        total += torch.where(cosines >= floor, cosines, 0).sum(dim=(1, 2))
    return total / x.shape[1] ** 2


def _cosine_rows(x: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """x x^T some rows at a time, each (B, R, N) free to be changed.

    The product is symmetric: where it may be held, half of it is computed and the other half copied. Not in a graph and
    not for gradients: there it costs more to write a tensor in parts.
    """
    parts = runs(x.shape[1], AFFINITY_ROWS)
    in_parts = len(parts) == 1 or torch.compiler.is_compiling() or wants_gradients((x,))
    if in_parts or x.shape[0] * x.shape[1] ** 2 > COSINES_HELD:
        for rows in parts:
            yield rows, x[:, rows] @ x.mT
        return
    cosines = x.new_empty(x.shape[0], x.shape[1], x.shape[1])
    for rows in parts:
        part = x[:, rows] @ x[:, rows.start :].mT
        cosines[:, rows, rows.start :] = part
        cosines[:, rows.stop :, rows] = part[:, :, rows.stop - rows.start :].mT
        yield rows, cosines[:, rows]


def _seen_by_itself(out: torch.Tensor, rows: slice) -> torch.Tensor:
    """Pairs that are left out (B, R, N), without those of a token and itself."""
    if torch.compiler.is_exporting():  # ONNX knows no writing into a diagonal
        places = torch.arange(out.shape[2], device=out.device)
        return out & (places[rows, None] != places)
    out.diagonal(offset=rows.start, dim1=1, dim2=2).fill_(False)
    return out


def _elsewhere(
    cosines: torch.Tensor, own: torch.Tensor, other: torch.Tensor, blank: int | None, mean: torch.Tensor | None
) -> torch.Tensor:
    """Which pairs regions keep apart, (B, R, N) bool; see `affinity_apply`."""
    if blank is None or mean is None:
        return own != other
    free = (own == blank) | (other == blank)
    return torch.where(free, cosines <= mean.view(-1, 1, 1), own != other)
