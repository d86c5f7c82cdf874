"""timm's ViTs inside open_clip: SigLIP, PE, EVA, EVA02, ViTamin, MobileCLIP-B and others.

Positions may be a table, rotary, both, or attention biases; the head may be a CLS token, an average or an attention
pool. The patch embedding may have a convolutional stem.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from densevl.backbones.positions import timm_tokens
from densevl.backbones.towers.native import run_whole
from densevl.errors import ImageError, ModelError
from densevl.kernels.linear import is_watched
from densevl.recipes.blocks import Block, as_trained, view
from densevl.recipes.tower import Grid


class TimmViT:
    """open_clip's `TimmModel` around a `VisionTransformer`, an `Eva` or a `VisionTransformerRelPos` of timm."""

    TRUNKS = ("VisionTransformer", "Eva", "VisionTransformerRelPos")

    def __init__(self, visual: Any, name: str) -> None:
        """Inspect a built tower; nothing is copied.

        Raises:
            ModelError: its pooling does not give a single embedding into which a patch can be read.
        """
        trunk = visual.trunk
        self._visual, self._trunk, self._blocks = visual, trunk, trunk.blocks
        self._attn_pool = getattr(trunk, "attn_pool", None)
        self._fixed = type(trunk).__name__ == "VisionTransformerRelPos"  # its bias tables fit one grid
        self._rope_cache: tuple[Grid, torch.device, torch.Tensor] | None = None
        reason = None
        if self._attn_pool is not None:
            if type(self._attn_pool).__name__ != "AttentionPoolLatent" or self._attn_pool.pos_embed is not None:
                reason = f"its {type(self._attn_pool).__name__} cannot read a patch alone"
        elif not trunk.global_pool:
            reason = "it gives all tokens instead of one embedding"
        elif getattr(trunk, "shared_rel_pos", None) is not None:
            reason = "its blocks share a table of relative positions"
        if reason:
            raise ModelError(f"model '{name}' gives no dense features: {reason}; use a native ViT, ViT-B-16/openai")
        self.kind = "a ViT with relative positions" if self._fixed else "a ViT"
        self._whole = run_whole(trunk.blocks)
        self.prefix = trunk.num_prefix_tokens
        self.reads_cls = trunk.global_pool == "token" and self._attn_pool is None
        self.depth = len(trunk.blocks)
        self.patch_size = trunk.feature_info[-1]["reduction"]
        self.embed_dim = embed_dim(visual)
        self.image_size = tuple(trunk.patch_embed.img_size)  # open_clip's own figure is wrong for ViTamin-XL-384

    def embed(self, pixels: torch.Tensor, rule: str) -> torch.Tensor:
        trunk = self._trunk
        if getattr(trunk, "rope_mixed", False):  # learned, so other weights may have been loaded
            self._rope_cache = None
        patches_BND, grid = self._patches(pixels)
        if self._fixed and grid != tuple(trunk.patch_embed.grid_size):
            raise wrong_size(pixels, self.image_size, "a ViT with relative positions")
        return getattr(trunk, "norm_pre", nn.Identity())(timm_tokens(trunk, patches_BND, grid, rule))

    def run(self, index: int, x_BND: torch.Tensor, grid: Grid) -> torch.Tensor:
        if not self._whole and not is_watched(self._blocks[index]):
            return as_trained(self.view(index, grid), x_BND)
        rope = self._rope(index, grid)
        return self._blocks[index](x_BND) if rope is None else self._blocks[index](x_BND, rope=rope)

    def view(self, index: int, grid: Grid) -> Block:
        return view(self._blocks[index], self._rope(index, grid))

    def read(self, y_BND: torch.Tensor) -> torch.Tensor:
        trunk = self._trunk
        y_BND = trunk.norm(y_BND)
        if self._attn_pool is not None:
            y_BND = self._attn_pool(y_BND.flatten(0, 1)[:, None]).unflatten(0, y_BND.shape[:2])
        return self._visual.head(trunk.head(trunk.fc_norm(y_BND)))

    def pool(self, x_BND: torch.Tensor) -> torch.Tensor:
        return self._visual.head(self._trunk.forward_head(self._trunk.norm(x_BND)))

    def _patches(self, pixels: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        """Run the patch embedding layer by layer, because as a whole it requires the trained size."""
        embed = self._trunk.patch_embed
        x = pixels.to(next(self._trunk.parameters()).dtype)
        if hasattr(embed, "backbone"):
            x = embed.backbone(x)
            x = x[-1] if isinstance(x, (list, tuple)) else x
        x = embed.proj(x)
        tokens_BND = getattr(embed, "norm", nn.Identity())(x.flatten(2).transpose(1, 2))
        return tokens_BND, (x.shape[-2], x.shape[-1])

    def _rope(self, index: int, grid: Grid) -> torch.Tensor | None:
        """Rotary positions of a grid, by timm's own module; the last grid's are cached."""
        rope = getattr(self._trunk, "rope", None)
        if rope is None:
            return None
        device = next(self._trunk.parameters()).device
        kept = self._rope_cache  # another thread may replace it
        if kept is None or kept[:2] != (grid, device):
            if getattr(rope, "feat_shape", None) is None:
                made = rope.get_embed(shape=grid)
            else:  # the module fits one grid: use a copy, so that the tower's own stays unchanged
                resized = copy.deepcopy(rope)
                resized.update_feat_shape(list(grid))
                made = resized.get_embed()
            self._rope_cache = kept = (grid, device, made)
        made = kept[2]
        return made[index] if getattr(self._trunk, "rope_mixed", False) else made


def embed_dim(visual: Any) -> int:
    """Width of the joint space of open_clip's `TimmModel`, from the last layer that leads there."""
    linears = [layer for layer in visual.head.modules() if isinstance(layer, nn.Linear)]
    classifier = visual.trunk.get_classifier()
    if linears or isinstance(classifier, nn.Linear):
        return linears[-1].out_features if linears else classifier.out_features
    return visual.trunk.num_features


def wrong_size(pixels: torch.Tensor, size: tuple[int, int], kind: str) -> ImageError:
    """The error for a tower that takes only one size."""
    return ImageError(
        f"pixels are {pixels.shape[2]}x{pixels.shape[3]}; the tower is {kind}, which takes {size[0]}x{size[1]} only: "
        f"use windows of that size, crop={size[0]} in Segmenter's protocol or inference.slide"
    )
