"""AnyUp and JAFAR: pixels of the photo attend to patches, which are mixed by attention averaged over heads.

AnyUp (Wimmer et al., ICLR 2026) takes features of any model, because their channels are compared with a set of kernels.
A pixel sees the patches within a tenth of each side. JAFAR (Couairon et al., NeurIPS 2025) is trained for features of
one model, which scale and shift its keys; a pixel sees all patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch.nn import functional as F

from densevl.refine.upsampling.base import Upsampler, padded

HEADS, GROUPS, BLOCKS = 4, 8, 2
HELD = 2**24  # attention weights computed at once


class _Attending(Upsampler):
    """The base of both.

    Attributes: names: of the parts of a residual block: norm, convolution, norm, convolution. window: of each side.
    """

    names: ClassVar[tuple[str, str, str, str]]
    window: ClassVar[float | None] = None

    def __call__(
        self, guidance: torch.Tensor, features: torch.Tensor, maps: torch.Tensor, size: tuple[int, int]
    ) -> torch.Tensor:
        """See `Upsampler.__call__`."""
        seen = self._rotated(self._encoded("image_encoder", guidance))
        q = F.adaptive_avg_pool2d(self._encoded("query_encoder", seen), size)
        k = F.adaptive_avg_pool2d(self._encoded("key_encoder", seen), (features.shape[-2], features.shape[-1]))
        del seen
        k = self._keys(k, F.normalize(features, dim=1))
        q = F.conv2d(self._queries(q), self.tensors["cross_decode.conv2d.weight"], padding=1)
        q, k = (self._projected(name, x) for name, x in (("q", q), ("k", k)))
        return attend(q, k, maps, self.window)

    def _queries(self, q: torch.Tensor) -> torch.Tensor:
        return q

    def _keys(self, k: torch.Tensor, unit_BDhw: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _encoded(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """A convolution with a mirrored border, and residual blocks."""
        weight = self.tensors[f"{name}.0.weight"]
        return self._blocks(name, F.conv2d(padded(x, weight.shape[-1] // 2), weight))

    def _blocks(self, name: str, x: torch.Tensor) -> torch.Tensor:
        for index in range(1, BLOCKS + 1):
            at = f"{name}.{index}."
            norm, conv, norm2, conv2 = (f"{at}{part}." for part in self.names)
            y = F.conv2d(F.silu(self._normed(norm, x)), self.tensors[f"{conv}weight"])
            y = F.conv2d(F.silu(self._normed(norm2, y)), self.tensors[f"{conv2}weight"])
            shortcut = self.tensors.get(f"{at}shortcut.weight")
            x = y + (x if shortcut is None else F.conv2d(x, shortcut))
        return x

    def _normed(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x, GROUPS, self.tensors[f"{name}weight"], self.tensors[f"{name}bias"])

    def _rotated(self, x: torch.Tensor) -> torch.Tensor:
        """Rotate pairs of channels by their place, 0 at the first pixel and 1 at the last."""
        rows, cols = (torch.linspace(0, 1, side, device=x.device, dtype=x.dtype) for side in x.shape[-2:])
        freqs = self.tensors["rope.freqs"].to(x)
        angle = rows[:, None, None] * freqs[0] + cols[:, None] * freqs[1]
        angle = angle.permute(2, 0, 1)
        first, second = x.chunk(2, dim=1)
        return x * angle.cos() + torch.cat([-second, first], dim=1) * angle.sin()

    def _projected(self, letter: str, x: torch.Tensor) -> torch.Tensor:
        """Queries or keys, normalised and projected: (A, d, H, W)."""
        at, number = "cross_decode.cross_attn.", "qkv".index(letter)
        x = x[0].permute(1, 2, 0)
        x = F.rms_norm(x, x.shape[-1:], self.tensors[f"{at}norm_{letter}.weight"])
        joint = self.tensors.get(f"{at}attention.in_proj_weight")
        weight = self.tensors[f"{at}attention.{letter}_proj_weight"] if joint is None else joint.chunk(3)[number]
        x = F.linear(x, weight, self.tensors[f"{at}attention.in_proj_bias"].chunk(3)[number])
        return x.permute(2, 0, 1).unflatten(0, (HEADS, -1))

    def _encoder_shapes(self, name: str, own: tuple[int, ...], inner: int, width: int) -> dict[str, tuple[int, ...]]:
        """An encoder with a given shape of its first tensor, `inner` output channels and blocks of `width`."""
        found = {f"{name}.0.{'basis' if own[1] == 1 else 'weight'}": own}
        for index in range(1, BLOCKS + 1):
            coming = inner if index == 1 else width
            at = f"{name}.{index}."
            for part, sides in zip(
                self.names, ((coming,), (width, coming, 1, 1), (width,), (width, width, 1, 1)), strict=True
            ):
                found[f"{at}{part}.weight"] = sides
                if len(sides) == 1:
                    found[f"{at}{part}.bias"] = sides
            if coming != width:
                found[f"{at}shortcut.weight"] = (width, coming, 1, 1)
        return found

    def _common_shapes(self, tensors: Mapping[str, torch.Tensor]) -> tuple[int, dict[str, tuple[int, ...]]]:
        width, kernel = tensors["image_encoder.0.weight"].shape[0], tensors["image_encoder.0.weight"].shape[-1]
        at = "cross_decode.cross_attn."
        found = self._encoder_shapes("image_encoder", (width, 3, kernel, kernel), width, width)
        for name in ("key_encoder", "query_encoder"):
            found |= self._encoder_shapes(name, (width, width, 1, 1), width, width)
        return width, {
            **found,
            "cross_decode.conv2d.weight": (width, width, 3, 3),
            "rope.freqs": (2, width),
            f"{at}norm_q.weight": (width,),
            f"{at}norm_k.weight": (width,),
            f"{at}attention.in_proj_bias": (3 * width,),
            f"{at}attention.out_proj.weight": (width, width),
            f"{at}attention.out_proj.bias": (width,),
        }


class AnyUp(_Attending):
    """AnyUp: any features, at any size. Files: anyup_multi_backbone.pth, anyup_paper.pth."""

    kind = "anyup"
    names = ("block.0", "block.2", "block.3", "block.5")
    window = 0.1

    @staticmethod
    def mark(tensors: Mapping[str, torch.Tensor]) -> bool:
        """See `Upsampler.mark`."""
        wanted = ("key_features_encoder.0.basis", "aggregation.0.weight", "image_encoder.0.weight")
        return all(name in tensors and tensors[name].ndim == 4 for name in wanted)

    def shapes(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
        """See `Upsampler.shapes`."""
        width, found = self._common_shapes(tensors)
        kernels, side = tensors["key_features_encoder.0.basis"].shape[0], tensors["aggregation.0.weight"].shape[-1]
        reach = tensors["key_features_encoder.0.basis"].shape[-1]
        return {
            **found,
            **self._encoder_shapes("key_features_encoder", (kernels, 1, reach, reach), kernels, width),
            **self._encoder_shapes("aggregation", (width, 2 * width, side, side), width, width),
            "cross_decode.cross_attn.attention.in_proj_weight": (3 * width, width),
        }

    def _keys(self, k: torch.Tensor, unit_BDhw: torch.Tensor) -> torch.Tensor:
        encoded = self._blocks("key_features_encoder", self._unified(unit_BDhw))
        return self._encoded("aggregation", torch.cat([k, encoded], dim=1))

    def _unified(self, unit_BDhw: torch.Tensor) -> torch.Tensor:
        """Responses of the channels to K kernels, in K channels for any D: (1, K, h, w).

        The D K responses, channel by channel, are read as K rows of D, with softmaxes along the columns. So does the
        code that trained the published files, whereas the paper has a softmax over the kernels of each channel.
        """
        basis = self.tensors["key_features_encoder.0.basis"]
        border, (height, width), count = basis.shape[-1] // 2, unit_BDhw.shape[-2:], len(basis)
        inside = F.conv2d(torch.ones_like(unit_BDhw[:, :1]), torch.ones_like(basis[:1]), padding=border)[0, 0]
        framed_DHW = F.pad(unit_BDhw[0], (border,) * 4)
        step, bands = max(1, HELD // (count * len(framed_DHW) * width)), []
        for top in range(0, height, step):
            rows = framed_DHW[:, None, top : min(top + step, height) + 2 * border]
            answers = F.conv2d(rows, basis) / inside[top : top + step]
            bands.append(answers.reshape(count, -1, *answers.shape[-2:]).softmax(dim=0).mean(dim=1))
        return torch.cat(bands, dim=1)[None]


class Jafar(_Attending):
    """JAFAR: features of the model it was trained for."""

    kind = "jafar"
    names = ("norm1", "conv1", "norm2", "conv2")

    @staticmethod
    def mark(tensors: Mapping[str, torch.Tensor]) -> bool:
        """See `Upsampler.mark`."""
        wanted = ("sft_key.gamma.weight", "key_features_encoder.0.weight", "image_encoder.0.weight")
        return all(name in tensors and tensors[name].ndim == 4 for name in wanted)

    def shapes(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
        """See `Upsampler.shapes`."""
        width, found = self._common_shapes(tensors)
        self.width = tensors["key_features_encoder.0.weight"].shape[1]
        at = "cross_decode.cross_attn."
        found |= self._encoder_shapes("key_features_encoder", (width, self.width, 1, 1), width, width)
        found |= {f"sft_key.{name}.weight": (width, width, 1, 1) for name in ("gamma", "beta")}
        found[f"{at}norm_v.weight"] = (self.width,)
        if self.width == width:
            return {**found, f"{at}attention.in_proj_weight": (3 * width, width)}
        sides = {"q": width, "k": width, "v": self.width}
        return found | {f"{at}attention.{letter}_proj_weight": (width, side) for letter, side in sides.items()}

    def _queries(self, q: torch.Tensor) -> torch.Tensor:
        return F.group_norm(q, GROUPS)

    def _keys(self, k: torch.Tensor, unit_BDhw: torch.Tensor) -> torch.Tensor:
        encoded = self._encoded("key_features_encoder", unit_BDhw)
        scale, shift = (F.conv2d(encoded, self.tensors[f"sft_key.{name}.weight"]) for name in ("gamma", "beta"))
        return scale * F.group_norm(k, GROUPS) + shift


def attend(
    q_AdHW: torch.Tensor, k_Adhw: torch.Tensor, maps: torch.Tensor, window: float | None, held: int = HELD
) -> torch.Tensor:
    """Mix maps (1, C, h, w) for each query by attention that is averaged over heads: (1, C, H, W).

    Args:
        window: a query sees the patches that lie within this fraction of each side; None for all.
        held: number of weights computed at once; the result does not depend on it.
    """
    heads, width, height, across = q_AdHW.shape
    h, w = k_Adhw.shape[-2:]
    mixed = maps.new_empty(maps.shape[1], height, across)
    hidden_Ww = ~visible(across, w, window, maps.device)
    for top, bottom, first, last in _bands(height, h, window, max(1, held // (heads * across * h * w))):
        rows_AQd = q_AdHW[:, :, top:bottom].flatten(2).mT
        weights = rows_AQd @ k_Adhw[:, :, first:last].flatten(2) / width**0.5
        weights = weights.unflatten(1, (bottom - top, across)).unflatten(3, (last - first, w))
        weights = weights.masked_fill(hidden_Ww[:, None], -torch.inf).flatten(3).softmax(dim=-1).mean(dim=0)
        mixed[:, top:bottom] = (maps[0, :, first:last].flatten(1) @ weights.flatten(0, 1).mT).unflatten(1, (-1, across))
    return mixed[None]


def visible(pixels: int, patches: int, window: float | None, device: torch.device | None = None) -> torch.Tensor:
    """Which patches along an axis each pixel sees: bool (pixels, patches).

    A patch that the window touches counts. Places are float32, as in the training of the published files.
    """
    if window is None:
        return torch.ones(pixels, patches, dtype=torch.bool, device=device)
    at = (torch.arange(pixels, device=device, dtype=torch.float32) + 0.5) / pixels
    first = ((at - window).clamp(0, 1) * patches).floor()[:, None]
    last = ((at + window).clamp(0, 1) * patches).ceil()[:, None]
    places = torch.arange(patches, device=device)
    return (places >= first) & (places < last)


def _bands(height: int, h: int, window: float | None, most: int) -> Iterator[tuple[int, int, int, int]]:
    """Rows of pixels that see the same rows of patches, at most so many at once: both as first and end."""
    seen = visible(height, h, window)
    top = 0
    while top < height:
        rows = seen[top].nonzero()[:, 0]
        bottom = top + 1
        while bottom < height and bottom - top < most and bool((seen[bottom] == seen[top]).all()):
            bottom += 1
        yield top, bottom, int(rows[0]), int(rows[-1]) + 1
        top = bottom
