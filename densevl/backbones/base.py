"""The contract between a model and everything above it: pixels in, dense features out.

Shape letters: B batch, D joint-space width, H/W pixels, h/w patch grid, T text queries.
A backbone may be CLIP (scores are cosines) or something else that can turn words and places into scores
(the photo model); pipelines only use what stands here.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from densevl.backbones.lowered.probe import fastest, slower, unkept
from densevl.backbones.precision import AUTO
from densevl.backbones.protocol import InferenceProtocol
from densevl.backbones.reach import Reach, doubts
from densevl.errors import PrecisionError, RecipeError
from densevl.recipes import Hints, Recipe, get
from densevl.recipes.features import DenseFeatures
from densevl.recipes.run import State
from densevl.weights import require_finite

SIDE = 224
"""Pixels of whole pictures, for a model that was trained at no size of its own."""


def variant(recipe: Recipe, *, position_rule: str | None, compat: bool) -> Recipe:
    """The recipe as published, if `compat`; then with another position rule, if one is given."""
    found = recipe.as_published() if compat else recipe
    return found if position_rule is None else replace(found, position_rule=position_rule)


FASTEST = "the fastest on this machine"


class Backbone(ABC):
    """A model that gives dense features and text embeddings in one space.

    Attributes:
        name: what `load_backbone` was asked for; shown in results.
        summary: one line: what the model is good for and what it is not.
        upgrade: how to get a better one, or empty.
        patch_size: pixels per patch; encode_dense takes sides that are multiples of it.
        embed_dim: D.
        context_length: tokens the text side reads, start and end included; longer text is read in windows.
        mean, std: per-channel RGB statistics on the 0-1 scale.
        default_recipe: the recipe used when the caller names none; None if recipes do not apply.
        templates: name of the prompt template set that suits the text side.
        protocol: how photos are fed when the caller does not say.
        background: default background policy, a spec as `Background.parse` takes it ("none" or "unknown").
        pictures: what it was made for: "photos", "drawings", or "" for both.
        refine: refinements of scores that are made unless others are asked for, as `Segmenter` takes them.
        reading: what its weights were read as, ready for JSON: their form, and for activations, pixels and the commit
            of the hub, the value and where it was taken from. guesses: warnings about those that nothing says.
        precision: of the image tower's linear layers, one of `backbones.precision.PRECISIONS`.
        auto: why "auto" took that precision; empty where it was asked for.
    """

    name: str
    summary: str
    upgrade: str = ""
    patch_size: int
    embed_dim: int
    logit_scale: float
    context_length: int = 77
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    default_recipe: str | None = "sclip"
    templates: str = "openai"
    protocol: InferenceProtocol = InferenceProtocol()
    background: ClassVar[str] = "none"
    pictures: ClassVar[str] = ""
    refine: ClassVar[str] = "none"
    precision: str = "float32"
    auto: str = ""
    reading: Mapping[str, Any] = {}
    guesses: tuple[str, ...] = ()
    preprocess: Callable[..., torch.Tensor]

    @abstractmethod
    def encode_dense(
        self,
        pixels: torch.Tensor,
        recipe: str | Recipe | None = None,
        *,
        hints: Hints | None = None,
        position_rule: str | None = None,
        compat: bool = False,
    ) -> DenseFeatures:
        """Encode pixels into patch features in the joint space of image and text.

        Args:
            pixels: (B, 3, H, W) float, normalised with `mean` and `std`; H and W are multiples of `patch_size`.
            recipe: a name from `densevl.recipes.names()` or a `Recipe`; None means `default_recipe`.
            hints: what the recipe reads besides the pixels, `Recipe.reads` of it; models among them (a `Proxy`, a
                `SamProxy`) look at these pixels. A recipe that spreads scores over windows does so in
                `inference.window_scores`, not here.
            position_rule: how the positional grid is resized for sizes other than the trained one; None takes the
                recipe's own (see `backbones.positions`).
            compat: follow the authors' code where it differs from what it means to do; see the recipe's note.

        Returns:
            features (B, D, h, w), h and w being H and W in patches unless the recipe works on another model's grid,
            and cls (B, D) where the recipe leaves one; neither is L2-normalised. With "vanilla", `cls` equals
            `encode_image`.

        Raises:
            ImageError: pixels of another shape, or a side that is not a multiple of the patch.
            RecipeError: the recipe does not fit this tower, lacks what it reads, or is given what it does not read.
        """

    def at_precision(self, precision: str) -> Backbone:
        """This model with the linear layers of its image tower at another precision, for dense features.

        Args:
            precision: "float32"; "int8" (CPU only; 8-bit weights and tokens, see docs/speed.md); "bfloat16"; "float16";
                "float32-packed" (CPU only; a copy of the weights in the order of the library that multiplies);
                "auto" is the one that is fastest here, float32 if this model has no other.

        Returns:
            A backbone that shares this one's weights; this one is left as it is. `encode_image` and the text side stay
            float32.

        Raises:
            ModelError: no such precision, or not for this model or device.
        """
        if precision == AUTO:
            return self._at_fastest()
        if precision == self.precision:
            return self
        raise PrecisionError(f"model '{self.name}' runs in {self.precision} only; leave precision out")

    def _at_fastest(self) -> Backbone:
        """This model at the precision that is fastest on its device; `auto` says why it is that."""
        if self.auto:
            return self
        try:
            found, why = self.at_precision(fastest(self.device).precision), FASTEST
        except PrecisionError:
            found, why = self, "this model has no other"
        found = copy.copy(found)
        found.auto = why
        return found

    def resolve(
        self, recipe: str | Recipe | None, *, position_rule: str | None = None, compat: bool = False
    ) -> Recipe | None:
        """The recipe meant by a name, or by leaving it out; None for a model without recipes.

        Args:
            position_rule: replaces the recipe's own. compat: take the recipe as its authors published it.

        Raises:
            RecipeError: no such recipe or rule.
        """
        if not isinstance(compat, bool):
            raise RecipeError(f"compat is True or False, got {compat!r}")
        given = self.default_recipe if recipe is None else recipe
        return None if given is None else variant(get(given), position_rule=position_rule, compat=compat)

    def look(self, pixels: torch.Tensor, recipe: Recipe, hints: Hints) -> Hints:
        """Hints whose models have looked at pixels (B, 3, H, W) normalised for this backbone: features in their place.

        Raises:
            RecipeError: a proxy that needs another kind of backbone.
        """
        proxy, sam = hints.proxy, hints.sam
        if proxy is not None and not isinstance(proxy, torch.Tensor):
            proxy = self._proxy_features(pixels, recipe, proxy)
        if sam is not None and hasattr(sam, "last_attention"):
            sam = sam.last_attention(sam.prepare(pixels, self.mean, self.std))
        return replace(hints, proxy=proxy, sam=sam)

    def _proxy_features(self, pixels: torch.Tensor, recipe: Recipe, proxy: Any) -> torch.Tensor:
        """Features (B, P, h', w') of a proxy for normalised pixels, of the kind the recipe reads."""
        if hasattr(proxy, "from_tower"):
            raise RecipeError(
                f"this proxy reads CLIP's own tokens, which model '{self.name}' has not; use another proxy"
            )
        kind = recipe.proxy.features if recipe.proxy is not None else "tokens"
        features: torch.Tensor = proxy.from_clip(pixels, self.mean, self.std, kind).to(self.device)
        require_finite(features, f"features of proxy '{getattr(proxy, 'name', type(proxy).__name__)}'")
        return features

    def start(self, pixels: torch.Tensor, recipe: Recipe, hints: Hints) -> State:
        """Run one batch of windows as far as each goes for itself; `finish` does the rest, see `recipes.run`.

        Args:
            pixels: (B, 3, H, W) normalised, sides multiples of the patch. hints: for these pixels, models looked.

        Raises:
            RecipeError: this model cannot.
        """
        raise RecipeError(f"model '{self.name}' has no attention to rewire; recipe '{recipe.name}' does not apply")

    def finish(self, state: State, recipe: Recipe, hints: Hints) -> DenseFeatures:
        """The rest of a recipe, on one window's state or on that of all windows of an image joined.

        Raises:
            RecipeError: this model cannot.
        """
        raise RecipeError(f"model '{self.name}' has no attention to rewire; recipe '{recipe.name}' does not apply")

    @property
    def picture_size(self) -> tuple[int, int]:
        """(H, W) that whole pictures are fed at: the size it was trained at, 224 for a model without one."""
        tower = getattr(self, "tower", None)
        return tuple(tower.image_size) if tower is not None else (SIDE, SIDE)

    @abstractmethod
    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode normalised pixels (B, 3, H, W) into one embedding each, (B, D), not normalised."""

    @abstractmethod
    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Encode T strings into (T, D) float32, not normalised."""

    @property
    @abstractmethod
    def text_fingerprint(self) -> str:
        """A hash that changes when text embeddings would; keys the text cache."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights live."""

    def score(
        self, dense: DenseFeatures, text_TD: torch.Tensor, foreground_T: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Score T text embeddings at every patch, mostly by the cosine: (B, h, w, T) float32.

        Args:
            dense: what `encode_dense` gave. text_TD: (T, D) unit rows as `TextClassifier` makes them, `unknown`'s row
                among them. A model may score a row by what the others are, so all rows go in one call.
            foreground_T: (T,) bool, which rows are classes and not background words; None is all.
        """
        return dense.score(text_TD, foreground_T)

    def unknown(self, text_TD: torch.Tensor) -> torch.Tensor | None:
        """One more row (D,) that stands for "none of these T", or None if the model has no such notion.

        Only `score` reads it; it need not be like other rows, and is neither averaged nor normalised.
        """
        return None

    def held_text(self, texts: Sequence[str], templates: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Unit rows (D,) that are at hand for some of the texts, put into these templates; most models have none."""
        return {}

    def reach(self, words: Sequence[str]) -> list[Reach]:
        """How each word is reached and how far that may be trusted; a text tower makes no claim about any."""
        return [Reach(word) for word in words]

    def listed_words(self) -> tuple[str, ...]:
        """Words that this model was taught or has in a table, of which `reach` tells more; a text tower has none."""
        return ()

    def narrower_words(self) -> Mapping[str, str]:
        """Further words that are read by what they are a kind of, each with that listed word; a text tower has none."""
        return {}

    def alike(self, words: Sequence[str]) -> list[list[str]]:
        """Groups of words that this model cannot tell apart; a text tower makes no claim."""
        return []

    def doubts(self, words: Iterable[str]) -> tuple[str, ...]:
        """Warnings about words that this model does not know, or knows weakly, a sentence each; for every pipeline.

        Args:
            words: labels, their synonyms and words of the background; a repeated or empty one counts once or not.
        """
        return (
            *self.guesses,
            *(unkept if self.auto == FASTEST else slower)(self.precision, self.device),
            *doubts(self.name, self.reach([word for word in dict.fromkeys(words) if word.strip()])),
        )

    def normalize(self, rgb: np.ndarray) -> torch.Tensor:
        """uint8 RGB (H, W, 3) to normalised float32 (3, H, W) on the backbone's device."""
        chw = torch.from_numpy(np.array(rgb)).to(self.device).permute(2, 0, 1).float()
        mean = torch.tensor(self.mean, device=self.device).view(3, 1, 1) * 255
        std = torch.tensor(self.std, device=self.device).view(3, 1, 1) * 255
        return (chw - mean) / std

    @property
    def about(self) -> str:
        """What the model is good for, and how to get a better one."""
        return f"{self.summary}. Better: {self.upgrade}" if self.upgrade else self.summary
