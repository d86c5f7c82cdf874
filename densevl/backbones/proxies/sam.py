"""The image encoder of Segment Anything as a proxy (Kirillov et al., ICCV 2023); needs the package `segment-anything`.

Its position tables fit one square size. As in the package's own predictor, an image is placed in the top left corner of
that square, the rest is zero after normalisation, and the part of the grid that the image covers is cut out again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from densevl.backbones.proxies.base import Proxy
from densevl.errors import ImageError, ModelError
from densevl.proposals.sam.encoder import Projections, embed, project, run_block

# those of the package's `Sam`, on the 0-1 scale
MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)


@dataclass(frozen=True, eq=False)
class LastAttention(Projections):
    """The parts of the encoder's last attention, float32; N is all tokens of the square.

    Attributes:
        grid: (h, w) of the whole square. covered: (h, w) of its top left part that holds the image.
    """

    grid: tuple[int, int]
    covered: tuple[int, int]


class SamProxy(Proxy):
    """An `ImageEncoderViT`. "tokens" are the output of its neck; q, k and v have the width of its blocks."""

    def __init__(
        self, encoder: Any, *, name: str, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
    ) -> None:
        """Wrap an encoder of `segment_anything`; it is put in eval mode, without gradients.

        Args:
            encoder: `segment_anything.modeling.ImageEncoderViT` of any size.
            name: shown in messages. mean, std: RGB on the 0-1 scale; the defaults are SAM's.
        """
        self.encoder = encoder.eval().requires_grad_(False)
        self.name, self.mean, self.std = name, tuple(mean), tuple(std)
        self.image_size = int(self.encoder.img_size)
        self.patch_size = int(self.encoder.patch_embed.proj.kernel_size[0])
        self.embed_dim = int(self.encoder.neck[0].out_channels)

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    @torch.no_grad()
    def last_attention(self, pixels: torch.Tensor) -> LastAttention:
        """Queries, keys, values and relative position terms of the last block (Trident's global aggregation).

        Args:
            pixels: as for `encode`; `prepare` makes them from a CLIP's.

        Raises:
            ModelError: the last block attends in windows.
            ImageError: pixels are not as `encode` takes them.
        """
        self._check(pixels)
        block = self.encoder.blocks[-1]
        if block.window_size:
            raise ModelError(f"proxy '{self.name}': its last block attends in windows, not over the whole image")
        pixels = pixels.to(self.device, torch.float32)
        x = self._before_last(pixels)
        own = project(block.attn, block.norm1(x))
        return LastAttention(own.q, own.k, own.v, own.rel, (x.shape[1], x.shape[2]), self._covered(pixels))

    def _tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        x = run_block(self.encoder.blocks[-1], self._before_last(pixels))
        return self._cut(self.encoder.neck(x.permute(0, 3, 1, 2)), pixels)

    def _projections(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        block = self.encoder.blocks[-1]
        qkv = block.attn.qkv(block.norm1(self._before_last(pixels))).permute(0, 3, 1, 2)
        q, k, v = self._cut(qkv, pixels).chunk(3, dim=1)
        return q, k, v

    def _before_last(self, pixels: torch.Tensor) -> torch.Tensor:
        """The input of the last block over the whole square, (B, h, w, D)."""
        height, width = pixels.shape[-2:]
        x = embed(self.encoder, F.pad(pixels, (0, self.image_size - width, 0, self.image_size - height)))
        for block in self.encoder.blocks[:-1]:
            x = run_block(block, x)
        return x

    def _covered(self, pixels: torch.Tensor) -> tuple[int, int]:
        return pixels.shape[-2] // self.patch_size, pixels.shape[-1] // self.patch_size

    def _cut(self, x_BDhw: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        h, w = self._covered(pixels)
        return x_BDhw[..., :h, :w].contiguous()

    def _fitted(self, height: int, width: int) -> tuple[int, int]:
        """The long side becomes the square's; the short one the multiple of the patch nearest to the aspect ratio."""
        cells = self.image_size // self.patch_size
        longest = max(height, width)
        h, w = (max(1, round(cells * side / longest)) for side in (height, width))
        return h * self.patch_size, w * self.patch_size

    def _check(self, pixels: torch.Tensor) -> None:
        super()._check(pixels)
        if max(pixels.shape[-2:]) > self.image_size:
            raise ImageError(
                f"proxy '{self.name}' takes sides up to {self.image_size} pixels, not "
                f"{pixels.shape[-2]} x {pixels.shape[-1]}; from_clip resizes"
            )
