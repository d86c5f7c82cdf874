"""`Proxy`: one interface for vision-only models with patch features, such as DINO and the encoder of SAM.

Shape letters: B batch, D width of the features, H/W pixels, h/w patch grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from densevl.errors import ImageError, ModelError, suggest

KINDS = ("tokens", "q", "k", "v", "q+k")
"""The kinds of `encode`: tokens after the last norm, projections of the last block, or their sum (CorrCLIP)."""


class Proxy(ABC):
    """A frozen vision model, from pixels to patch features; loading puts it in eval mode without gradients.

    Attributes:
        name: the name given to `load_proxy`.
        patch_size: pixels per patch; `encode` takes sides that are multiples of it.
        embed_dim: D of the kind "tokens".
        mean, std: per-channel RGB statistics on the 0-1 scale.
        position_rule: how the position table is resized to other grids (see `backbones.positions`), or None if
            there is no choice.
    """

    name: str
    patch_size: int
    embed_dim: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    position_rule: str | None = None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the weights."""

    @abstractmethod
    def _tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to (B, D, h, w) after the last norm."""

    @abstractmethod
    def _projections(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, 3, H, W) to q, k, v of the last block, (B, A*d, h, w) each, heads concatenated."""

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor, kind: str = "tokens") -> torch.Tensor:
        """Encode images into patch features; an image's features do not depend on the others in the batch.

        Args:
            pixels: (B, 3, H, W) float, normalised by this proxy's own `mean` and `std`, H and W multiples of its patch.
            kind: one of `KINDS`. q, k and v are the linear projections of the last block, heads concatenated, before
                any norm or rotation of heads; "q+k" is the sum of the two.

        Returns:
            (B, D, h, w) float32.

        Raises:
            ModelError: the kind is unknown.
            ImageError: the shape is not as above.
        """
        if kind not in KINDS:
            raise ModelError(f"proxy '{self.name}' has no '{kind}'{suggest(kind, KINDS)}; known: {', '.join(KINDS)}")
        self._check(pixels)
        pixels = pixels.to(self.device, torch.float32)
        if kind == "tokens":
            return self._tokens(pixels)
        q, k, v = self._projections(pixels)
        return q + k if kind == "q+k" else {"q": q, "k": k, "v": v}[kind]

    @torch.no_grad()
    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode pixels, as in `encode`, into (B, D): the class token, or the mean of the places without one."""
        self._check(pixels)
        return self._whole(pixels.to(self.device, torch.float32))

    def _whole(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._tokens(pixels).mean(dim=(2, 3))

    def prepare(self, pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
        """Convert pixels made for another model into this one's.

        Sides that are not multiples of the patch are resized, bilinearly and without antialiasing, to the next larger
        multiple, so that the grid covers exactly the image. Other images are not resampled. ProxyCLIP pads its windows
        to multiples of 56 instead; such padded pixels pass unchanged.

        Args:
            pixels: (B, 3, H, W) float, normalised by `mean` and `std`, per channel, RGB on the 0-1 scale.

        Returns:
            (B, 3, H', W') float32 on the proxy's device, ready for `encode`.

        Raises:
            ImageError: pixels are not (B, 3, H, W).
        """
        self._check_rank(pixels)
        pixels = pixels.to(self.device, torch.float32)
        was_mean, was_std, own_mean, own_std = (
            torch.tensor(values, device=self.device).view(3, 1, 1) for values in (mean, std, self.mean, self.std)
        )
        pixels = (pixels * was_std + was_mean - own_mean) / own_std
        size = self._fitted(pixels.shape[-2], pixels.shape[-1])
        if size == tuple(pixels.shape[-2:]):
            return pixels
        return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)

    def from_clip(
        self, pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float], kind: str = "tokens"
    ) -> torch.Tensor:
        """`prepare`, then `encode`: features of pixels that were normalised for a CLIP, (B, D, h, w) float32."""
        return self.encode(self.prepare(pixels, mean, std), kind)

    def _fitted(self, height: int, width: int) -> tuple[int, int]:
        """The size an image of this size is resized to."""
        return -(-height // self.patch_size) * self.patch_size, -(-width // self.patch_size) * self.patch_size

    def _check_rank(self, pixels: torch.Tensor) -> None:
        if pixels.ndim != 4 or pixels.shape[1] != 3 or 0 in pixels.shape:
            raise ImageError(f"proxy '{self.name}' takes pixels (B, 3, H, W), not {tuple(pixels.shape)}")

    def _check(self, pixels: torch.Tensor) -> None:
        self._check_rank(pixels)
        height, width = pixels.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ImageError(
                f"proxy '{self.name}' takes sides that are multiples of {self.patch_size} pixels, not {height} x "
                f"{width}; from_clip resizes"
            )
