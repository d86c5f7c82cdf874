"""Networks whose sizes are read from a weights file, so that a file alone is enough."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from torch import nn

from densevl.backbones.proxies.state import PATCHES
from densevl.errors import MissingExtraError
from densevl.weights import State, bad_file, below, build_strictly

HEAD_WIDTHS = (64, 32)
SAM_PREFIX = "image_encoder."
EPS = 1e-6  # of the layer norms of DINO and of SAM


def build_vit(state: State, path: Path, heads: int | None = None) -> nn.Module:
    """A timm `VisionTransformer` for a state dict in DINO's or timm's naming, with its weights.

    Width, depth, patch, MLP, input size, registers and layer scale come from the tensors. The tensors do not show the
    number of heads: None takes heads of width 64 if that divides the width (every published DINO and DINOv2), otherwise
    of width 32.

    Raises:
        WeightsError: it is not such a state dict, or heads do not divide the width.
    """
    from timm.models.vision_transformer import VisionTransformer

    table, kernel = state.get("pos_embed"), state.get(PATCHES)
    if table is None or kernel is None or kernel.ndim != 4 or "blocks.0.attn.qkv.weight" not in state:
        raise bad_file(
            path,
            "is not a vision transformer in DINO's naming (pos_embed, patch_embed.proj, blocks.0, "
            "...); name its architecture with load_proxy(NAME, weights=FILE)",
        )
    width, patch = kernel.shape[0], kernel.shape[-1]
    if heads is None:
        heads = next((width // size for size in HEAD_WIDTHS if width % size == 0), 0)
    if heads < 1 or width % heads:
        raise bad_file(
            path, f"does not tell its heads: width {width} cannot be split into {heads} heads; say heads=NUMBER"
        )

    def make() -> nn.Module:
        registers = state["reg_token"].shape[1] if "reg_token" in state else 0
        prefix = ("cls_token" in state) + registers
        tokens = table.shape[1]
        # the table covers the prefix tokens too, or only the patches
        covered = prefix if math.isqrt(tokens - prefix) ** 2 == tokens - prefix else 0
        return VisionTransformer(
            img_size=math.isqrt(tokens - covered) * patch,
            patch_size=patch,
            in_chans=kernel.shape[1],
            num_classes=0,
            global_pool="token" if "cls_token" in state else "avg",
            class_token="cls_token" in state,
            no_embed_class=covered == 0,
            reg_tokens=registers,
            embed_dim=width,
            depth=_depth(state),
            num_heads=heads,
            mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / width if "blocks.0.mlp.fc1.weight" in state else 4,
            qkv_bias="blocks.0.attn.qkv.bias" in state,
            init_values=1.0 if "blocks.0.ls1.gamma" in state else None,
            fc_norm=False,
            norm_layer=partial(nn.LayerNorm, eps=EPS),
            dynamic_img_size=True,
        )

    return build_strictly(make, state, path, "the sizes it shows", "name its architecture with load_proxy(NAME, ...)")


def build_sam_encoder(state: State, path: Path) -> nn.Module:
    """The image encoder of a SAM checkpoint (ViT-B, L, H, or any other size with relative positions), with its weights.

    Raises:
        MissingExtraError: `segment-anything` is not installed.
        WeightsError: it is not a SAM checkpoint.
    """
    try:
        from segment_anything.modeling import ImageEncoderViT
    except ImportError as error:
        raise MissingExtraError("segment-anything", "sam", "a SAM proxy") from error
    own = below(state, SAM_PREFIX)
    table, kernel = own.get("pos_embed"), own.get(PATCHES)
    if table is None or kernel is None or "blocks.0.attn.rel_pos_h" not in own:
        raise bad_file(path, f"is not a SAM checkpoint: it has no {SAM_PREFIX}* with relative positions")

    def make() -> nn.Module:
        width, patch, grid = kernel.shape[0], kernel.shape[-1], table.shape[1]
        spans = [(len(own[f"blocks.{index}.attn.rel_pos_h"]) + 1) // 2 for index in range(_depth(own))]
        windows = [span for span in spans if span != grid]
        return ImageEncoderViT(
            img_size=grid * patch,
            patch_size=patch,
            embed_dim=width,
            depth=len(spans),
            num_heads=width // own["blocks.0.attn.rel_pos_h"].shape[1],
            mlp_ratio=own["blocks.0.mlp.lin1.weight"].shape[0] / width,
            out_chans=own["neck.0.weight"].shape[0],
            norm_layer=partial(nn.LayerNorm, eps=EPS),
            use_rel_pos=True,
            window_size=windows[0] if windows else 0,
            global_attn_indexes=tuple(index for index, span in enumerate(spans) if span == grid),
        )

    return build_strictly(make, own, path, "the sizes it shows", "give one of SAM's own checkpoints")


def _depth(state: State) -> int:
    return len({key.split(".")[1] for key in state if key.startswith("blocks.")})
