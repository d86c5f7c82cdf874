"""A trained upsampler beside a `Segmenter`: what a recipe says at patches, at the pixels the photo is fed with.

It acts once on the grid of the whole photo, on which windows are averaged, never window by window. Shape letters: T
strings, E joint space, Y/X tokens of all windows, h/w patches of the whole photo, H/W pixels of the photo as it is fed.
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
"""Of the output: a photo that is fed larger is mixed at this size, and resized as scores at patches are."""


@dataclass
class Heard:
    """Features of all windows of one look at a photo, as they come."""

    parts: list[torch.Tensor] = field(default_factory=list)

    def __call__(self, dense: DenseFeatures) -> None:
        self.parts.append(dense.features)

    def features(self, windows: WindowGrid) -> torch.Tensor:
        """(1, Y, X, E), as window scores are laid."""
        return windows.assemble(torch.cat(self.parts).permute(0, 2, 3, 1).float(), 1)


class Upsampling:
    """An upsampler with the model and the recipe that it serves.

    Attributes: upsampler: of the file. linear: whether scores are cosines of features with words, which mixing
        commutes with; else scores themselves are mixed.
    """

    def __init__(
        self, upsampler: Upsampler, backbone: Backbone, recipe: Recipe | None, *, averaged: bool = False
    ) -> None:
        """Check that they fit.

        Args:
            averaged: scores are averaged over views or mixed with those of banks.

        Raises:
            RecipeError: an upsampler of features, and scores that are none, or features of another width.
        """
        self.upsampler, self.backbone = upsampler, backbone
        self.linear = has_features(recipe) and recipe is not None and recipe.spread is None and not averaged
        self._tower = False
        kind, wanted = upsampler.kind, upsampler.width
        if isinstance(upsampler, Jbu) and not self.linear:
            raise RecipeError(
                f"refine '{kind}' changes features, and here scores are more than cosines of them: leave views and "
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
        """Scores at the pixels of the photo (1, H, W, T), and the one window they lie on.

        Args:
            windows: of the scores. heard: the features of the first look. text: the strings of the scores. pixels:
                (1, 3, H, W) normalised for the model, as they were fed.

        Raises:
            RecipeError: an upsampler of features, and text that is weighted place by place; or a model whose scores lie
                on another grid than its features.
        """
        laid = (sum(map(len, heard.parts)), *heard.parts[0].shape[-2:])
        if laid != (len(windows), windows.rows.tokens, windows.cols.tokens):
            raise RecipeError(
                f"refine '{self.upsampler.kind}' reads features that lie as the scores do, and those of model "
                f"'{self.backbone.name}' do not: leave the refinement out, or take another model"
            )
        grid, text_TE = _whole(windows), text.vectors
        linear = self.linear and text.prompts is None
        if isinstance(self.upsampler, Jbu) and not linear:
            raise RecipeError(
                "refine 'jbu' changes features, and templates are weighted by place; leave one of them out"
            )
        size = _limited(windows.rows.length, windows.cols.length)
        features = regrid(heard.features(windows), windows, grid).permute(0, 3, 1, 2)
        keys = self._tokens(pixels, grid) if self._tower else features
        up = self.upsampler
        guidance = self._guidance(pixels, size)
        if linear:
            adjusted, bias_E = up.adjusted(features)
            few = len(text_TE) <= features.shape[1]
            maps = torch.einsum("behw,te->bthw", adjusted, text_TE) if few else adjusted
            length = (adjusted + bias_E[:, None, None]).norm(dim=1, keepdim=True)
            mixed = up(guidance, keys, torch.cat([maps, length], dim=1), size)
            mixed, length = mixed[:, :-1], mixed[:, -1:].clamp(min=1e-6)
            said = mixed if few else torch.einsum("behw,te->bthw", mixed, text_TE)
            scores = (said + (text_TE @ bias_E)[:, None, None]) / length
        else:
            scores = up(guidance, keys, regrid(scores_1YXT, windows, grid).permute(0, 3, 1, 2), size)
        return scores.permute(0, 2, 3, 1).contiguous(), _one_window(windows, size)

    def _guidance(self, pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """The photo as the upsampler was trained to see it: (1, 3, *size)."""
        mean, std, their_mean, their_std = (
            pixels.new_tensor(values).view(3, 1, 1) for values in (self.backbone.mean, self.backbone.std, MEAN, STD)
        )
        shown = (pixels * std + mean - their_mean) / their_std
        if tuple(shown.shape[-2:]) == size:
            return shown
        return F.interpolate(shown, size=size, mode="bilinear", antialias=True)

    def _tokens(self, pixels: torch.Tensor, grid: WindowGrid) -> torch.Tensor:
        """Patch tokens (1, D, h, w) of the tower as it was trained, of the whole photo, after its last norm."""
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
    """The upsampler that refinements name, of its file; None where they name none.

    Raises:
        OptionError: a name without a file, or a file without a name.
        WeightsError: a file of something else.
        RecipeError: it does not fit the model.
    """
    kind = next((name for name in refine if name in UPSAMPLERS), None)
    if kind is None and weights is None:
        return None
    if kind is None:
        raise OptionError(f"an upsampler is given and refine names none: add refine='{UPSAMPLERS[0]}' (--refine)")
    if weights is None:
        raise OptionError(
            f"refine '{kind}' reads a trained upsampler: give its file, upsampler=FILE (--upsampler FILE); none is in "
            "the package, see the page on upsampling for where they are published"
        )
    loaded = weights if isinstance(weights, Upsampler) else load_upsampler(kind, weights, str(backbone.device))
    if loaded.kind != kind:
        raise OptionError(f"refine names '{kind}' and the upsampler is of '{loaded.kind}'; name that")
    return Upsampling(loaded, backbone, recipe, averaged=averaged)


def _tower_width(backbone: Backbone) -> int | None:
    """The width of the tower's tokens, where they can be read after its last norm."""
    readout = getattr(getattr(backbone, "tower", None), "cls_readout", None)
    return readout[1].shape[0] if readout is not None else None


def _whole(windows: WindowGrid) -> WindowGrid:
    """One window over exactly the image, of as many tokens as its windows have for such a length."""
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
