"""Image towers trained on regions: Alpha-CLIP's and OVSeg's, from their published files.

Alpha-CLIP (Sun et al., CVPR 2024) adds the embedding of a fourth channel, alpha, to the patch embedding; together they
are one convolution over four channels. OVSeg (Liang et al., CVPR 2023) replaces patches outside the mask by learned
tokens, before the positions are added and after each of the first blocks. Both are CLIP towers with other weights, and
use CLIP's own text tower. Shape letters: B crops, N patches, D width, E joint space, L layers of prompts, S side.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional as F

from densevl.errors import ModelError
from densevl.regions.operators.adapter_net import load_adapter
from densevl.weights import State, bad_file, below, load_strictly, read_checkpoint

if TYPE_CHECKING:
    from densevl.backbones.base import Backbone

Encode = Callable[[torch.Tensor], torch.Tensor]
"""Normalised pixels and a fourth channel (B, 4, S, S) to image embeddings (B, E), not normalised."""
PATCHES, ALPHA, PROMPTS = "conv1.weight", "conv1_alpha.weight", "mask_embedding"

_loaded: WeakKeyDictionary[Any, dict[tuple[str, str], Any]] = WeakKeyDictionary()


def trained(backbone: Backbone, kind: str, weights: str | Path) -> Any:
    """The tower of "alpha" or "crop_prompted", read on first use and kept as long as the backbone.

    Args:
        kind: one of the two, or "adapter", which gives a network instead of a tower.
        weights: Alpha-CLIP's file of the image tower; a file of OVSeg (its CLIP, a checkpoint of that CLIP's training,
            or the whole detector); or Mask-Adapter's.

    Raises:
        ModelError: the backbone's image tower is not a ViT of open_clip, or for "adapter" not a ConvNeXt.
        WeightsError: the file is another kind, or for another architecture.
    """
    own, key = _loaded.setdefault(backbone, {}), (kind, str(weights))
    if key not in own:
        tower = getattr(backbone, "tower", None)
        if kind == "adapter":
            own[key] = load_adapter(tower, Path(weights))
            return own[key]
        if tower is None or not tower.depth or not hasattr(getattr(tower, "module", None), "conv1"):
            raise ModelError(
                f"operator '{kind}' is for ViTs of open_clip such as ViT-L-14-quickgelu, and model '{backbone.name}' "
                "has none; use 'crop' or 'pool'"
            )
        with torch.no_grad():
            own[key] = {"alpha": _alpha, "crop_prompted": _prompted}[kind](tower, Path(weights))
    return own[key]


def _alpha(tower: Any, path: Path) -> Encode:
    state = _tower_state(path)
    if ALPHA not in state:
        raise bad_file(path, f"is not Alpha-CLIP's: it holds no {ALPHA}")
    if any(".lora_" in key for key in state):
        raise bad_file(path, "holds LoRA's parts beside the weights: merge them first")
    state = {key.replace(".in_proj.", ".in_proj_"): value for key, value in state.items()}
    patches, alpha = state[PATCHES], state.pop(ALPHA)
    real = patches.is_floating_point() and alpha.is_floating_point()
    if not real or patches.ndim != 4 or alpha.shape != patches[:, :1].shape:
        raise bad_file(path, f"is not Alpha-CLIP's: {PATCHES} and {ALPHA} do not fit each other")
    state[PATCHES] = torch.cat([patches, alpha], dim=1)
    visual = copy.deepcopy(tower.module)
    visual.conv1 = _wider(visual.conv1)
    return load_tower(visual, state, path)


def _wider(conv: nn.Conv2d) -> nn.Conv2d:
    """The same convolution with one more channel."""
    made = nn.Conv2d(conv.in_channels + 1, conv.out_channels, conv.kernel_size, conv.stride, bias=False)  # type: ignore[arg-type]
    return made.to(conv.weight)


class _PromptedPatches(nn.Module):
    """A patch embedding that puts a prompt in place of patches whose fourth channel (1 inside, 0 outside) is all 0."""

    def __init__(self, conv: nn.Conv2d, prompts_ND: torch.Tensor) -> None:
        super().__init__()
        self.conv, self.prompts_ND = conv, prompts_ND

    @property
    def weight(self) -> torch.Tensor:
        return self.conv.weight

    def forward(self, pixels_B4SS: torch.Tensor) -> torch.Tensor:
        patches_BDhw = self.conv(pixels_B4SS[:, :3])
        prompts_Dhw = self.prompts_ND.expand(patches_BDhw[0, 0].numel(), -1).T.unflatten(1, patches_BDhw.shape[2:])
        return torch.where(touched(pixels_B4SS, self.conv.kernel_size[0]), patches_BDhw, prompts_Dhw)


def touched(pixels_B4SS: torch.Tensor, patch: int) -> torch.Tensor:
    """The patches in which the fourth channel is above 0 anywhere: bool (B, 1, h, w)."""
    return F.max_pool2d(pixels_B4SS[:, 3:], patch) > 0


def _prompted(tower: Any, path: Path) -> Encode:
    state = _tower_state(path)
    if PROMPTS not in state:
        raise bad_file(path, f"is not OVSeg's with mask prompts: it holds no visual.{PROMPTS}")
    prompts_LND = state.pop(PROMPTS).to(next(tower.module.parameters()))
    own = copy.deepcopy(tower)
    patches = (own.image_size[0] // own.patch_size) * (own.image_size[1] // own.patch_size)
    width = own.module.conv1.out_channels
    if prompts_LND.ndim != 3 or prompts_LND.shape[1] not in (1, patches) or prompts_LND.shape[2] != width:
        raise bad_file(
            path,
            f"holds prompts {tuple(prompts_LND.shape)}, and the model's tower has {patches} "
            f"patches of width {width}: name the architecture it was trained with",
        )
    load_tower(own.module, state, path)
    own.module.conv1 = _PromptedPatches(own.module.conv1, prompts_LND[0])

    def encode(pixels_B4SS: torch.Tensor) -> torch.Tensor:
        grid = pixels_B4SS.shape[2] // own.patch_size, pixels_B4SS.shape[3] // own.patch_size
        inside_BN1 = touched(pixels_B4SS, own.patch_size).flatten(2).transpose(1, 2)
        x_BND = own.embed(pixels_B4SS, "size")
        for index in range(own.depth):
            x_BND = own.run(index, x_BND, grid)
            if index + 1 < len(prompts_LND):
                patches_BND = torch.where(inside_BN1, x_BND[:, own.prefix :], prompts_LND[index + 1])
                x_BND = torch.cat([x_BND[:, : own.prefix], patches_BND], dim=1)
        return own.pool(x_BND)

    return encode


def _tower_state(path: Path) -> State:
    """The tensors of the image tower, by their names in it."""
    content = read_checkpoint(path).tensors
    anchor = next((key for key in content if key == PATCHES or key.endswith(f"visual.{PATCHES}")), None)
    if anchor is None:
        raise bad_file(path, f"holds no image tower of CLIP: no visual.{PATCHES}")
    return below(content, anchor.removesuffix(PATCHES))


def load_tower(visual: nn.Module, state: State, path: Path) -> nn.Module:
    """Load a state strictly.

    Raises:
        WeightsError: tensors are missing, too many, or of another shape.
    """
    load_strictly(visual, state, path, "this model's tower")
    return visual.eval().requires_grad_(False)
