"""Mask-Adapter's network, read from its file: from a mask and CLIP's map to 16 maps of pooling weights.

Li et al., "Mask-Adapter: The Devil is in the Masks for Open-Vocabulary Segmentation" (CVPR 2025).
Shape letters: R masks, E joint space, C width, M maps a mask, h/w places.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from densevl.errors import ModelError
from densevl.weights import State, bad_file, below, read_checkpoint

ANCHOR = "mask_downscaling.0.weight"
FINER = 4  # masks have this many times the map's resolution
_EPS, _LAST_EPS = 1e-6, 1e-5


@dataclass(frozen=True, eq=False)
class AdapterNet:
    """The tensors by their names in the file; call it with CLIP's map and masks."""

    state: State

    def __call__(self, map_Ehw: torch.Tensor, masks_RHW: torch.Tensor) -> torch.Tensor:
        """Weights of places (R, M, h, w), which sum to 1 over them.

        Args:
            map_Ehw: dense features in the joint space, not normalised. masks_RHW: 0 to 1, at 4 times its resolution.
        """
        s, size = self.state, map_Ehw.shape[1:]
        x = masks_RHW[:, None]
        for index in (0, 3):
            at = f"mask_downscaling.{index}."
            x = F.conv2d(x, s[at + "weight"], s[at + "bias"], stride=2, padding=1)
            norm = f"mask_downscaling.{index + 1}."
            x = F.gelu(_norm(x, s[norm + "weight"], s[norm + "bias"], _EPS))
        # The layer that joins mask and map is linear: the map passes it once, each mask separately.
        x = F.conv2d(x, s["mask_downscaling.6.weight"], s["mask_downscaling.6.bias"])
        x = F.conv2d(x, s["fuse.weight"]) + F.conv2d(map_Ehw[None], s["fuse.weight"], s["fuse.bias"])
        for index in (1, 2, 3):
            x = x + self._block(x, f"cnext{index}.")
        x = F.conv2d(_norm(x, s["norm.weight"], s["norm.bias"], _LAST_EPS), s["final.weight"], s["final.bias"])
        return F.logsigmoid(x.flatten(2)).softmax(dim=-1).unflatten(2, size)

    def _block(self, x: torch.Tensor, at: str) -> torch.Tensor:
        """One block of ConvNeXt, or of ConvNeXt V2 where the file holds its extra tensors."""
        s = self.state
        kernel = s[at + "dwconv.weight"]
        y = F.conv2d(x, kernel, s[at + "dwconv.bias"], padding=kernel.shape[-1] // 2, groups=len(kernel))
        y = F.layer_norm(y.movedim(1, -1), kernel.shape[:1], s[at + "norm.weight"], s[at + "norm.bias"], _EPS)
        y = F.gelu(F.linear(y, s[at + "pwconv1.weight"], s[at + "pwconv1.bias"]))
        if at + "grn.gamma" in s:
            response = y.norm(dim=(1, 2), keepdim=True)
            response = response / (response.mean(dim=-1, keepdim=True) + _EPS)
            y = s[at + "grn.gamma"] * (y * response) + s[at + "grn.beta"] + y
        y = F.linear(y, s[at + "pwconv2.weight"], s[at + "pwconv2.bias"])
        return (y * s[at + "gamma"] if at + "gamma" in s else y).movedim(-1, 1)


def load_adapter(tower: Any, path: Path) -> AdapterNet:
    """Read the file for a ConvNeXt tower.

    Raises:
        ModelError: the tower is not a ConvNeXt.
        WeightsError: the file is another kind, or for another width.
    """
    if tower is None or tower.prefix or tower.depth or not hasattr(tower, "patch_size"):
        raise ModelError(
            "operator 'adapter' is for CLIPs with a ConvNeXt, such as convnext_large_d_320/laion2b_s29b_b131k_ft_soup; "
            "use 'crop' or 'pool'"
        )
    tensors = {key: value.float() for key, value in read_checkpoint(path).tensors.items() if value.is_floating_point()}
    anchor = next((key for key in tensors if key == ANCHOR or key.endswith(f".{ANCHOR}")), None)
    if anchor is None:
        raise bad_file(path, f"is not Mask-Adapter's: it holds no {ANCHOR}")
    state = below(tensors, anchor.removesuffix(ANCHOR))
    width = state["fuse.weight"].shape[1] if "fuse.weight" in state else 0
    if width and width != tower.embed_dim:
        raise bad_file(path, f"is for a CLIP of width {width}, and the model's is {tower.embed_dim}: take its own CLIP")
    device = next(tower.parameters()).device if hasattr(tower, "parameters") else torch.device("cpu")
    net = AdapterNet({key: value.to(device) for key, value in state.items()})
    try:
        net(torch.zeros(tower.embed_dim, 2, 2, device=device), torch.zeros(1, 8, 8, device=device))  # do the parts fit?
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise bad_file(path, f"is not Mask-Adapter's: its parts do not fit each other ({reason})") from error
    return net


def _norm(x_RChw: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """Layer norm over channels."""
    return F.layer_norm(x_RChw.movedim(1, -1), weight.shape, weight, bias, eps).movedim(-1, 1)
