"""Random weights around `conftest.TINY`'s tower in the form of Alpha-CLIP's, OVSeg's and SAN's published files."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch

from conftest import TINY, random_clip

WIDTH, PATCH = TINY["vision_cfg"]["width"], TINY["vision_cfg"]["patch_size"]
SIDE, QUERIES, C, HIDDEN, START = 96, 5, 24, 16, 4  # the side network looks at 96 px: 6 x 6 patches of 16
D, HEADS = TINY["vision_cfg"]["width"], 2


def tower_state(seed: int = 5) -> dict[str, torch.Tensor]:
    """The image tower of another random CLIP than a test's backbone, of the same architecture."""
    return {key: value.clone() for key, value in random_clip(seed).visual.state_dict().items()}


def alpha_state() -> dict[str, torch.Tensor]:
    """As Alpha-CLIP names its tensors."""
    state = tower_state()
    state["conv1_alpha.weight"] = torch.randn(WIDTH, 1, PATCH, PATCH, generator=torch.manual_seed(6))
    return {key.replace(".in_proj_", ".in_proj."): value for key, value in state.items()}


def prompted_state(rows: int = 16) -> dict[str, torch.Tensor]:
    """As OVSeg names those of its tower."""
    return tower_state() | {"mask_embedding": torch.randn(3, rows, WIDTH, generator=torch.manual_seed(7))}


def write_files(folder: Path) -> dict[str, Path]:
    """A file for each operator that needs one; OVSeg's is that of the whole detector, in half precision."""
    named = {"alpha": folder / "alpha.pth", "crop_prompted": folder / "ovseg.pth"}
    torch.save(alpha_state(), named["alpha"])
    prefix = "clip_adapter.clip_model.visual."
    detector = {prefix + key: value.half() for key, value in prompted_state().items()}
    torch.save({"model": {**detector, "backbone.conv1.weight": torch.zeros(1)}}, named["crop_prompted"])
    return named


def san_state() -> dict[str, torch.Tensor]:
    draw = torch.manual_seed(3)
    made: dict[str, torch.Tensor] = {}

    def put(name: str, *shape: int) -> None:
        made[name] = torch.randn(*shape, generator=draw) * (0.3 if len(shape) < 2 else 1 / shape[-1] ** 0.5)

    side = "side_adapter_network."
    put(side + "query_embed", 1, QUERIES, C)
    put(side + "query_pos_embed", 1, QUERIES, C)
    put(side + "vit_model.pos_embed", 1, 36, C)
    put(side + "vit_model.patch_embed.proj.weight", C, 3, 16, 16)
    put(side + "vit_model.patch_embed.proj.bias", C)
    for index in range(3):
        at = f"{side}vit_model.blocks.{index}."
        for name, shape in {
            "norm1": (C,), "attn.qkv": (3 * C, C), "attn.proj": (C, C), "norm2": (C,), "mlp.fc1": (4 * C, C),
            "mlp.fc2": (C, 4 * C),
        }.items():  # fmt: skip
            put(f"{at}{name}.weight", *shape)
            put(f"{at}{name}.bias", shape[0])
    for index in range(2):
        at = f"{side}fusion_layers.layer_{index}.input_proj."
        for name, shape in {"0.weight": (D,), "0.bias": (D,), "1.weight": (C, D, 1, 1), "1.bias": (C,)}.items():
            put(at + name, *shape)
    for name, last, tail in (("query_mlp", 8, ()), ("pix_mlp", 8, (1, 1)), ("attn_mlp", 8 * HEADS, (1, 1))):
        widths = [C, HIDDEN, HIDDEN, last]
        for index, (a, b) in enumerate(itertools.pairwise(widths)):
            put(f"{side}mask_decoder.{name}.layers.{index}.weight", b, a, *tail)
            put(f"{side}mask_decoder.{name}.layers.{index}.bias", b)
    put(side + "mask_decoder.bias_scaling.weight", 1, 1)
    put(side + "mask_decoder.bias_scaling.bias", 1)
    put("ov_classifier.bg_embed", 1, TINY["embed_dim"])
    for key, value in random_clip(5).visual.state_dict().items():
        parts = key.removeprefix("transformer.").split(".")
        if parts[0] == "resblocks" and int(parts[1]) >= START:
            parts[1] = str(int(parts[1]) - START)
            made["clip_rec_head." + ".".join(parts)] = value.clone()
        else:
            holder = "clip_rec_head." if parts[0] in ("ln_post", "proj") else "clip_visual_extractor."
            made[holder + ".".join(parts)] = value.clone()
    return made
