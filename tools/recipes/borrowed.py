"""Recipes' inputs besides the image: from mini-sam, or from the truth, which tells a recipe from its proxy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional as F

from densevl.backbones.proxies import load_proxy
from densevl.backbones.proxies.sam import LastAttention
from densevl.pipelines.segmentation.segments import Segments, proposer
from densevl.recipes import Hints, Recipe
from tools.render.scenes import Scene

MINI = "mini-sam"
CELL = 6
"""Pixels per cell of the true features; mini-sam has as many for a window of 96 px."""
WIDTH, HEAT = 128, 20.0
"""Scale of the true features' logits as attention."""


def borrows(recipe: Recipe) -> bool:
    """Tell whether a recipe reads another model's features or regions."""
    return bool(recipe.reads & {"proxy", "sam", "regions", "masks"})


class Lender(Protocol):
    """Lends recipes their inputs."""

    def hints(self, recipe: Recipe, scenes: list[Scene]) -> Hints:
        """Return proxy, SAM's attention, regions or masks, as far as the recipe reads them."""


class MiniSam:
    """mini-sam as proxy, as SAM's attention and as proposer of regions."""

    def __init__(self, proxy: Any = None, propose: Callable[[np.ndarray], Any] | None = None) -> None:
        """Args: proxy: another `Proxy` that has SAM's attention. propose: another proposer of segments."""
        self._given, self._propose = proxy, propose
        self._segments: dict[int, Segments] = {}

    @cached_property
    def proxy(self) -> Any:
        """Return the proxy."""
        return self._given or load_proxy(MINI, device="cpu")

    def hints(self, recipe: Recipe, scenes: list[Scene]) -> Hints:
        """See `Lender`. Segments of a scene are proposed once."""
        reads = recipe.reads
        segments = [self._of(scene) for scene in scenes] if reads & {"regions", "masks"} else []
        borrowed = {name: self.proxy if name in reads else None for name in ("proxy", "sam")}
        return Hints(**borrowed, **regions(recipe, segments))

    def _of(self, scene: Scene) -> Segments:
        if id(scene) not in self._segments:
            self._propose = self._propose or proposer(MINI)
            found = self._propose(scene.image) if self._propose else None
            self._segments[id(scene)] = Segments.parse(found, scene.image.shape[:2])
        return self._segments[id(scene)]


class Truth:
    """A model that knows exactly to which object each place belongs, and nothing else."""

    def hints(self, recipe: Recipe, scenes: list[Scene]) -> Hints:
        """See `Lender`."""
        features = torch.stack([true_features(scene) for scene in scenes])
        given: dict[str, Any] = {"proxy": features} if "proxy" in recipe.reads else {}
        if "sam" in recipe.reads:
            grid = (features.shape[2], features.shape[3])
            unit = F.normalize(features.flatten(2).mT[:, None], dim=-1)
            hot = unit * (HEAT * WIDTH**0.5) ** 0.5
            given["sam"] = LastAttention(q=hot, k=hot, v=unit, grid=grid, covered=grid, rel=None)
        segments = [Segments(torch.from_numpy(s.instances).long() + 2) for s in scenes]
        return Hints(**given, **regions(recipe, segments))


def regions(recipe: Recipe, segments: list[Segments]) -> dict[str, torch.Tensor]:
    """Return segments for a recipe: "regions", maps (B, H, W), or "masks", (B, R, H, W), some of them empty."""
    kind = next((kind for kind in ("regions", "masks") if kind in recipe.reads), None)
    if kind is None:
        return {}
    each = [one.at((one.ids.shape[0], one.ids.shape[1]), as_masks=kind == "masks")[0] for one in segments]
    padded = torch.nn.utils.rnn.pad_sequence(each, batch_first=True).float() if kind == "masks" else torch.stack(each)
    return {kind: padded}


def true_features(scene: Scene) -> torch.Tensor:
    """Give every object and the background their own direction, mixed by area: float (WIDTH, h, w)."""
    ids = torch.from_numpy(scene.instances).long() + 1
    one_hot = F.avg_pool2d(F.one_hot(ids).permute(2, 0, 1).float(), CELL)
    directions = torch.randn(len(one_hot), WIDTH, generator=torch.Generator().manual_seed(0))
    return torch.einsum("khw,kp->phw", one_hot, directions)
