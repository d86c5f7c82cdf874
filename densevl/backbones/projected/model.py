"""`Projected`: two towers and two trained projectors as one backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from densevl import digest
from densevl.backbones.base import Backbone
from densevl.backbones.projected.projector import KIND, read
from densevl.backbones.projected.towers import Load, Words, load_vision, stamp
from densevl.errors import RecipeError
from densevl.recipes import Hints, Recipe
from densevl.recipes.features import DenseFeatures

if TYPE_CHECKING:
    from PIL.Image import Image


class Projected(Backbone):
    """A file of `tools.projector train`: patches and words through their projectors, compared by cosines.

    Papers: ShareLock (Ruthardt et al., 2024); "Harnessing Frozen Unimodal Encoders for Flexible Multimodal Alignment"
    (Maniparambil et al., CVPR 2025).
    """

    def __init__(self, path: str | Path, load: Load, *, device: str | None = None) -> None:
        """Load the projectors and the two towers that the file names.

        Args:
            path: the file. load: loads a backbone by name. device: of a proxy's tower.

        Raises:
            WeightsError: the file is damaged, of another kind, or for other weights of the towers.
            ModelError: a tower is not at hand.
        """
        path = KIND.path(path)
        joined = read(path)
        self._vision, self._words = load_vision(joined.vision, load, device), Words(joined.words, load)
        if stamp(self._vision, self._words) != joined.stamp:
            raise KIND.bad(path, f"was trained on other weights of '{joined.vision}' or '{joined.words}'")
        self._image, self._text = joined.image.to(self.device), joined.text.to(self.device)
        self.name, self.embed_dim, self.logit_scale = f"projected:{path.name}", joined.text.widths[-1], joined.scale
        self.patch_size, self.mean, self.std = self._vision.patch_size, self._vision.mean, self._vision.std
        self.context_length = self._words.context_length
        self.protocol = replace(self._vision.protocol, logit_scale=joined.scale, calibration=(1.0, 0.0))
        clip = self._vision.backbone
        self.default_recipe = None if clip is None else clip.default_recipe
        self.summary = f"{joined.vision} and {joined.words}, joined by projectors: what their training pairs held"
        self.reading = {"form": "projectors", "vision": joined.vision, "text": joined.words}

    @property
    def picture_size(self) -> tuple[int, int]:
        clip = self._vision.backbone
        return super().picture_size if clip is None else clip.picture_size

    @torch.no_grad()
    def encode_dense(
        self,
        pixels: torch.Tensor,
        recipe: str | Recipe | None = None,
        *,
        hints: Hints | None = None,
        position_rule: str | None = None,
        compat: bool = False,
    ) -> DenseFeatures:
        """Encode patches and project them, with a recipe if the tower is a CLIP; see `Backbone.encode_dense`."""
        if self._vision.backbone is None and recipe is not None:
            raise RecipeError(f"model '{self.name}' has no attention to rewire: leave the recipe out")
        how: dict[str, Any] = {"recipe": recipe, "hints": hints, "position_rule": position_rule, "compat": compat}
        found = self._vision.dense(pixels, **how)
        if found.layers:
            raise RecipeError(f"recipe '{recipe}' scores several sources, which projectors do not join: take another")
        cls = None if found.cls is None else self._image(found.cls.float())
        return replace(found, features=self._image.places(found.features.float()), cls=cls)

    @torch.no_grad()
    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._image(self._vision.whole(pixels).float())

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        if not texts:
            return torch.zeros(0, self.embed_dim)
        return self._text(self._words(texts).to(self.device))

    def preprocess(self, image: Image) -> torch.Tensor:
        """Prepare a PIL image for `encode_image`: normalised (3, S, S)."""
        return self._vision.preprocess(image)

    @property
    def text_fingerprint(self) -> str:
        return digest.of_text(self._words.fingerprint, digest.of_tensors(self._text.state_dict().items()))

    @property
    def device(self) -> torch.device:
        return self._vision.device
