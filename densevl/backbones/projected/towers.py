"""The two sides that projectors join: any image tower that gives patches, any text tower that gives vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from densevl import digest
from densevl.backbones.base import SIDE, Backbone
from densevl.backbones.open_clip_model import OpenClipBackbone
from densevl.backbones.protocol import InferenceProtocol
from densevl.backbones.proxies import Proxy, load_proxy
from densevl.errors import ModelError
from densevl.recipes.features import DenseFeatures

if TYPE_CHECKING:
    from PIL.Image import Image

PROXY, MINILM = "proxy:", "minilm"

Load = Callable[[str], Backbone]


class Vision(ABC):
    """Normalised pixels to one vector of width `width`, or to patches of that width.

    Attributes:
        backbone: the CLIP whose recipes apply, or None.
    """

    patch_size: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    protocol = InferenceProtocol(crop=None)
    backbone: OpenClipBackbone | None = None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the weights."""

    @abstractmethod
    def whole(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to (B, D)."""

    @abstractmethod
    def dense(self, pixels: torch.Tensor, **how: Any) -> DenseFeatures:
        """(B, 3, H, W) to patches, (B, D, h, w). `how` is what `Backbone.encode_dense` takes."""

    @abstractmethod
    def preprocess(self, image: Image) -> torch.Tensor:
        """A PIL image to normalised (3, S, S)."""


class ClipVision(Vision):
    """The image tower of a CLIP, in its joint space."""

    def __init__(self, backbone: OpenClipBackbone) -> None:
        self.backbone: OpenClipBackbone = backbone
        self.patch_size, self.width = backbone.patch_size, backbone.embed_dim
        self.mean, self.std, self.protocol = backbone.mean, backbone.std, backbone.protocol

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def whole(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.backbone.encode_image(pixels)

    def dense(self, pixels: torch.Tensor, **how: Any) -> DenseFeatures:
        return self.backbone.encode_dense(pixels, **how)

    def preprocess(self, image: Image) -> torch.Tensor:
        return self.backbone.preprocess(image)


class ProxyVision(Vision):
    """A vision-only model; its vector is the class token, or the mean of the places if it has none."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.patch_size, self.width = proxy.patch_size, proxy.embed_dim
        self.mean, self.std = ((r, g, b) for r, g, b in (proxy.mean, proxy.std))

    @property
    def device(self) -> torch.device:
        return self.proxy.device

    def whole(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.proxy.encode_image(self.proxy.prepare(pixels, self.mean, self.std))

    def dense(self, pixels: torch.Tensor, **how: Any) -> DenseFeatures:
        return DenseFeatures(self.proxy.from_clip(pixels, self.mean, self.std))

    def preprocess(self, image: Image) -> torch.Tensor:
        from PIL import ImageOps

        side = max(1, SIDE // self.patch_size) * self.patch_size
        rgb = torch.from_numpy(np.array(ImageOps.fit(image.convert("RGB"), (side, side)))).permute(2, 0, 1).float()
        mean, std = (torch.tensor(part).view(3, 1, 1) * 255 for part in (self.mean, self.std))
        return ((rgb - mean) / std).to(self.device)


class Words:
    """A text tower: strings to (T, `width`) float32.

    Attributes:
        fingerprint: changes when its vectors would. context_length: tokens that it reads.
    """

    def __init__(self, name: str, load: Load) -> None:
        """Load "minilm", from the wheel that model 'photo' uses, or the text side of a model of `load_backbone`."""
        self._encode: Callable[[Sequence[str]], torch.Tensor]
        if name == MINILM:
            from densevl.backbones.photo import minilm

            self.width, self.context_length = minilm.DIM, 256
            self._encode, self.fingerprint = minilm.MiniLM().encode, minilm.WEIGHTS_SHA256
            return
        backbone = _clip(name, load, "text")
        self.width, self.context_length = backbone.embed_dim, backbone.context_length
        self._encode, self.fingerprint = backbone.encode_text, backbone.text_fingerprint

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        return self._encode(texts)


def load_vision(name: str, load: Load, device: str | None = None) -> Vision:
    """An image tower by name: "proxy:NAME" as `load_proxy` takes it, or a CLIP as `load_backbone` does.

    Raises:
        ModelError: there is no such model, or it gives no features of patches.
    """
    if name.startswith(PROXY):
        return ProxyVision(load_proxy(name.removeprefix(PROXY), device=device))
    return ClipVision(_clip(name, load, "image"))


def _clip(name: str, load: Load, side: str) -> OpenClipBackbone:
    found = load(name)
    if isinstance(found, OpenClipBackbone):
        return found
    others = f"{PROXY}efficientnet-lite0 or another {PROXY}NAME" if side == "image" else MINILM
    raise ModelError(f"model '{name}' has no {side} tower to project; name a CLIP such as mini, or {others}")


def stamp(vision: Vision, words: Words) -> str:
    """A hash of both towers' weights; projectors fit only the weights that they were trained on."""
    from densevl.fitted import fingerprint

    return digest.of_text(fingerprint(vision), words.fingerprint)
