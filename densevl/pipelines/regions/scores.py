"""How the regions of a photo are embedded and judged: operators, their options and weights, a second look.

Shape letters: R regions, T strings, E joint space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from densevl.backbones import Backbone, InferenceProtocol
from densevl.errors import LabelError, ModelError, RecipeError
from densevl.inference import WindowGrid, window_scores
from densevl.pipelines.feeding import feed
from densevl.proposals import Proposals
from densevl.recipes import Hints, Recipe
from densevl.regions.embedded import RegionEmbeddings
from densevl.regions.fusion import ScoreSource, fuse, uncertain
from densevl.regions.naming import log_probs
from densevl.regions.operators.dense import has_features, token_means, unit_features
from densevl.regions.operators.names import OPERATORS, parse
from densevl.regions.operators.tower import cls_tower
from densevl.regions.operators.trained import trained
from densevl.vocabulary.text_classifier import TextEmbeddings

POOL_FIRST, NAME_FIRST = "pool_then_classify", "classify_then_pool"
ORDERS = (POOL_FIRST, NAME_FIRST)


@dataclass(frozen=True, eq=False)
class RegionScorer:
    """A model and the ways it looks at regions.

    Attributes:
        backbone, recipe, protocol, proxy, sam: the model, how dense features are made, and how photos are fed.
        operators: weights by operator. options: keywords by operator.
        order, second_look, second_share, second_top: as `RegionClassifier` takes them.

    Raises:
        LabelError, ModelError, RecipeError: they do not go together.
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

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise LabelError(f"order is {self.order!r}; it is one of {', '.join(ORDERS)}")
        if not 0 < self.second_share <= 1 or self.second_top < 1:
            raise LabelError(
                f"second_share is {self.second_share} and second_top {self.second_top}; the first is a share within "
                "0..1, the second at least one string"
            )
        self._check()

    def vectors(
        self, rgb: np.ndarray, regions: Proposals
    ) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, WindowGrid] | None]:
        """Unit rows (R, E) by operator, and for "classify_then_pool" the unit features of all places."""
        pixels, windows = feed(rgb, self.backbone, self.protocol)
        vectors, tokens = {}, None
        for operator in self.operators:
            if operator == "pool" and self.order == NAME_FIRST:
                if has_features(self.recipe):
                    tokens = unit_features(self.backbone, pixels, windows, self.recipe, self._hints(regions))
            else:
                vectors[operator] = self._run(operator, rgb, pixels, windows, regions)
        return vectors, tokens

    def judge(self, found: RegionEmbeddings, text: TextEmbeddings) -> torch.Tensor:
        """Log probabilities (R, T) of all strings, operators fused, the uncertain looked at again."""
        logp = self._fused(found, text)
        return self._look_again(found, text, logp) if self.second_look is not None and len(found) else logp

    def _check(self) -> None:
        """Refuse what cannot work before the first photo."""
        if self.order == NAME_FIRST and "pool" not in self.operators:
            raise LabelError(f"order '{NAME_FIRST}' is for operator 'pool'; the operators are {list(self.operators)}")
        if self.recipe is None and list(self.operators) != ["pool"]:
            raise RecipeError(
                f"model '{self.backbone.name}' scores words and embeds no regions; take operator 'pool', which "
                "averages its scores, or a CLIP model"
            )
        dense = any(OPERATORS[operator].dense for operator in self.operators)
        if dense and self.order == POOL_FIRST and not has_features(self.recipe):
            what = f"model '{self.backbone.name}'" if self.recipe is None else f"recipe '{self.recipe.name}'"
            raise RecipeError(f"{what} scores words and has no features to pool; take order '{NAME_FIRST}'")
        second = {} if self.second_look is None else parse(self.second_look, self.options)
        for operator in (*self.operators, *second):
            if operator in ("cls_mask", "cls_bias"):
                cls_tower(self.backbone, operator)
            if OPERATORS[operator].weights:
                trained(self.backbone, operator, self.options[operator]["weights"])
        if len(second) > 1 or (second and self.recipe is None):
            raise LabelError(f"second_look {self.second_look!r} is one operator, for a CLIP model")
        unknown = set(self.options) - {*self.operators, *second}
        if unknown:
            raise LabelError(f"options for '{min(unknown)}', which is none of the operators {list(self.operators)}")

    def _run(
        self, operator: str, rgb: np.ndarray, pixels: torch.Tensor, windows: WindowGrid, regions: Proposals
    ) -> torch.Tensor:
        what, own = OPERATORS[operator], dict(self.options.get(operator, {}))
        if not what.windows:
            return what.run(self.backbone, self.backbone.normalize(rgb)[None], regions, **own)
        if what.dense:
            own = {"recipe": self.recipe, "hints": self._hints(regions), **own}
        return what.run(self.backbone, pixels, regions, windows=windows, **own)

    def _hints(self, regions: Proposals) -> Hints:
        """What the recipe reads besides pixels; segments are the regions themselves."""
        hints, reads = Hints(proxy=self.proxy, sam=self.sam), self.recipe.reads if self.recipe else frozenset()
        if "regions" in reads:
            ids = torch.from_numpy(regions.segment_map().astype(np.int64))[None]
            hints = replace(hints, regions=ids.to(self.backbone.device))
        if "masks" in reads:
            masks = torch.from_numpy(regions.masks())[None]
            hints = replace(hints, masks=masks.to(self.backbone.device))
        return hints

    def _fused(self, found: RegionEmbeddings, text: TextEmbeddings) -> torch.Tensor:
        """Log probabilities (R, T) of all strings, operators fused."""
        sources = []
        for operator, weight in self.operators.items():
            if operator in found.vectors:
                logp = log_probs(found.vectors[operator], text, self.scale(operator))
            else:
                logp = self._name_places(found, text)
            sources.append(ScoreSource(logp, weight))
        return sources[0].logp if len(sources) == 1 else fuse(sources)

    def _name_places(self, found: RegionEmbeddings, text: TextEmbeddings) -> torch.Tensor:
        """The mean over each mask of the probabilities at places, as logarithms (R, T)."""
        if found.tokens is not None:
            scores, grid = found.tokens[0] @ text.vectors.T, found.tokens[1]
        else:
            pixels, windows = feed(found.image, self.backbone, self.protocol)
            hints = self._hints(found.regions)
            scores, grid = window_scores(self.backbone, pixels, text.vectors, windows, recipe=self.recipe, hints=hints)
            scores = scores[0]
        probs = (scores * self.protocol.logit_scale).softmax(dim=-1)
        return token_means(probs, grid, found.regions).clamp(min=1e-30).log()

    def _look_again(self, found: RegionEmbeddings, text: TextEmbeddings, logp: torch.Tensor) -> torch.Tensor:
        """Judge the most uncertain regions by the second operator too, on their likeliest strings."""
        name = self.second_look or ""
        usable = torch.from_numpy(found.regions.areas > 0).nonzero().flatten().to(logp.device)
        which = usable[uncertain(logp[usable], self.second_share)].tolist()
        new = [index for index in which if index not in found.second]
        if new:
            pixels, windows = feed(found.image, self.backbone, self.protocol)
            rows = self._run(name, found.image, pixels, windows, found.regions.select(new))
            found.second.update(zip(new, rows, strict=True))
        if not which:
            return logp
        again = log_probs(torch.stack([found.second[index] for index in which]), text, self.scale(name))
        best = logp[which].topk(min(self.second_top, logp.shape[1]), dim=1).indices
        again = torch.full_like(again, -torch.inf).scatter(1, best, again.gather(1, best))
        fused = logp.clone()
        fused[which] = fuse([ScoreSource(logp[which]), ScoreSource(again.log_softmax(dim=1))])
        return fused

    def scale(self, operator: str) -> float:
        return self.protocol.logit_scale if OPERATORS[operator].dense else self.backbone.logit_scale


def default_operators(backbone: Backbone) -> dict[str, float]:
    """ "pool+cls_mask" where the model has a CLS token to copy, else "pool"."""
    try:
        cls_tower(backbone, "cls_mask")
    except ModelError:
        return parse("pool")
    return parse("pool+cls_mask")
