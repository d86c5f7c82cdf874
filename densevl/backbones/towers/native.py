"""open_clip's own `VisionTransformer` as a tower: CLS or average pooling (CLIPA), or CoCa's attentional pooler."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from densevl.backbones.positions import resize_positions
from densevl.errors import ModelError, RecipeError
from densevl.kernels.linear import is_watched, linear
from densevl.recipes.blocks import Block, as_trained, view
from densevl.recipes.tower import Grid


class NativeViT:
    """A `VisionTransformer` of open_clip; it always has a CLS token, even if the embedding ignores it."""

    kind = "a ViT"
    prefix = 1

    def __init__(self, visual: Any, name: str) -> None:
        """Inspect a built tower; nothing is copied.

        Raises:
            ModelError: it has no single image embedding, or its patches are not square.
        """
        reason = None
        if visual.pool_type not in ("tok", "avg"):
            reason = "it gives all tokens instead of one embedding"
        elif visual.proj is None:
            reason = "it has no projection into the joint space"
        elif visual.patch_size[0] != visual.patch_size[1]:
            reason = f"its patches are {visual.patch_size[0]}x{visual.patch_size[1]}, not square"
        if reason:
            raise ModelError(f"model '{name}' gives no dense features: {reason}; use a native ViT, ViT-B-16/openai")
        self._visual = visual
        self._blocks = visual.transformer.resblocks
        self.reads_cls = visual.pool_type == "tok" and visual.attn_pool is None
        self.depth = len(self._blocks)
        self._odd = run_whole(self._blocks)
        self.patch_size = visual.patch_size[0]
        self.embed_dim = visual.proj.shape[1]
        self.image_size = tuple(visual.image_size)

    @property
    def module(self) -> Any:
        """open_clip's own module, for making a copy with other weights."""
        return self._visual

    @property
    def cls_readout(self) -> tuple[Any, torch.Tensor] | None:
        """See `Tower`. Read from the module each time, because weights loaded later replace its parameters."""
        return (self._visual.ln_post, self._visual.proj) if self.reads_cls else None

    def embed(self, pixels: torch.Tensor, rule: str) -> torch.Tensor:
        visual = self._visual
        patches_BDhw = visual.conv1(pixels.to(visual.conv1.weight.dtype))
        grid = patches_BDhw.shape[-2], patches_BDhw.shape[-1]
        patches_BND = patches_BDhw.flatten(2).transpose(1, 2)
        cls_B1D = visual.class_embedding.to(patches_BND.dtype).expand(pixels.shape[0], 1, -1)
        positions = resize_positions(visual.positional_embedding, visual.grid_size, grid, rule)
        return visual.ln_pre(torch.cat([cls_B1D, patches_BND], dim=1) + positions.to(patches_BND.dtype))

    def run(self, index: int, x_BND: torch.Tensor, grid: Grid) -> torch.Tensor:
        runs_whole = self._odd or is_watched(self._blocks[index])
        return self._blocks[index](x_BND) if runs_whole else as_trained(self.view(index, grid), x_BND)

    def view(self, index: int, grid: Grid) -> Block:
        return view(self._blocks[index])

    def read(self, y_BND: torch.Tensor) -> torch.Tensor:
        visual = self._visual
        if visual.attn_pool is not None:  # with a single token every query of the pooler reads the same
            y_BND = _value_path(visual.attn_pool, y_BND)
        return linear(visual.ln_post(y_BND), visual.proj.T)

    def pool(self, x_BND: torch.Tensor) -> torch.Tensor:
        visual = self._visual
        norm_last = visual.attn_pool is None and visual.final_ln_after_pool
        if visual.attn_pool is not None:
            x_BND = visual.attn_pool(x_BND)
        if not norm_last:
            x_BND = visual.ln_post(x_BND)
        pooled_BD = x_BND[:, 1:].mean(dim=1) if visual.pool_type == "avg" else x_BND[:, 0]
        return (visual.ln_post(pooled_BD) if norm_last else pooled_BD) @ visual.proj


def run_whole(blocks: Any) -> bool:
    """Whether blocks are of a kind without a view, so that they run whole."""
    try:
        for block in blocks:
            view(block)
    except RecipeError:
        return True
    return False


def _value_path(pooler: Any, x_BND: torch.Tensor) -> torch.Tensor:
    """An `AttentionalPooler` over one key: its norm, the value projection and the output projection."""
    attn = pooler.attn
    width = attn.embed_dim
    weight = attn.in_proj_weight[2 * width :] if attn.v_proj_weight is None else attn.v_proj_weight
    return attn.out_proj(F.linear(pooler.ln_k(x_BND), weight, attn.in_proj_bias[2 * width :]))
