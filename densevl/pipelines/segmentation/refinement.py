"""Refine a recipe's scores at pixels, and its labels; see `KNOWN`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from densevl.backbones.proxies.diffusion import DiffusionProxy
from densevl.errors import RecipeError, suggest
from densevl.inference.decoding import LabelMap, Refine
from densevl.pipelines.segmentation.segments import Segments
from densevl.recipes.parts.affinity import Relative
from densevl.recipes.parts.readout import ScoredSources
from densevl.refine import Pamr, PixelPropagation, majority_vote, pool_in_segments
from densevl.refine.peaks import SpreadOnGrid
from densevl.refine.propagation import ALPHA

VOTE, NONE, SEGMENTS = "vote", "none", "segments"
UPSAMPLERS = ("anyup", "jbu", "jafar")
"""At most one of these, and it comes first; see `segmentation.upsampling`."""
PROXY = "proxy"
SCORES = ("pamr", "edges", "lposs+", PROXY, SEGMENTS)
READ_SEGMENTS = (SEGMENTS, VOTE)
SEEN_CELLS = 64  # per side of a square; CLIPer runs the diffusion model at 512 pixels, or 64 patches of DINO's 8
PROXYCLIP = (3.0, 1.2)  # gain, and the factor of the mean that is subtracted
EDGES_SIDE = 192  # pixels of the short side for following edges; larger photos add nothing
KNOWN = (*UPSAMPLERS, *SCORES, VOTE, NONE)


def parse(spec: str | Sequence[str] | None, *, upsampling: bool = True) -> tuple[str, ...]:
    """Parse names of refinements into the order they run: "pamr,vote" to ("pamr", "vote"). None and "none" are ().

    Args:
        upsampling: whether an upsampler may be named.

    Raises:
        RecipeError: If a name is unknown or repeated, an upsampler is not first, or a vote is not last.
    """
    parts = spec.split(",") if isinstance(spec, str) else spec or ()
    chosen = tuple(part.strip() for part in parts)
    if chosen == (NONE,):
        return ()
    for name in chosen:
        if name not in KNOWN:
            raise RecipeError(f"no refinement '{name}'{suggest(name, KNOWN)}; known: {', '.join(KNOWN)}")
    if len(set(chosen)) < len(chosen):
        raise RecipeError(f"refine='{','.join(chosen)}' names one twice; name each once")
    if NONE in chosen:
        raise RecipeError(f"refine='{','.join(chosen)}' names others beside 'none'; it must stand alone")
    if not upsampling and chosen and chosen[0] in UPSAMPLERS:
        raise RecipeError(
            f"refine '{chosen[0]}' refines label maps: use it with Segmenter and densevl segment, "
            "video and eval; leave it out here"
        )
    if late := next((name for name in chosen[1:] if name in UPSAMPLERS), None):
        raise RecipeError(
            f"refine='{','.join(chosen)}': '{late}' upsamples patches to pixels, so it must come first, and only once"
        )
    if VOTE in chosen[:-1]:
        raise RecipeError(f"refine='{','.join(chosen)}': a vote decides labels, so it must come last")
    return chosen


def score_refiner(
    chosen: Sequence[str],
    rgb: np.ndarray,
    normalised: torch.Tensor,
    segments: Segments | None = None,
    proxy: Callable[[], Refine] | None = None,
) -> Refine | None:
    """Return one callable for the refinements that act on scores at pixels, or None if there are none.

    Args:
        rgb: uint8 (H, W, 3). normalised: the same for the model, (3, H, W) float. segments: those of the photo.
        proxy: creates the step "proxy".
    """
    steps: list[Refine] = []
    for name in chosen:
        if name == "pamr":
            steps.append(Pamr(normalised[None]))
        elif name == "edges":
            steps.append(_small(normalised))
        elif name == "lposs+":
            photo = torch.from_numpy(rgb.copy()).to(normalised.device).permute(2, 0, 1)[None] / 255
            steps.append(_kept_in_range(PixelPropagation(photo)))
        elif name == PROXY and proxy is not None:
            steps.append(proxy())
        elif name == SEGMENTS and segments is not None:
            steps.append(partial(pool_in_segments, segments=segments.ids.to(normalised.device)))
    return _one_after_the_other(steps) if steps else None


def by_proxy(proxy: Any, pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float], recipe: Any) -> Refine:
    """Spread scores by what a proxy sees in a photo: a diffusion model's own attention, or features.

    Features spread scores as in ProxyCLIP, which CLIPer's authors suggest without diffusion: the weights are the
    softmax of 3 (cosine - 1.2 times the mean), without those below zero.

    Args:
        pixels: (1, 3, H, W) at any size, normalised by mean and std. They are resized to 64 x 64 cells of the proxy,
            or as many at their own aspect ratio.
        recipe: says which kind of features it borrows, if any, and whether it scores by probabilities.
    """
    scored = recipe is not None and isinstance(recipe.readout, ScoredSources)
    if isinstance(proxy, DiffusionProxy):
        photo = proxy.squeezed(proxy.prepare(pixels, mean, std))
        return SpreadOnGrid(partial(proxy.spread, photo), proxy.grid, probabilities=scored)
    factor = SEEN_CELLS * proxy.patch_size / math.prod(pixels.shape[2:]) ** 0.5
    pixels = F.interpolate(pixels, scale_factor=factor, mode="bilinear", antialias=True)
    kind = recipe.proxy.features if recipe is not None and recipe.proxy is not None else "tokens"
    features = proxy.from_clip(pixels, mean, std, kind)
    unit_1NP = F.normalize(features.flatten(2).mT, dim=2)

    def spread(values_NC: torch.Tensor) -> torch.Tensor:
        return Relative(*PROXYCLIP).spread(unit_1NP, values_NC[None].to(unit_1NP))[0]

    return SpreadOnGrid(spread, (features.shape[2], features.shape[3]), probabilities=scored)


def _small(normalised: torch.Tensor) -> Refine:
    """Run PAMR with few rounds and short distances on a small copy of the photo (3, H, W). It is as good at borders."""
    scale = min(1.0, EDGES_SIDE / min(normalised.shape[1:]))
    size = [max(1, round(side * scale)) for side in normalised.shape[1:]]
    pamr = Pamr(
        F.interpolate(normalised[None], size=size, mode="bilinear", antialias=True), iterations=5, dilations=(2, 6)
    )

    def refine(scores: torch.Tensor) -> torch.Tensor:
        small = F.interpolate(scores, size=size, mode="bilinear", antialias=True)
        return F.interpolate(pamr(small), size=scores.shape[-2:], mode="bilinear", align_corners=False)

    return refine


def _kept_in_range(propagation: PixelPropagation) -> Refine:
    """Rescale the result of propagation, which sums over neighbours to about 1 / (1 - alpha) times the scores.

    Probabilities need the range of the scores; labels do not."""
    return lambda scores: propagation(scores).mul_(1 - ALPHA)


def _one_after_the_other(steps: Sequence[Refine]) -> Refine:
    def refine(scores: torch.Tensor) -> torch.Tensor:
        for step in steps:
            scores = step(scores)
        return scores

    return refine


def vote(decided: LabelMap, segments: Segments) -> LabelMap:
    """Give each segment its most frequent label. Where a label changed, the confidence is the share of votes for it.

    Args:
        decided: labels of one photo, at its own size.
    """
    labels = decided.labels[0]
    voted = majority_vote(labels, segments.electorates.to(labels.device))
    changed = voted != labels
    share = _share(labels, voted, segments.ids.to(labels.device))
    return LabelMap(voted[None], torch.where(changed, share, decided.confidence[0])[None])


def _share(labels: torch.Tensor, voted: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the share of each pixel's segment that already had its present label: (H, W) within 0..1."""
    _, segment = ids.flatten().unique(return_inverse=True)
    agreed = torch.bincount(segment, weights=(labels == voted).flatten().float())
    return (agreed / torch.bincount(segment)).to(torch.float32)[segment].view_as(ids)
