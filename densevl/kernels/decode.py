"""Scores of window tokens to pixels: the best query of each by `dense_decode`, or all of them by `dense_scores`."""

from __future__ import annotations

from typing import Any

import torch

from densevl.kernels.common import empty, need
from densevl.kernels.dispatch import constant, runs_kernel
from densevl.kernels.resample import DecodePlan, decode_tiling

FEW = 64  # scores a pixel
DECODE_TILE = {True: (32, 256), False: (16, 128)}  # pixels whose scores are held at once, by whether they are few
MOST_TAPS = 128  # tokens that an 8 x 8 tile of pixels may touch in the kernel


def dense_decode(
    scores: torch.Tensor, plan: DecodePlan, scale: float | None = None
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Window scores to the best query of every pixel, without T x H x W.

    Args:
        scores: (B, Y, X, T), taken as float32; windows are laid as a block matrix (see `DecodePlan`).
        plan: the linear map from window tokens to output pixels, one small matrix per axis.
        scale: if given, also return logsumexp(scale * score) over the T queries.

    Returns:
        label (B, H, W) int32, the best query, the smallest index among equals; score (B, H, W) float32, its
        interpolated score; lse (B, H, W) float32 natural log, or None without a scale. The kernel expects scores within
        +-6e4, and its lse is off by up to log T where a pixel's best score lies more than 87 / scale under the best of
        its tokens. While a graph is captured torch holds T x H x W.

    Raises:
        KernelError: the scores do not have the plan's tokens, or there are no queries.
    """
    rows, cols = plan.rows.matrix, plan.cols.matrix
    need(scores.ndim == 4 and scores.shape[3] > 0, "scores", scores, "(B, Y, X, T) with at least one query")
    tokens = (rows.shape[1], cols.shape[1])
    need(tuple(scores.shape[1:3]) == tokens, "scores", scores, "{} x {} tokens, as the plan", *tokens)
    scores = scores.float()

    if runs_kernel("dense_decode", (scores,), lambda: _cannot(scores, plan, scale)):
        from densevl.kernels.triton.decode import dense_decode as kernel

        label, score, lse = kernel(scores, rows, cols, scale)
        return label, score, None if scale is None else lse

    label = torch.empty(scores.shape[0], *plan.size, dtype=torch.int32, device=scores.device)
    score = torch.empty(label.shape, device=scores.device)
    lse = None if scale is None else torch.empty_like(score)
    scores_BTYX = scores.movedim(3, 1).contiguous()  # what is searched over T is read in the order of pixels
    rows_held, columns_held = DECODE_TILE[scores.shape[3] <= FEW]
    column_blocks = plan.cols.blocks(columns_held)
    for block in plan.rows.blocks(rows_held):
        strip = torch.matmul(block.weights.to(scores), scores_BTYX[:, :, block.touched])
        for other in column_blocks:
            tile = torch.matmul(strip[..., other.touched], other.weights.to(scores).T)  # (B, T, r, c)
            best, which = tile.max(dim=1)
            label[:, block.pixels, other.pixels] = which
            score[:, block.pixels, other.pixels] = best
            if scale is not None and lse is not None:
                # The maximum is known, so one exp per score and no second search for it.
                tile.sub_(best[:, None]).mul_(scale).exp_()
                lse[:, block.pixels, other.pixels] = tile.sum(dim=1).log_() + scale * best
    return label, score, lse


def _cannot(scores: torch.Tensor, plan: DecodePlan, scale: float | None) -> str | None:
    if scale is not None and not scale > 0:
        return f"scale {scale} is not above 0"
    taps = _taps(plan.rows.matrix, plan.cols.matrix)
    return f"a tile of pixels touches {taps} tokens, more than {MOST_TAPS}" if taps > MOST_TAPS else empty(scores)


@constant
def _taps(rows: torch.Tensor, cols: torch.Tensor) -> int:
    return decode_tiling(rows, cols).taps


def dense_scores(scores: torch.Tensor, plan: DecodePlan) -> torch.Tensor:
    """Window scores (B, Y, X, T) to pixel scores (B, T, H, W): the one call that builds the full volume."""
    rows = torch.einsum("hy,byxt->bhxt", plan.rows.matrix.to(scores), scores)
    return torch.einsum("wx,bhxt->bthw", plan.cols.matrix.to(scores), rows)
