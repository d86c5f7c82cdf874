"""Models to distil: load them, find their image tower, and write a student as a weights file."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save
from torch import nn

from densevl.backbones import load_backbone
from densevl.backbones.mini import SHA256, Mini
from densevl.backbones.open_clip_model import OpenClipBackbone
from densevl.errors import ModelError
from densevl.shipped import MINI, shipped_file
from densevl.weights import read_checkpoint

VISUAL = "visual."


def load(name: str, weights: Path | None = None, device: str | None = None) -> OpenClipBackbone:
    """Load a model of open_clip by name; "mini" with a file is one that `pack` or `tools.mini.export` wrote.

    Raises:
        ModelError: If there is no such model, or it has no image tower of open_clip.
    """
    found = load_backbone(name, weights, device=device)
    if not isinstance(found, OpenClipBackbone):
        raise ModelError(f"model '{name}' has no image tower of open_clip to train; take mini or ViT-B-16/openai")
    return found


def image_tower(backbone: OpenClipBackbone) -> nn.Module:
    """Return the module of the image tower, the only part that is trained."""
    return backbone.model.visual


def pack(student: OpenClipBackbone, source: Path | None = None) -> bytes:
    """Return the content of a safetensors file that loads like the teacher's weights.

    Args:
        student: a trained copy. source: the file that the teacher was loaded from; None is its published one.

    Returns:
        For mini the compact form that `Mini(path)` reads, in float16. For other models the full open_clip state, which
        `load_backbone(ARCHITECTURE, weights=FILE)` reads.
    """
    if not isinstance(student, Mini):
        state = student.model.state_dict()
        return save({key: value.detach().cpu().contiguous().clone() for key, value in state.items()})
    found = read_checkpoint(source or shipped_file(MINI, SHA256, "mini", "tools.mini.train"))
    state = dict(found.tensors)
    for key, value in image_tower(student).state_dict().items():
        state[VISUAL + key] = value.detach().cpu().half().contiguous()
    return save(state, found.header)
