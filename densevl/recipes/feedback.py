"""Looking twice: what the first pass scores steers the attention of the second.

`label_feedback` is the semantic feedback of ResCLIP (CVPR 2025), `score_feedback` that of FSA. Both need text.
Shape letters: B batch, N patches, D width, T texts.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional as F

from densevl.errors import RecipeError
from densevl.recipes.attention import Looks, look
from densevl.recipes.blocks import Block
from densevl.recipes.features import DenseFeatures, Hints
from densevl.recipes.parts import LabelFeedback, ScoreFeedback
from densevl.recipes.recipe import Recipe
from densevl.recipes.tower import Grid, Tower
from densevl.refine import Pamr

BLUR_STD = 5.0  # of ResCLIP's smoothing of the label map, in patches


def label_feedback(
    first: DenseFeatures, recipe: Recipe, spec: LabelFeedback, hints: Hints
) -> tuple[Recipe, torch.Tensor]:
    """The second pass of a recipe, and the bias (B, N, N) its logits get, from the features of the first pass.

    logits = gain * ((1 - share) * S + share * F) is a temperature on S and a bias.

    With `hints.compat` as the authors' code: every line between two patches is sampled with the step of the longest
    one, the blur runs over the flattened tokens across row ends, and F is rounded to half precision.
    """
    labels_Bhw = _patch_labels(first, spec, hints)
    affinity = torch.stack([label_affinity(labels_hw, hints.compat) for labels_hw in labels_Bhw])
    term = affinity / affinity.amax(dim=(1, 2), keepdim=True)
    term = (spec.share * term.half()).to(term) if hints.compat else spec.share * term
    return replace(recipe, feedback=None, temperature=spec.gain * (1 - spec.share)), spec.gain * term


def _patch_labels(first: DenseFeatures, spec: LabelFeedback, hints: Hints) -> torch.Tensor:
    """Label of each patch (B, h, w): the commonest of its pixels, the smallest if tied, after PAMR."""
    pixels, text_TD = hints.pixels, hints.text
    if pixels is None or text_TD is None:
        raise RecipeError("label feedback needs the pixels and the text; call encode_dense with text")
    unit = F.normalize(first.features.float(), dim=1)
    cosines = torch.einsum("bdhw,td->bthw", unit, text_TD.to(unit))
    pixel_cosines = F.interpolate(cosines, size=pixels.shape[2:], mode="bilinear", align_corners=False)
    probability, label = (spec.temperature * Pamr(pixels)(pixel_cosines)).softmax(dim=1).max(dim=1)
    label = torch.where(probability < spec.threshold, 0, label)
    h, w = first.grid
    cells = label.unflatten(2, (w, -1)).unflatten(1, (h, -1)).transpose(2, 3)  # (B, h, w, patch, patch)
    return cells.flatten(3).mode(dim=-1).values


def label_affinity(labels_hw: torch.Tensor, compat: bool = False) -> torch.Tensor:
    """How patches of one label draw each other: (N, N), rows sum to 1.

    1 where two patches share a label, damped by exp(-distance / largest distance) where the straight line between them
    leaves the label; blurred by a Gaussian over the grid.
    """
    h, w = labels_hw.shape
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    cell = torch.stack([rows, columns], dim=-1).flatten(0, 1)
    flat = labels_hw.flatten()
    start, end = cell[:, None].float(), cell[None].float()
    far = (end - start).abs().amax(dim=-1)
    clear = torch.ones_like(far, dtype=torch.bool)
    longest = int(far.max())
    for step, share in enumerate(torch.linspace(0, 1, longest + 1)):
        at = share if compat else (step / far.clamp(min=1)).clamp(max=1)[..., None]
        here = (start * (1 - at) + end * at).round().long()
        clear &= (labels_hw[here[..., 0], here[..., 1]] == flat[:, None]) | (step > far)
    same = (flat[:, None] == flat[None]).float()
    same = torch.where(clear, same, same * torch.exp(-far / max(longest, 1)))
    same = _blur(same, (h, w), compat)
    return same / (same.sum(dim=1, keepdim=True) + 1e-8)


def _blur(same: torch.Tensor, grid: Grid, compat: bool) -> torch.Tensor:
    def line(x: torch.Tensor, length: int) -> torch.Tensor:
        taps = min(length, int(6 * BLUR_STD + 1)) // 2 * 2 + 1
        offsets = torch.arange(taps) - taps // 2
        kernel = torch.exp(-(offsets**2) / (2 * BLUR_STD**2)).to(x)
        kernel = (kernel / kernel.sum()).view(1, 1, -1)
        return F.conv1d(x.reshape(-1, 1, x.shape[-1]), kernel, padding=taps // 2).reshape(x.shape)

    if compat:
        return line(same, same.shape[-1])
    planes = line(same.unflatten(1, grid), same.shape[-1])
    return line(planes.mT, same.shape[-1]).mT.flatten(1)


def score_feedback(
    looks: Looks, recipe: Recipe, spec: ScoreFeedback, text_TD: torch.Tensor, block: Block, tower: Tower
) -> torch.Tensor:
    """The attention branch (B, N, D) of a recipe whose one term A is composed with A', made from first-pass scores.

    r = softmax(P - U), P the scaled scores of A, U those of uniform attention; s = 1 / (1 + KL(r_i || r_j)); each
    patch keeps the most alike partners up to a probability mass; A' = softmax(s exp(sharpness s)); the result is
    (A'A + AA' + A') / 3 applied to the values, right to left, so that only one N x N map is held.
    """
    term, v = recipe.parts[0], looks.own["v"]

    def scores(y_BND: torch.Tensor) -> torch.Tensor:
        return F.normalize(tower.read(y_BND).float(), dim=-1) @ text_TD.to(y_BND).mT

    once = look(looks, recipe, term)
    uniform = v.mean(dim=2, keepdim=True)
    contrast = spec.scale * scores(block.merge(once)) - spec.base_scale * scores(block.merge(uniform))
    again = _alike(contrast.softmax(dim=-1), spec)[:, None]  # one map for all heads
    mixed = again @ once + look(looks, recipe, term, again @ v) + again @ v
    return block.merge(mixed / 3)


def _alike(r_BNT: torch.Tensor, spec: ScoreFeedback) -> torch.Tensor:
    log_r = torch.log(r_BNT + 1e-10)
    divergence = (r_BNT * log_r).sum(dim=-1, keepdim=True) - r_BNT @ log_r.mT  # KL(r_i || r_j)
    s = 1 / (1 + divergence.clamp(min=0))
    ordered, order = s.sort(dim=-1, descending=True, stable=True)
    kept = ordered.softmax(dim=-1).cumsum(dim=-1) <= spec.share
    kept[..., 0] = True
    keep = torch.zeros_like(kept).scatter(-1, order, kept)
    return (s * torch.exp(spec.sharpness * s)).masked_fill(~keep, -torch.inf).softmax(dim=-1)
