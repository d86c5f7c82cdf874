"""Helpers for entries: published figures, and settings that many papers share.

All figures are mIoU in per cent, for ViT-B/16 with OpenAI weights unless stated otherwise.
"""

from __future__ import annotations

from typing import TypedDict

BENCHMARKS = ("voc21", "context60", "coco-object", "voc20", "context59", "coco-stuff", "cityscapes", "ade150")
SLIDE = "short side 336 (Cityscapes 560), windows 224 / stride 112"


class _Bare(TypedDict):
    residual: bool
    ffn: bool


BARE: _Bare = {"residual": False, "ffn": False}
"""The last block's attention alone, without its skip connection and its MLP."""


def miou(*figures: float | None) -> dict[str, float]:
    """Figures in the order of `BENCHMARKS`, None where the paper gives none."""
    return {name: f for name, f in zip(BENCHMARKS, figures, strict=True) if f is not None}
