"""Image towers: open_clip's and timm's modules behind the interface of `recipes.tower`."""

from __future__ import annotations

from typing import Any

from densevl.backbones.towers.native import NativeViT
from densevl.backbones.towers.resnet import PooledResNet
from densevl.backbones.towers.speaking import Speaking, SpeakingViT
from densevl.backbones.towers.timm_vit import TimmViT
from densevl.backbones.towers.whole import WholeTower
from densevl.errors import ModelError
from densevl.recipes.tower import Tower

__all__ = ["NativeViT", "PooledResNet", "TimmViT", "WholeTower", "tower_of"]


def tower_of(visual: Any, name: str) -> Tower:
    """Wrap an image tower of open_clip; nothing is copied.

    Raises:
        ModelError: densevl cannot bring its patches into the joint space.
    """
    trunk = getattr(visual, "trunk", None)
    if isinstance(visual, Speaking):
        return SpeakingViT(visual, name)
    if hasattr(visual, "conv1") and hasattr(visual, "transformer"):
        return NativeViT(visual, name)
    if hasattr(visual, "attnpool"):
        return PooledResNet(visual)
    if type(trunk).__name__ in TimmViT.TRUNKS:
        return TimmViT(visual, name)
    if hasattr(trunk, "forward_head") and hasattr(trunk, "feature_info"):
        return WholeTower(visual, name)
    kind = type(visual if trunk is None else trunk).__name__
    raise ModelError(
        f"model '{name}' gives no dense features: its image tower is a {kind}, which has no layers to read patches "
        "from; use a native ViT such as ViT-B-16/openai"
    )
