"""The sizes of open_clip's own networks, read from their tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from densevl.errors import ModelError
from densevl.weights.reading import bad_file

HEAD = 64
"""Default width of an attention head; shapes do not show the number of heads."""
_USUAL = dict.fromkeys((256, 512, 640, 768, 896, 1024), HEAD)
VISION_HEADS = {**_USUAL, 1280: 80, 1408: 88, 1664: 104, 1792: 112}
TEXT_HEADS = {**_USUAL, 384: HEAD, 1152: 72, 1280: HEAD}
SIGLIP_HEADS = {768: HEAD, 1024: HEAD, 1152: 72, 1536: 96}
"""Width of a head by the width of a tower, for all published models; image towers of 384 are published with two."""
KERNEL, POSITIONS, TOKENS = "visual.conv1.weight", "visual.positional_embedding", "token_embedding.weight"
POOL = "visual.attnpool.positional_embedding"
"""A tensor that identifies CLIP's ResNets."""
DEPTHS = {384: 12, 768: 12, 1024: 24, 1152: 27, 1280: 32, 1536: 40}
"""Blocks by the width of the published towers of DINO and RADIO."""
NO_TEXT = {"context_length": 77, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1}
"""open_clip's text_cfg when another text side replaces its own."""


def vision_sizes(state: Mapping[str, torch.Tensor], path: Path, heads: int | None = None) -> dict[str, Any]:
    """open_clip's vision_cfg of a native ViT.

    Raises:
        WeightsError: no such network has these shapes.
    """
    kernel, table = _shape(state, KERNEL, 4, path), _shape(state, POSITIONS, 2, path)
    width, patch = kernel[0], kernel[-1]
    grid = math.isqrt(max(table[0] - 1, 0))
    if grid * grid + 1 != table[0] or not grid:
        raise bad_file(path, f"has {table[0]} positions, not a square of patches and a class token; name its config")
    hidden = _shape(state, "visual.transformer.resblocks.0.mlp.c_fc.weight", 2, path)[0]
    return {
        "image_size": grid * patch,
        "patch_size": patch,
        "width": width,
        "layers": depth(state, "visual.transformer.resblocks."),
        "head_width": width // divided(width, heads, VISION_HEADS)[0],
        "mlp_ratio": hidden / width,
    }


def image_side(state: Mapping[str, torch.Tensor], path: Path, heads: int | None = None) -> dict[str, Any]:
    """The image tower's part of open_clip's model_cfg: embed_dim and vision_cfg, of a ViT or a ResNet.

    Raises:
        WeightsError: neither has these shapes.
    """
    if POOL not in state:
        return {"embed_dim": _shape(state, "visual.proj", 2, path)[1], "vision_cfg": vision_sizes(state, path, heads)}
    places = _shape(state, POOL, 2, path)[0]
    vision = {
        "image_size": 32 * math.isqrt(max(places - 1, 0)),
        "layers": [depth(state, f"visual.layer{stage}.") for stage in range(1, 5)],
        "width": 2 * _shape(state, KERNEL, 4, path)[0],
    }
    return {"embed_dim": _shape(state, "visual.attnpool.c_proj.weight", 2, path)[0], "vision_cfg": vision}


def text_sizes(
    state: Mapping[str, torch.Tensor], path: Path, heads: int | None = None, below: str = ""
) -> dict[str, Any]:
    """open_clip's text_cfg of its own transformer, whose names begin with `below`.

    Raises:
        WeightsError: no such network has these shapes.
    """
    words = _shape(state, f"{below}{TOKENS}", 2, path)
    width = words[1]
    hidden = _shape(state, f"{below}transformer.resblocks.0.mlp.c_fc.weight", 2, path)[0]
    return {
        "context_length": _shape(state, f"{below}positional_embedding", 2, path)[0],
        "vocab_size": words[0],
        "width": width,
        "heads": divided(width, heads, TEXT_HEADS)[0],
        "layers": depth(state, f"{below}transformer.resblocks."),
        "mlp_ratio": hidden / width,
    }


def native_config(state: Mapping[str, torch.Tensor], path: Path) -> dict[str, Any]:
    """open_clip's model_cfg of its plain CLIP with a ViT or a ResNet.

    Raises:
        WeightsError: no such network has these shapes.
    """
    return {**image_side(state, path), "text_cfg": text_sizes(state, path)}


def divided(width: int, heads: int | None, table: Mapping[int, int]) -> tuple[int, bool]:
    """Attention heads of a tower, and whether their number is a guess.

    Args:
        heads: from its config; None takes those of published models of its width. table: the width of their heads.

    Raises:
        ModelError: heads do not divide the width.
    """
    if heads is None:
        return max(1, width // table.get(width, HEAD)), width not in table
    if width % heads:
        raise ModelError(
            f"the {heads} attention heads of its config do not divide the width of its tower, {width}: the config is "
            "another model's, or lacks num_attention_heads"
        )
    return heads, False


def unsure(
    config: Mapping[str, Any] | None, own: Mapping[str, Any], trunk: Mapping[str, Any] | None = None
) -> tuple[str, ...]:
    """Warnings that the number of heads is a guess.

    Args:
        config: that sets it; None if there is none. own: open_clip's model_cfg. trunk: see `Form.trunk`.
    """
    if config is not None:
        return ()
    vision = (
        trunk["embed_dim"] if trunk else own["vision_cfg"].get("width") if "head_width" in own["vision_cfg"] else None
    )
    text = None if own["text_cfg"]["width"] == NO_TEXT["width"] else own["text_cfg"]["width"]
    sides = (("image", vision, SIGLIP_HEADS if trunk else VISION_HEADS), ("text", text, TEXT_HEADS))
    return tuple(
        f"the weights file does not say how many attention heads the {name} tower has, and no published one is "
        f"{width} wide with a known number: taken {divided(width, None, table)[0]}; "
        "name its architecture, or put its config beside it"
        for name, width, table in sides
        if width is not None and divided(width, None, table)[1]
    )


def depth(state: Mapping[str, torch.Tensor], prefix: str) -> int:
    """Number of blocks below a name."""
    return len({key[len(prefix) :].partition(".")[0] for key in state if key.startswith(prefix)})


def shallow(path: Path, **parts: tuple[int, int | None]) -> tuple[str, ...]:
    """Warnings about parts with fewer blocks than published ones of their width; missing last blocks leave no gap.

    Args:
        parts: each part's number of blocks, and that of published ones, None if no published one has its width.
    """
    return tuple(
        f"weights file {path.name} has {found} blocks in its {part}, and published ones of its width have {usual}: if "
        "it lacks some, its results are wrong; download it again"
        for part, (found, usual) in parts.items()
        if usual is not None and found < usual
    )


def _shape(state: Mapping[str, torch.Tensor], key: str, dimensions: int, path: Path) -> tuple[int, ...]:
    found = state.get(key)
    if found is None or found.ndim != dimensions or not found.numel():
        fault = "lacks" if found is None else f"has a {tuple(found.shape)} for"
        raise bad_file(path, f"{fault} {key}, so its sizes are not known; name the architecture it was trained with")
    return tuple(found.shape)
