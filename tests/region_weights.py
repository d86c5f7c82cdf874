"""Random weights of `conftest.TINY`'s tower in the form of Alpha-CLIP's and OVSeg's published files."""

from __future__ import annotations

from pathlib import Path

import torch

from conftest import TINY, random_clip

WIDTH, PATCH = TINY["vision_cfg"]["width"], TINY["vision_cfg"]["patch_size"]


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
