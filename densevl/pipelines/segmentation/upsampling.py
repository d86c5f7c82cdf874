"""Upsample a recipe's scores from patches to pixels of the photo, with a trained upsampler.

It runs once on the grid of the whole photo, in which windows are averaged, not on each window. Shape letters: T
strings, E joint space, Y/X tokens of all windows, h/w patches of the whole photo, H/W pixels of the resized photo.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from densevl.backbones import Backbone
from densevl.errors import OptionError, RecipeError
from densevl.inference.views import regrid
from densevl.inference.windows import AxisWindows, WindowGrid
from densevl.pipelines.segmentation.refinement import UPSAMPLERS
from densevl.recipes import Recipe
from densevl.recipes.features import DenseFeatures
from densevl.recipes.trunk import run_trunk
from densevl.refine.upsampling import Jbu, Upsampler, load_upsampler
from densevl.refine.upsampling.base import MEAN, STD
from densevl.regions.operators.dense import has_features
from densevl.vocabulary.text_classifier import TextEmbeddings

MOST_PIXELS = 2**20
"""Limit of the output. A larger photo is upsampled to this size, and then interpolated like scores at patches."""


@dataclass
class Heard:
    """Collects the features of all windows of one pass over a photo."""

    parts: list[torch.Tensor] = field(default_factory=list)

    def __call__(self, dense: DenseFeatures) -> None:
        self.parts.append(dense.features)

    def features(self, windows: WindowGrid) -> torch.Tensor:
        """Assemble the features in the layout of window scores: (1, Y, X, E)."""
        return windows.assemble(torch.cat(self.parts).permute(0, 2, 3, 1).float(), 1)


class Upsampling:
    """An upsampler with the model and the recipe it is used with.

    Attributes: upsampler: the loaded upsampler. linear: whether scores are cosines of features with words, so that
        features may be mixed before scoring. Otherwise scores are mixed.
    """

    def __init__(
        self, upsampler: Upsampler, backbone: Backbone, recipe: Recipe | None, *, averaged: bool = False
    ) -> None:
        """Check that the upsampler fits the model and the recipe.

        Args:
            averaged: whether scores are averaged over views or mixed with those of banks.

        Raises:
            RecipeError: If it upsamples features and scores are not linear in them, or features have another width.
        """
        self.upsampler, self.backbone = upsampler, backbone
        self.linear = has_features(recipe) and recipe is not None and recipe.spread is None and not averaged
        self._tower = False
        kind, wanted = upsampler.kind, upsampler.width
        if isinstance(upsampler, Jbu) and not self.linear:
            raise RecipeError(
                f"refine '{kind}' changes features, and these scores are not just cosines of them: leave views and "
                "bank out and take a recipe that scores by cosines, such as maskclip, or refine='anyup'"
            )
        if wanted not in (None, backbone.embed_dim):
            self._tower = not isinstance(upsampler, Jbu) and wanted == _tower_width(backbone)
            if not self._tower:
                raise RecipeError(
                    f"refine '{kind}': its file is for features of width {wanted}, and those of model "
                    f"'{backbone.name}' have {backbone.embed_dim}: give the file for this model, or take refine='anyup'"
                )

    def __call__(
        self,
        scores_1YXT: torch.Tensor,
        windows: WindowGrid,
        heard: Heard,
        text: TextEmbeddings,
        pixels: torch.Tensor,
    ) -> tuple[torch.Tensor, WindowGrid]:
        """Return scores at the pixels of the photo (1, H, W, T), and the single window they lie on.

        Args:
            windows: windows of the scores. heard: features of the first view. text: the strings of the scores.
            pixels: (1, 3, H, W) normalised for the model, as they were fed.

        Raises:
            RecipeError: If it upsamples features and the text is weighted by place, or if the model's scores and
                features are on different grids.
        """
        laid = (sum(map(len, heard.parts)), *heard.parts[0].shape[-2:])
        if laid != (len(windows), windows.rows.tokens, windows.cols.tokens):
            raise RecipeError(
                f"refine '{self.upsampler.kind}' needs features on the same grid as the scores, and those of model "
                f"'{self.backbone.name}' are not: leave the refinement out, or take another model"
            )
        grid, text_TE = _whole(windows), text.vectors
        linear = self.linear and text.prompts is None
        if isinstance(self.upsampler, Jbu) and not linear:
            raise RecipeError(
                "refine 'jbu' changes features, and these templates are weighted by place; leave one of them out"
            )
        size = _limited(windows.rows.length, windows.cols.length)
        features = regrid(heard.features(windows), windows, grid).permute(0, 3, 1, 2)
        keys = self._tokens(pixels, grid) if self._tower else features
        upsample = self.upsampler
        guidance = self._guidance(pixels, size)
        if linear:
            adjusted, bias_E = upsample.adjusted(features)
            few = len(text_TE) <= features.shape[1]
            maps = torch.einsum("behw,te->bthw", adjusted, text_TE) if few else adjusted
            length = (adjusted + bias_E[:, None, None]).norm(dim=1, keepdim=True)
            mixed = upsample(guidance, keys, torch.cat([maps, length], dim=1), size)
            mixed, length = mixed[:, :-1], mixed[:, -1:].clamp(min=1e-6)
            products = mixed if few else torch.einsum("behw,te->bthw", mixed, text_TE)
            scores = (products + (text_TE @ bias_E)[:, None, None]) / length
        else:
            scores = upsample(guidance, keys, regrid(scores_1YXT, windows, grid).permute(0, 3, 1, 2), size)
        return scores.permute(0, 2, 3, 1).contiguous(), _one_window(windows, size)

    def _guidance(self, pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Normalise and resize the photo as in the upsampler's training: (1, 3, *size)."""
        mean, std, their_mean, their_std = (
            pixels.new_tensor(values).view(3, 1, 1) for values in (self.backbone.mean, self.backbone.std, MEAN, STD)
        )
        shown = (pixels * std + mean - their_mean) / their_std
        if tuple(shown.shape[-2:]) == size:
            return shown
        return F.interpolate(shown, size=size, mode="bilinear", antialias=True)

    def _tokens(self, pixels: torch.Tensor, grid: WindowGrid) -> torch.Tensor:
        """Return patch tokens (1, D, h, w) of the unchanged tower after its last norm, for the whole photo."""
        tower: Any = self.backbone.tower  # type: ignore[attr-defined]
        patch = tower.patch_size
        height, width = (max(1, round(side / patch)) * patch for side in pixels.shape[-2:])
        fitted = F.interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)
        x_BND = tower.cls_readout[0](run_trunk(tower, fitted, "size_antialias", leave=0, taps=frozenset()).x_BND)
        tokens = x_BND[:, tower.prefix :].mT.unflatten(2, (height // patch, width // patch)).float()
        size = grid.rows.tokens, grid.cols.tokens
        same = tuple(tokens.shape[-2:]) == size
        return tokens if same else F.interpolate(tokens, size=size, mode="bilinear", align_corners=False)


def upsampling(
    refine: tuple[str, ...],
    weights: str | Path | Upsampler | None,
    backbone: Backbone,
    recipe: Recipe | None,
    *,
    averaged: bool,
) -> Upsampling | None:
    """Load the upsampler that the refinements name; None if they name none.

    Raises:
        OptionError: If a name is given without a file, or a file without a name.
        WeightsError: If the file is not such an upsampler.
        RecipeError: If it does not fit the model.
    """
    kind = next((name for name in refine if name in UPSAMPLERS), None)
    if kind is None and weights is None:
        return None
    if kind is None:
        raise OptionError(f"an upsampler is given but refine names none: add refine='{UPSAMPLERS[0]}' (--refine)")
    if weights is None:
        raise OptionError(
            f"refine '{kind}' needs a trained upsampler: give its file with upsampler=FILE (--upsampler FILE); the "
            "package contains none, see the page on upsampling for where they are published"
        )
    loaded = weights if isinstance(weights, Upsampler) else load_upsampler(kind, weights, str(backbone.device))
    if loaded.kind != kind:
        raise OptionError(f"refine names '{kind}' but the upsampler is '{loaded.kind}'; name that")
    return Upsampling(loaded, backbone, recipe, averaged=averaged)


def _tower_width(backbone: Backbone) -> int | None:
    """Return the width of the tower's tokens, if they can be read after its last norm."""
    readout = getattr(getattr(backbone, "tower", None), "cls_readout", None)
    return readout[1].shape[0] if readout is not None else None


def _whole(windows: WindowGrid) -> WindowGrid:
    """Return one window over exactly the image, with the windows' density of tokens."""
    axes = (windows.rows, windows.cols)
    height, width = (max(1, round(axis.length * axis.tokens / axis.span)) for axis in axes)
    return _one_window(windows, (height, width))


def _one_window(windows: WindowGrid, size: tuple[int, int]) -> WindowGrid:
    axes = zip((windows.rows, windows.cols), size, strict=True)
    rows, cols = (AxisWindows(axis.length, (0,), axis.length, tokens) for axis, tokens in axes)
    return WindowGrid(rows, cols)


def _limited(height: int, width: int) -> tuple[int, int]:
    shrunk = min(1.0, (MOST_PIXELS / (height * width)) ** 0.5)
    return max(1, round(height * shrunk)), max(1, round(width * shrunk))
