"""What an `AnomalyDetector` is put together from: images in any form, the fed size, a recipe, adapters, a proxy."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from densevl.anomaly import storage
from densevl.anomaly.adapters import Adapters, load_adapters
from densevl.anomaly.scoring import Scoring
from densevl.backbones import Backbone
from densevl.backbones.proxies import Proxy, load_proxy
from densevl.errors import ImageError, ModelError, RecipeError, WeightsError
from densevl.images import list_images
from densevl.recipes.recipe import Recipe
from densevl.recipes.tower import Tower

STREAMS = "streams"
"""The recipe of a scoring that reads V-V streams."""


def each_image(images: Any) -> Iterable[Any]:
    """The images meant: those of a folder, one path or image, or each of an iterable (a folder in it is expanded)."""
    if isinstance(images, (str, os.PathLike)):
        return list_images(images)
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return [images] if images.ndim < 4 else list(images)
    if not isinstance(images, Iterable):
        raise ImageError(f"images are a {type(images).__name__}; give a folder, a path, or a list of paths and images")
    return chain.from_iterable(
        list_images(image) if isinstance(image, (str, os.PathLike)) and os.path.isdir(image) else [image]
        for image in images
    )


def fed_side(size: int | None, backbone: Backbone, tower: Tower | None) -> int:
    """The short side images are fed at: as asked, or the model's own.

    Raises:
        ImageError: less than a patch.
    """
    patch = backbone.patch_size
    if size is None:
        return min(tower.image_size) if tower is not None else backbone.protocol.short_side or 224
    if isinstance(size, bool) or not isinstance(size, int) or size < patch:
        raise ImageError(f"size is {size!r}; it is a number of pixels, at least one patch, {patch}")
    return size


def dense_recipe(backbone: Backbone, name: str | None) -> Recipe | None:
    """The recipe of dense features: the scoring's, the model's own, or None for V-V streams."""
    return None if name == STREAMS else backbone.resolve(name)


def fitting_adapters(adapters: Adapters | str | Path | None, backbone: Backbone, scoring: Scoring) -> Adapters | None:
    """The adapters a scoring reads, on the backbone's device, or None.

    Raises:
        ModelError: it needs some. RecipeError: it has no use for them. WeightsError: they are of another backbone.
    """
    if scoring.text != "adapters":
        if adapters is not None:
            raise RecipeError(f"scoring '{scoring.name}' has no use for adapters; take 'adaptclip'")
        return None
    if adapters is None:
        raise ModelError(f"scoring '{scoring.name}' needs trained adapters: give adapters=FILE, see train_adapters")
    own = storage.fingerprint(backbone)
    if not isinstance(adapters, Adapters):
        adapters = load_adapters(adapters, backbone.name, own)
    elif adapters.fingerprint != own:
        raise WeightsError(f"the adapters were trained on model '{adapters.model}', not on '{backbone.name}'")
    return adapters.to(backbone.device)


def as_proxy(proxy: Any, device: str) -> Proxy | None:
    """A proxy as given, or loaded by name."""
    if proxy is None or isinstance(proxy, Proxy):
        return proxy
    return load_proxy(proxy, device=device)


def require_same(model: Any, fingerprint: str, name: str, path: Any) -> None:
    """Refuse a model with other weights than a detector was fitted with.

    Raises:
        WeightsError: it has.
    """
    if storage.fingerprint(model) != fingerprint:
        raise WeightsError(
            f"detector {path} was fitted with model '{name}', and '{model.name}' has other weights: its memory means "
            "nothing to them; load it with that model, or fit again"
        )
