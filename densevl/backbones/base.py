"""The contract between a model and everything above it: pixels in, dense features out.

Shape letters: B batch, D joint-space width, H/W pixels, h/w patch grid, T text queries.
A backbone may be CLIP (scores are cosines) or something else that can turn words and places into scores
(the photo model); pipelines only use what stands here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from densevl.errors import ModelError, ProtocolError, RecipeError
from densevl.inference.windows import BLENDS, WindowGrid
from densevl.recipes.catalogue import get
from densevl.recipes.features import DenseFeatures
from densevl.recipes.scoring import score

if TYPE_CHECKING:
    from densevl.recipes import Recipe


@dataclass(frozen=True)
class Protocol:
    """How a photo is fed to the tower: resize, then windows.

    Raises:
        ProtocolError: an impossible value.

    Attributes:
        short_side: the short side is resized to this many pixels, keeping the aspect; None keeps the size.
        long_side: the long side never exceeds this many pixels (mmcv's keep-ratio rule).
        crop: side of the square windows in pixels; None means one window, the whole image.
        stride: step between windows in pixels; the last window is moved back inside the image. None lays tiles: as
            few windows of at most `crop` as cover the image, of even size, with a patch of overlap. The papers take a
            stride of half the crop, which runs the tower about twice as often (docs/speed.md).
        blend: where overlapping windows are averaged: "pixel", each upsampled first (SCLIP and most papers), or
            "patch", on one patch grid for the whole image to which window offsets are snapped (Trident).
        logit_scale: scores are multiplied by this before the softmax that makes probabilities.
    """

    short_side: int | None = 336
    long_side: int = 2048
    crop: int | None = 224
    stride: int | None = None
    blend: str = "pixel"
    logit_scale: float = 40.0

    def __post_init__(self) -> None:
        for name in ("short_side", "long_side", "crop", "stride"):
            value = getattr(self, name)
            optional = value is None and name in ("short_side", "crop", "stride")
            if not optional and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ProtocolError(f"{name} is {value!r}; it is a number of pixels, at least 1")
        if self.crop is not None and self.stride is not None and self.stride > self.crop:
            raise ProtocolError(
                f"stride {self.stride} leaves gaps between windows of crop {self.crop}; take a stride up to {self.crop}"
            )
        if self.blend not in BLENDS:
            raise ProtocolError(f"blend is {self.blend!r}; it is one of {', '.join(BLENDS)}")
        if not (isinstance(self.logit_scale, (int, float)) and self.logit_scale > 0):
            raise ProtocolError(f"logit_scale is {self.logit_scale!r}; it is a number above 0")


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
        precision: of the image tower's linear layers, one of `backbones.precision.PRECISIONS`.
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
    protocol: Protocol = Protocol()
    background: ClassVar[str] = "none"
    precision: str = "float32"
    preprocess: Callable[..., torch.Tensor]

    @abstractmethod
    def encode_dense(
        self,
        pixels: torch.Tensor,
        recipe: str | Recipe | None = None,
        *,
        position_rule: str | None = None,
        text: torch.Tensor | None = None,
        proxy: Any = None,
        regions: torch.Tensor | None = None,
        boxes: torch.Tensor | None = None,
        sam: Any = None,
        compat: bool = False,
    ) -> DenseFeatures:
        """Encode pixels into patch features in the joint space of image and text.

        Args:
            pixels: (B, 3, H, W) float, normalised with `mean` and `std`; H and W are multiples of `patch_size`.
            recipe: a name from `densevl.recipes.names()` or a `Recipe`; None means `default_recipe`.
            position_rule: how the positional grid is resized for sizes other than the trained one; None takes the
                recipe's own (see `backbones.positions`).
            text: (T, D) unit rows, for recipes that look twice.
            proxy: features (B, P, h', w') of another model for these pixels, or a `Proxy`, for recipes that borrow its
                affinity.
            regions: (B, H, W) integer segment map, 0 where no segment is, for recipes whose attention stays within
                segments; (B, R, H, W) masks for those that pool.
            sam: a `SamProxy`, or its `LastAttention`, for recipes that spread the image by it.
            boxes: (B, 4) x0, y0, x1, y1 in pixels, for recipes guided by a box.
            compat: follow the authors' code where it differs from what it means to do; see the recipe's note.

        Returns:
            features (B, D, h, w), h and w being H and W in patches unless the recipe works on a proxy's finer grid, and
            cls (B, D) where the recipe leaves one; neither is L2-normalised. With "vanilla", `cls` equals
            `encode_image`.

        Raises:
            ImageError: pixels of another shape, or a side that is not a multiple of the patch.
            RecipeError: the recipe does not fit this tower, or lacks the text, proxy, regions or boxes it needs.
        """

    def at_precision(self, precision: str) -> Backbone:
        """This model with the linear layers of its image tower at another precision, for dense features.

        Args:
            precision: "float32"; "int8" (CPU only; 8-bit weights and tokens, see docs/speed.md); "bfloat16".

        Returns:
            A backbone that shares this one's weights; this one is left as it is. `encode_image` and the text side stay
            float32.

        Raises:
            ModelError: no such precision, or not for this model or device.
        """
        if precision == self.precision:
            return self
        raise ModelError(f"model '{self.name}' runs in {self.precision} only; leave precision out")

    def resolve(self, recipe: str | Recipe | None) -> Recipe | None:
        """The recipe meant by a name, or by leaving it out; None for a model without recipes.

        Raises:
            RecipeError: no such recipe.
        """
        given = recipe or self.default_recipe
        return None if given is None else get(given)

    def proxy_features(self, pixels: torch.Tensor, recipe: Recipe, proxy: Any) -> torch.Tensor:
        """Features (B, P, h', w') of a proxy for normalised pixels, of the kind the recipe reads.

        Args:
            pixels: (B, 3, H, W) normalised for this backbone. proxy: a `Proxy`, or features, which are returned as is.
        """
        if isinstance(proxy, torch.Tensor):
            return proxy
        if hasattr(proxy, "from_tower"):
            raise RecipeError(
                f"this proxy reads CLIP's own tokens, which model '{self.name}' has not; use another proxy"
            )
        kind = recipe.proxy.features if recipe.proxy is not None else "tokens"
        return proxy.from_clip(pixels, self.mean, self.std, kind).to(self.device)

    def encode_stitched(
        self,
        pixels: torch.Tensor,
        windows: WindowGrid,
        recipe: Recipe,
        *,
        batch: int,
        position_rule: str | None = None,
        text: torch.Tensor | None = None,
        proxy: Any = None,
        regions: torch.Tensor | None = None,
        sam: Any = None,
        compat: bool = False,
    ) -> DenseFeatures:
        """Encode a whole image window by window for a recipe that stitches; keywords as `encode_dense`.

        Args:
            pixels: (B, 3, H, W) normalised, any H and W. windows: laid with blend "patch". batch: windows per pass.

        Raises:
            RecipeError: this model cannot.
        """
        raise RecipeError(f"model '{self.name}' has no attention to rewire; recipe '{recipe.name}' does not apply")

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

    def score(self, dense: DenseFeatures, text_TD: torch.Tensor) -> torch.Tensor:
        """Score T text embeddings at every patch: cosines, (B, h, w, T) float32.

        Args:
            dense: what `encode_dense` gave. text_TD: (T, D) unit rows as `TextClassifier` makes them, `unknown`'s row
                among them. A model may score a row by what the others are, so all rows go in one call.
        """
        return score(dense, text_TD)

    def unknown(self, text_TD: torch.Tensor) -> torch.Tensor | None:
        """One more row (D,) that stands for "none of these T", or None if the model has no such notion.

        Only `score` reads it; it need not be like other rows, and is neither averaged nor normalised.
        """
        return None

    def uncovered(self, texts: Sequence[str]) -> list[str]:
        """The texts the model is known to have no idea of; a caller warns about them."""
        return []

    def normalize(self, rgb: np.ndarray) -> torch.Tensor:
        """uint8 RGB (H, W, 3) to normalised float32 (3, H, W) on the backbone's device."""
        chw = torch.from_numpy(np.array(rgb)).to(self.device).permute(2, 0, 1).float()
        mean = torch.tensor(self.mean, device=self.device).view(3, 1, 1) * 255
        std = torch.tensor(self.std, device=self.device).view(3, 1, 1) * 255
        return (chw - mean) / std
