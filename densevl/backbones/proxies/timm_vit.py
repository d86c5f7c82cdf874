"""Any plain vision transformer of timm as a proxy: `VisionTransformer` (DINO, DINOv2, RADIO), `Eva` (DINOv3, EVA, PE).

timm resizes position tables in one way only. For `VisionTransformer` they are resized here, because the papers ran
DINO with its own rule and the difference shows in the features. `Eva` models rotate queries and keys instead, or do
both; their table, if any, is left to timm ("size_antialias").
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from densevl.backbones.positions import resize_positions, timm_tokens
from densevl.backbones.proxies.base import Proxy
from densevl.errors import ModelError
from densevl.recipes.blocks import TimmBlock

TIMM_RULE = "size_antialias"

_STAGES = "its stages have grids of different sizes, so there is no one patch grid"
_TABLES = "its relative position tables fit one input size"
_WHY_NOT = {
    "Beit": _TABLES,
    "VisionTransformerRelPos": _TABLES,
    "VisionTransformerSAM": "its attention is windowed; take 'sam_vit_b' with weights=FILE",
    "VisionTransformerDistilled": "its distillation token has position code of its own; take the undistilled model",
    "NaFlexVit": "it takes packed patches, not images; take the vit_ model of the same weights",
    "HieraDet": _STAGES,
    "Hiera": _STAGES,
    "SwinTransformer": _STAGES,
    "MultiScaleVit": _STAGES,
    "Cait": "its heads are mixed before and after the softmax, and CLS enters only at the end",
    "Xcit": "it attends between channels, so patches have no queries and keys",
}


class TimmProxy(Proxy):
    """A timm model behind the `Proxy` contract."""

    def __init__(self, model: Any, *, name: str, position_rule: str | None = None) -> None:
        """Wrap a model made by timm with `dynamic_img_size=True`; it is put in eval mode, without gradients.

        Args:
            model: `timm.models.vision_transformer.VisionTransformer` or `timm.models.eva.Eva`.
            name: shown in messages.
            position_rule: for `VisionTransformer`, any of `backbones.positions`; None takes timm's, "size_antialias".

        Raises:
            ModelError: the model is of another kind, with the reason, or takes a single input size.
            RecipeError: the position rule is unknown.
        """
        from timm.models.eva import Eva
        from timm.models.vision_transformer import VisionTransformer

        kind = type(model)
        if kind not in (VisionTransformer, Eva):
            reason = _WHY_NOT.get(kind.__name__, "it is not a plain vision transformer (VisionTransformer or Eva)")
            raise ModelError(f"'{name}' is a {kind.__name__} and gives no proxy features: {reason}")
        if not model.dynamic_img_size:
            raise ModelError(f"'{name}' was built for one input size; create it with dynamic_img_size=True")
        if kind is Eva and position_rule not in (None, TIMM_RULE):
            raise ModelError(
                f"'{name}' is an Eva model, whose positions follow timm ('{TIMM_RULE}'); leave out the rule"
            )
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self.patch_size = int(self.model.patch_embed.feat_ratio())
        self.embed_dim = self.model.embed_dim
        settings = getattr(model, "pretrained_cfg", None) or {}
        # a model without a configuration has DINO's naming and was trained with ImageNet's statistics
        self.mean = tuple(settings.get("mean") or (0.485, 0.456, 0.406))
        self.std = tuple(settings.get("std") or (0.229, 0.224, 0.225))
        self.position_rule = position_rule or TIMM_RULE
        resize_positions(torch.zeros(1, 1), (1, 1), (1, 1), self.position_rule, 0)  # refuses an unknown rule now
        self._rotary = kind is Eva

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._grid(self._last(pixels), pixels)

    def _whole(self, pixels: torch.Tensor) -> torch.Tensor:
        return super()._whole(pixels) if self.model.cls_token is None else self._last(pixels)[:, 0]

    def _last(self, pixels: torch.Tensor) -> torch.Tensor:
        """All tokens after the last norm, (B, prefix + h*w, D)."""
        x, rotations = self._before_last(pixels)
        return self.model.norm(self._run(-1, x, rotations))

    def _projections(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, _ = self._before_last(pixels)
        block = self.model.blocks[-1]
        attn, x = block.attn, block.norm1(x)
        view = TimmBlock(block)
        parts = (
            (attn.q_proj(x), attn.k_proj(x), attn.v_proj(x))
            if (joint := view.joint()) is None  # each projection has a layer of its own
            else F.linear(x, joint, view.joint_bias()).chunk(3, -1)
        )
        q, k, v = (self._grid(part, pixels) for part in parts)
        return q, k, v

    def _before_last(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The input of the last block, (B, prefix + h*w, D), and the rotations of `Eva`."""
        patches, rotations = self.model.patch_embed(pixels), None
        if self._rotary:
            x, rotations = self.model._pos_embed(patches)
        else:
            grid = patches.shape[1], patches.shape[2]
            x = timm_tokens(self.model, patches.flatten(1, 2), grid, self.position_rule or TIMM_RULE)
        x = self.model.norm_pre(x)
        for index in range(len(self.model.blocks) - 1):
            x = self._run(index, x, rotations)
        return x, rotations

    def _run(self, index: int, x: torch.Tensor, rotations: torch.Tensor | None) -> torch.Tensor:
        if not self._rotary:
            return self.model.blocks[index](x)
        # in mixed mode every block has its own rotations
        mixed = rotations is not None and getattr(self.model, "rope_mixed", False)
        return self.model.blocks[index](x, rope=rotations[index] if mixed and rotations is not None else rotations)

    def _grid(self, x: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """(B, prefix + h*w, D) to (B, D, h, w)."""
        grid = (pixels.shape[-2] // self.patch_size, pixels.shape[-1] // self.patch_size)
        return x[:, self.model.num_prefix_tokens :].unflatten(1, grid).permute(0, 3, 1, 2).contiguous()
