"""FeatUp's stack of joint bilateral upsamplings (Fu et al., ICLR 2024): four doublings, guided by the photo.

Each stage doubles the map (bicubic), and each place takes a weighted sum of the 7 x 7 places around it. The weights are
a softmax of the similarity of the photo there, times a Gaussian, plus a tenth of a learned correction of them. At the
end, a tenth of a linear map of the features is added.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional as F

from densevl.refine.upsampling.base import Upsampler, padded

STAGES, CORRECTION = 4, 0.1
PREFIX = "upsampler."
APART = ("model.", "scale_net.", "downsampler.")
"""Prefixes of names in the published files: of the featurizer, and of parts used only in training."""


class Jbu(Upsampler):
    """FeatUp's JBU stack: features of the model it was trained for, at 16 times the resolution.

    Files: maskclip_jbu_stack_cocostuff.ckpt, clip_jbu_stack_cocostuff.ckpt.
    """

    kind = "jbu"

    @staticmethod
    def mark(tensors: Mapping[str, torch.Tensor]) -> bool:
        """See `Upsampler.mark`."""
        return any(key.removeprefix(PREFIX) == "up1.range_proj.0.weight" for key in tensors)

    def own(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """See `Upsampler.own`."""
        if not any(key.startswith(PREFIX) for key in tensors):
            return dict(tensors)
        return {key.removeprefix(PREFIX): value for key, value in tensors.items() if not key.startswith(APART)}

    def shapes(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
        """See `Upsampler.shapes`."""
        last = tensors.get("fixup_proj.1.weight")
        self.width = last.shape[0] if last is not None and last.ndim else 1
        keys = tensors["up1.range_proj.0.weight"].shape[0]
        places = tensors["up1.fixup_proj.3.weight"].shape[0] if "up1.fixup_proj.3.weight" in tensors else 49
        found: dict[str, tuple[int, ...]] = {
            "fixup_proj.1.weight": (self.width, self.width, 1, 1),
            "fixup_proj.1.bias": (self.width,),
        }
        for stage in range(1, STAGES + 1):
            found |= {f"up{stage}.range_temp": (), f"up{stage}.sigma_spatial": ()}
            for part, sides in (("range_proj", (3, keys, keys)), ("fixup_proj", (3 + places, places, places))):
                for index, (coming, going) in ((0, sides[:2]), (3, sides[1:])):
                    found[f"up{stage}.{part}.{index}.weight"] = (going, coming, 1, 1)
                    found[f"up{stage}.{part}.{index}.bias"] = (going,)
        return found

    def adjusted(self, features_BDhw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Upsampler.adjusted`: the linear map at the end commutes with the mixing, so it is applied to patches."""
        weight, bias = (CORRECTION * self.tensors[f"fixup_proj.1.{name}"] for name in ("weight", "bias"))
        return features_BDhw + F.conv2d(features_BDhw, weight), bias

    def __call__(
        self, guidance: torch.Tensor, features: torch.Tensor, maps: torch.Tensor, size: tuple[int, int]
    ) -> torch.Tensor:
        """See `Upsampler.__call__`; `features` are not used. Upsamples 16-fold, then resizes bilinearly."""
        for stage in range(1, STAGES + 1):
            small = F.adaptive_avg_pool2d(guidance, (2 * maps.shape[-2], 2 * maps.shape[-1]))
            maps = self._stage(f"up{stage}.", small, maps)
        same = tuple(maps.shape[-2:]) == tuple(size)
        return maps if same else F.interpolate(maps, size=size, mode="bilinear", align_corners=False)

    def _stage(self, at: str, guidance: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        weights_BPHW = self._weights(at, guidance)
        side = round(weights_BPHW.shape[1] ** 0.5)
        height, width = guidance.shape[-2:]
        large = F.interpolate(maps, size=(height, width), mode="bicubic", align_corners=False)
        large = padded(large, side // 2)
        mixed = torch.zeros_like(large[..., :height, :width])
        for place, weight_BHW in enumerate(weights_BPHW.unbind(dim=1)):
            top, left = divmod(place, side)
            mixed.addcmul_(weight_BHW[:, None], large[..., top : top + height, left : left + width])
        return mixed

    def _weights(self, at: str, guidance: torch.Tensor) -> torch.Tensor:
        """Weights (1, P, H, W) of the P places around each."""
        keys = self._twice(f"{at}range_proj.", guidance)
        side = round(self.tensors[f"{at}fixup_proj.3.bias"].numel() ** 0.5)
        height, width = guidance.shape[-2:]
        around = padded(keys, side // 2)
        alike = torch.stack(
            [
                (around[..., top : top + height, left : left + width] * keys).sum(dim=1)
                for top in range(side)
                for left in range(side)
            ],
            dim=1,
        )
        heat = self.tensors[f"{at}range_temp"].exp().clamp(1e-4, 1e4)
        line = torch.linspace(-1, 1, side, device=keys.device, dtype=keys.dtype).square()
        far = (line[:, None] + line).flatten() / (2 * self.tensors[f"{at}sigma_spatial"] ** 2)
        weights = (heat * alike).softmax(dim=1) * torch.exp(-far)[:, None, None]
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-7)
        return weights + CORRECTION * self._twice(f"{at}fixup_proj.", torch.cat([weights, guidance], dim=1))

    def _twice(self, at: str, x: torch.Tensor) -> torch.Tensor:
        """Two linear layers at each place, with a GELU between them."""
        x = F.gelu(F.conv2d(x, self.tensors[f"{at}0.weight"], self.tensors[f"{at}0.bias"]))
        return F.conv2d(x, self.tensors[f"{at}3.weight"], self.tensors[f"{at}3.bias"])
