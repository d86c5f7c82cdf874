"""The interface between a model and everything above it: pixels in, dense features out.

Shape letters: B batch, D joint-space width, H/W pixels, h/w patch grid, T text queries.
A backbone may be CLIP, whose scores are cosines, or anything else that turns words and places into scores, such as the
photo model. Pipelines use only this interface.
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
"""Size of whole pictures in pixels, for a model that was not trained at one size."""


def variant(recipe: Recipe, *, position_rule: str | None, compat: bool) -> Recipe:
    """The recipe as published if `compat` is set, and with another position rule if one is given."""
    found = recipe.as_published() if compat else recipe
    return found if position_rule is None else replace(found, position_rule=position_rule)


FASTEST = "the fastest on this machine"


class Backbone(ABC):
    """A model that gives dense features and text embeddings in one space.

    Attributes:
        name: the name given to `load_backbone`; shown in results.
        summary: one line: what the model is good for and what it is not.
        upgrade: how to get a better one, or empty.
        patch_size: pixels per patch; encode_dense takes sides that are multiples of it.
        embed_dim: D.
        context_length: tokens the text side reads, including start and end; longer text is read in windows.
        mean, std: per-channel RGB statistics on the 0-1 scale.
        default_recipe: the recipe used when the caller names none; None if recipes do not apply.
        templates: name of the prompt template set that suits the text side.
        protocol: the default way of feeding photos.
        background: default background policy, a spec as `Background.parse` takes it ("none" or "unknown").
        pictures: the kind it was trained on: "photos", "drawings", or "" for both.
        refine: default refinements of scores, as `Segmenter` takes them.
        reading: how its weights were read, ready for JSON: their form, and for activations, pixels and the commit of
            the hub, the value and its source. guesses: warnings about values that have no source.
        precision: of the image tower's linear layers, one of `backbones.precision.PRECISIONS`.
        auto: why "auto" chose that precision; empty if it was given.
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
            hints: the further inputs that `Recipe.reads` lists; models among them (a `Proxy`, a `SamProxy`) are run on
                these pixels. A recipe that spreads scores over windows does so in `inference.window_scores`, not here.
            position_rule: how the positional grid is resized for sizes other than the trained one; None takes the
                recipe's own (see `backbones.positions`).
            compat: follow the authors' code where it differs from their intent; see the recipe's note.

        Returns:
            features (B, D, h, w), where h and w are H and W in patches unless the recipe works on another model's grid;
            and cls (B, D) if the recipe keeps one. Neither is L2-normalised. With "vanilla", `cls` equals
            `encode_image`.

        Raises:
            ImageError: pixels have another shape, or a side is not a multiple of the patch.
            RecipeError: the recipe does not fit this tower, lacks an input, or is given one that it does not read.
        """

    def at_precision(self, precision: str) -> Backbone:
        """This model with the linear layers of its image tower at another precision, for dense features.

        Args:
            precision: "float32"; "int8" (CPU only; 8-bit weights and tokens, see docs/speed.md); "bfloat16"; "float16";
                "float32-packed" (CPU only; a copy of the weights in the order of the library that multiplies);
                "auto" is the fastest one here, float32 if this model has no other.

        Returns:
            A backbone that shares this one's weights; this one is unchanged. `encode_image` and the text side stay
            float32.

        Raises:
            ModelError: there is no such precision, or not for this model or device.
        """
        if precision == AUTO:
            return self._at_fastest()
        if precision == self.precision:
            return self
        raise PrecisionError(f"model '{self.name}' runs in {self.precision} only; leave precision out")

    def _at_fastest(self) -> Backbone:
        """This model at the fastest precision on its device; `auto` says why it was chosen."""
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
        """The recipe for a name, or the default one for None; None for a model without recipes.

        Args:
            position_rule: replaces the recipe's own. compat: take the recipe as its authors published it.

        Raises:
            RecipeError: there is no such recipe or rule.
        """
        if not isinstance(compat, bool):
            raise RecipeError(f"compat is True or False, got {compat!r}")
        given = self.default_recipe if recipe is None else recipe
        return None if given is None else variant(get(given), position_rule=position_rule, compat=compat)

    def look(self, pixels: torch.Tensor, recipe: Recipe, hints: Hints) -> Hints:
        """Run the hints' models on pixels (B, 3, H, W) normalised for this backbone, and replace them by features.

        Raises:
            RecipeError: a proxy needs another kind of backbone.
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
                f"this proxy reads CLIP's own tokens, which model '{self.name}' does not have; use another proxy"
            )
        kind = recipe.proxy.features if recipe.proxy is not None else "tokens"
        features: torch.Tensor = proxy.from_clip(pixels, self.mean, self.std, kind).to(self.device)
        require_finite(features, f"features of proxy '{getattr(proxy, 'name', type(proxy).__name__)}'")
        return features

    def start(self, pixels: torch.Tensor, recipe: Recipe, hints: Hints) -> State:
        """Run one batch of windows as far as they are independent; `finish` does the rest, see `recipes.run`.

        Args:
            pixels: (B, 3, H, W) normalised, sides multiples of the patch. hints: for these pixels, after `look`.

        Raises:
            RecipeError: this model has no recipes.
        """
        raise RecipeError(f"model '{self.name}' has no attention to rewire; recipe '{recipe.name}' does not apply")

    def finish(self, state: State, recipe: Recipe, hints: Hints) -> DenseFeatures:
        """Run the rest of a recipe, on one window's state or on the joined state of all windows of an image.

        Raises:
            RecipeError: this model has no recipes.
        """
        raise RecipeError(f"model '{self.name}' has no attention to rewire; recipe '{recipe.name}' does not apply")

    @property
    def picture_size(self) -> tuple[int, int]:
        """(H, W) of whole pictures: the size it was trained at, 224 for a model without one."""
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
        """A hash that changes whenever text embeddings would; the key of the text cache."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the weights."""

    def score(
        self, dense: DenseFeatures, text_TD: torch.Tensor, foreground_T: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Score T text embeddings at every patch, usually by the cosine: (B, h, w, T) float32.

        Args:
            dense: the result of `encode_dense`. text_TD: (T, D) unit rows from `TextClassifier`, including the row of
                `unknown`. A model may score a row relative to the others, so all rows go in one call.
            foreground_T: (T,) bool, which rows are classes rather than background words; None means all.
        """
        return dense.score(text_TD, foreground_T)

    def unknown(self, text_TD: torch.Tensor) -> torch.Tensor | None:
        """One more row (D,) that stands for "none of these T", or None if the model has no such notion.

        Only `score` reads it; it need not resemble other rows, and is neither averaged nor normalised.
        """
        return None

    def held_text(self, texts: Sequence[str], templates: tuple[str, ...]) -> dict[str, torch.Tensor]:
        """Stored unit rows (D,) for some of the texts in these templates; most models have none."""
        return {}

    def reach(self, words: Sequence[str]) -> list[Reach]:
        """How each word is understood and how far that can be trusted; a text tower makes no claims."""
        return [Reach(word) for word in words]

    def listed_words(self) -> tuple[str, ...]:
        """Words that this model was taught or has in a table, for which `reach` is specific; a text tower has none."""
        return ()

    def narrower_words(self) -> Mapping[str, str]:
        """Further words that are read as a broader listed word, with that word; a text tower has none."""
        return {}

    def alike(self, words: Sequence[str]) -> list[list[str]]:
        """Groups of words that this model cannot tell apart; a text tower makes no claims."""
        return []

    def doubts(self, words: Iterable[str]) -> tuple[str, ...]:
        """Warnings about words that this model does not know, or knows weakly, a sentence each; for every pipeline.

        Args:
            words: labels, their synonyms and background words; repeated and empty ones are allowed.
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
