"""Embed and judge the regions of a photo, with operators, their options and weights, and a second look.

Shape letters: R regions, T strings, E joint space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from densevl.backbones import Backbone, InferenceProtocol
from densevl.errors import ModelError, OptionError, RecipeError
from densevl.inference import WindowGrid, window_scores
from densevl.inference.kinds import levelled
from densevl.inference.views import DIMENSIONS, Views, mirror, seen
from densevl.pipelines.feeding import feed
from densevl.pipelines.settings import NAME_FIRST, POOL_FIRST
from densevl.proposals import Proposals
from densevl.recipes import Hints, Recipe
from densevl.regions.embedded import RegionEmbeddings
from densevl.regions.fusion import ScoreSource, fuse, uncertain
from densevl.regions.naming import against, log_probs
from densevl.regions.operators.dense import has_features, token_means, unit_features
from densevl.regions.operators.names import OPERATORS, parse
from densevl.regions.operators.queries import cls_tower
from densevl.regions.operators.trained import trained
from densevl.vocabulary.prompts import Prompt
from densevl.vocabulary.text_classifier import KEPT_PROMPTS, TextEmbeddings

GRID = 4  # cells per side, used to put words and pictures on one scale


@dataclass(frozen=True, eq=False)
class RegionScorer:
    """A model and the operators it embeds regions with.

    Attributes:
        backbone, recipe, protocol, proxy, sam: the model, how dense features are computed, and how photos are fed.
        operators: weights by operator. options: keywords by operator.
        order, second_look, second_share, second_top, proxy_scope, views: as for `RegionClassifier`.

    Raises:
        OptionError, ModelError, RecipeError: If they do not fit together.
    """

    backbone: Backbone
    recipe: Recipe | None
    protocol: InferenceProtocol
    operators: Mapping[str, float]
    options: Mapping[str, Mapping[str, Any]]
    order: str
    second_look: str | None = None
    second_share: float = 0.15
    second_top: int = 5
    proxy: Any = None
    sam: Any = None
    proxy_scope: str = "image"
    views: Views | None = None
    _examples: dict[tuple[str, Prompt], torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self._check()

    def vectors(
        self, rgb: np.ndarray, regions: Proposals
    ) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, WindowGrid] | None]:
        """Return unit rows (R, E) by operator, and for "classify_then_pool" the unit features of all places."""
        if self.views is None:
            return self._look(rgb, regions)
        total: dict[str, torch.Tensor] = {}
        for weight, scale, kind in self.views.each():
            for operator, rows in self._look(rgb, regions, scale, kind)[0].items():
                total[operator] = total[operator] + weight * rows if operator in total else weight * rows
        return {operator: F.normalize(rows, dim=1) for operator, rows in total.items()}, None

    def _look(
        self, rgb: np.ndarray, regions: Proposals, scale: float = 1.0, kind: str = ""
    ) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, WindowGrid] | None]:
        """Compute what `vectors` returns, for one view of the photo."""
        pixels, windows = feed(rgb, self.backbone, self.protocol, scale)
        pixels = seen(pixels, kind)
        if kind in DIMENSIONS:
            windows = mirror(windows, kind)
            masks = np.flip(regions.masks(), DIMENSIONS[kind])
            regions = Proposals.from_masks(masks, regions.size, quality=regions.quality)
        vectors, tokens = {}, None
        for operator in self.operators:
            if operator == "pool" and self.order == NAME_FIRST:
                if has_features(self.recipe):
                    hints = self._hints(regions)
                    tokens = unit_features(self.backbone, pixels, windows, self.recipe, hints, self.proxy_scope)
            else:
                vectors[operator] = self._run(operator, rgb, pixels, windows, regions, kind)
        return vectors, tokens

    def judge(self, found: RegionEmbeddings, text: TextEmbeddings) -> torch.Tensor:
        """Return log-probabilities (R, T) of all strings, with operators fused and the second look included."""
        logp = self._fused(found, text)
        return self._look_again(found, text, logp) if self.second_look is not None and len(found) else logp

    def _check(self) -> None:
        """Refuse impossible settings before the first photo."""
        if self.order == NAME_FIRST and "pool" not in self.operators:
            raise OptionError(f"order '{NAME_FIRST}' is for operator 'pool'; the operators are {list(self.operators)}")
        if self.recipe is None and list(self.operators) != ["pool"]:
            raise RecipeError(
                f"model '{self.backbone.name}' scores words and has no vectors of regions; take operator 'pool', which "
                "averages its scores, or a CLIP model"
            )
        dense = any(OPERATORS[operator].dense for operator in self.operators)
        if dense and self.order == POOL_FIRST and not has_features(self.recipe):
            what = f"model '{self.backbone.name}'" if self.recipe is None else f"recipe '{self.recipe.name}'"
            raise RecipeError(f"{what} scores words and has no features to pool; take order '{NAME_FIRST}'")
        second = {} if self.second_look is None else parse(self.second_look, self.options)
        for operator in (*self.operators, *second):
            if operator in ("cls_mask", "cls_bias", "balanced"):
                cls_tower(self.backbone, operator)
            if OPERATORS[operator].weights:
                trained(self.backbone, operator, self.options[operator]["weights"])
        if len(second) > 1 or (second and self.recipe is None):
            raise OptionError(f"second_look {self.second_look!r} must be one operator, and needs a CLIP model")
        if self.views is not None and self.order == NAME_FIRST:
            raise OptionError(f"views average the vectors of regions, which order '{NAME_FIRST}' does not compute")
        unknown = set(self.options) - {*self.operators, *second}
        if unknown:
            raise OptionError(f"options for '{min(unknown)}', which is not one of the operators {list(self.operators)}")
        for operator, own in self.options.items():
            OPERATORS[operator].check(operator, own)

    def _run(
        self,
        operator: str,
        rgb: np.ndarray,
        pixels: torch.Tensor,
        windows: WindowGrid,
        regions: Proposals,
        kind: str = "",
    ) -> torch.Tensor:
        chosen, own = OPERATORS[operator], dict(self.options.get(operator, {}))
        if not chosen.windows:
            return chosen.run(self.backbone, seen(self.backbone.normalize(rgb)[None], kind), regions, **own)
        if chosen.dense:
            own = {"recipe": self.recipe, "hints": self._hints(regions), "proxy_scope": self.proxy_scope, **own}
        return chosen.run(self.backbone, pixels, regions, windows=windows, **own)

    def _hints(self, regions: Proposals) -> Hints:
        """Collect what the recipe reads besides pixels. Segments are the regions themselves."""
        hints, reads = Hints(proxy=self.proxy, sam=self.sam), self.recipe.reads if self.recipe else frozenset()
        if "regions" in reads:
            ids = torch.from_numpy(regions.segment_map().astype(np.int64))[None]
            hints = replace(hints, regions=ids.to(self.backbone.device))
        if "masks" in reads:
            masks = torch.from_numpy(regions.masks())[None]
            hints = replace(hints, masks=masks.to(self.backbone.device))
        return hints

    def _fused(self, found: RegionEmbeddings, text: TextEmbeddings) -> torch.Tensor:
        """Return log-probabilities (R, T) of all strings, with operators fused."""
        sources = []
        for operator, weight in self.operators.items():
            if operator in found.vectors:
                logp = self._named(operator, found, found.vectors[operator], text)
            else:
                logp = self._name_places(found, text)
            sources.append(ScoreSource(logp, weight))
        return sources[0].logp if len(sources) == 1 else fuse(sources)

    def _named(self, operator: str, found: RegionEmbeddings, rows: torch.Tensor, text: TextEmbeddings) -> torch.Tensor:
        """Return log-probabilities (R, T) of rows by one operator. It also embeds image parts that stand for words."""
        parts = {
            at: query for at, query in enumerate(text.queries) if isinstance(query, Prompt) and query.mask is not None
        }
        if parts and text.prompts is None:
            vectors = text.vectors.clone()
            for at, prompt in parts.items():
                vectors[at] = self._example(operator, prompt)
            text = replace(text, vectors=vectors)
        if text.shown is None:
            return log_probs(rows, text, self.scale(operator))
        if operator not in found.gauge:
            ys, xs = (np.linspace(0, side, min(side, GRID) + 1) for side in found.regions.size)
            cells = [(x0, y0, x1, y1) for y0, y1 in pairwise(ys) for x0, x1 in pairwise(xs)]
            found.gauge[operator] = self._embed(operator, found.image, Proposals.from_boxes(cells, found.regions.size))
        return log_probs(rows, text, self.scale(operator), found.gauge[operator])

    def _example(self, operator: str, prompt: Prompt) -> torch.Tensor:
        """Embed a part of an image as the operator embeds regions. The last few are cached."""
        key = (operator, prompt)
        if key not in self._examples:
            if len(self._examples) >= KEPT_PROMPTS:
                self._examples.pop(next(iter(self._examples)))
            self._examples[key] = self._embed(operator, prompt.content, prompt.region)[0]
        return self._examples[key]

    def _embed(self, operator: str, rgb: np.ndarray, regions: Proposals) -> torch.Tensor:
        """Embed regions of a photo by one operator: unit rows (R, E)."""
        pixels, windows = feed(rgb, self.backbone, self.protocol)
        return self._run(operator, rgb, pixels, windows, regions)

    def _name_places(self, found: RegionEmbeddings, text: TextEmbeddings) -> torch.Tensor:
        """Return the log of the mean probability over each mask's places, (R, T)."""
        if found.tokens is not None:
            scores, grid = against(found.tokens[0], text), found.tokens[1]
        else:
            pixels, windows = feed(found.image, self.backbone, self.protocol)
            hints = self._hints(found.regions)
            scores, grid = window_scores(
                self.backbone,
                pixels,
                text.vectors,
                windows,
                recipe=self.recipe,
                hints=hints,
                proxy_scope=self.proxy_scope,
                prompts_MTD=text.prompts,
            )
            scores = scores[0]
        scores = levelled(scores, text)
        logits = scores * self.protocol.logit_scale
        probs = (logits if text.bias is None else logits + text.bias).softmax(dim=-1)
        return token_means(probs, grid, found.regions).clamp(min=1e-30).log()

    def _look_again(self, found: RegionEmbeddings, text: TextEmbeddings, logp: torch.Tensor) -> torch.Tensor:
        """Also judge the most uncertain regions by the second operator, on their likeliest strings."""
        name = self.second_look or ""
        usable = torch.from_numpy(found.regions.areas > 0).nonzero().flatten().to(logp.device)
        which = usable[uncertain(logp[usable], self.second_share)].tolist()
        new = [index for index in which if index not in found.second]
        if new:
            rows = self._embed(name, found.image, found.regions.select(new))
            found.second.update(zip(new, rows, strict=True))
        if not which:
            return logp
        again = self._named(name, found, torch.stack([found.second[index] for index in which]), text)
        best = logp[which].topk(min(self.second_top, logp.shape[1]), dim=1).indices
        again = torch.full_like(again, -torch.inf).scatter(1, best, again.gather(1, best))
        fused = logp.clone()
        fused[which] = fuse([ScoreSource(logp[which]), ScoreSource(again.log_softmax(dim=1))])
        return fused

    def scale(self, operator: str) -> float:
        return self.protocol.logit_scale if OPERATORS[operator].dense else self.backbone.logit_scale


def default_operators(backbone: Backbone) -> dict[str, float]:
    """Return "pool+cls_mask" if the model has a CLS token to copy, else "pool"."""
    try:
        cls_tower(backbone, "cls_mask")
    except ModelError:
        return parse("pool")
    return parse("pool+cls_mask")
