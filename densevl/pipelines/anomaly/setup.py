"""Build the parts of an `AnomalyDetector`: the list of images, the input size, a recipe, adapters and a proxy."""

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
from densevl.anomaly.scoring import Scoring
from densevl.anomaly.trained.adapters import Adapters, load_adapters
from densevl.backbones import Backbone
from densevl.backbones.proxies import Proxy, load_proxy
from densevl.errors import ImageError, ModelError, OptionError, RecipeError, WeightsError
from densevl.images import list_images
from densevl.recipes.recipe import Recipe
from densevl.recipes.tower import Tower

STREAMS = "streams"
"""The recipe name of scorings that read V-V streams."""


def each_image(images: Any) -> Iterable[Any]:
    """Return the images of a folder, one path or image, or each of an iterable, in which folders are expanded."""
    if isinstance(images, (str, os.PathLike)):
        return list_images(images)
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return [images] if images.ndim < 4 else list(images)
    if not isinstance(images, Iterable):
        raise ImageError(f"images= is a {type(images).__name__}; give a folder, a path, or a list of paths and images")
    return chain.from_iterable(
        list_images(image) if isinstance(image, (str, os.PathLike)) and os.path.isdir(image) else [image]
        for image in images
    )


def fed_side(size: int | tuple[int, int] | None, backbone: Backbone, tower: Tower | None) -> int | tuple[int, int]:
    """Return the short side that images are resized to, as requested or the model's own, or both sides.

    Raises:
        OptionError: If it is less than a patch, or a pair that is not in whole patches.
    """
    patch = backbone.patch_size
    if size is None:
        return min(tower.image_size) if tower is not None else backbone.protocol.short_side or 224
    if isinstance(size, (tuple, list)):
        if len(size) != 2 or not all(_is_whole(side, patch) for side in size):
            raise OptionError(
                f"size is {size!r}; a pair must be height and width in multiples of the patch size, {patch}"
            )
        return size[0], size[1]
    if isinstance(size, bool) or not isinstance(size, int) or size < patch:
        raise OptionError(f"size is {size!r}; it must be a number of pixels, at least one patch, {patch}")
    return size


def tile_side(tile: int | None, backbone: Backbone, proxy: Proxy | None, scoring: Scoring) -> int | None:
    """Return the side of tiles after checking it.

    Raises:
        OptionError: If it is not in whole patches, smaller than the largest window, or combined with a proxy.
    """
    if tile is None:
        return None
    if proxy is not None:
        raise OptionError("tiles are cut on the model's own patches; leave the proxy out, or the tile")
    least = backbone.patch_size * max((2, *scoring.scales))
    if not _is_whole(tile, backbone.patch_size) or tile < least:
        raise OptionError(
            f"tile is {tile!r}; it must be a multiple of the patch size, {backbone.patch_size}, of at least {least}"
        )
    return tile


def _is_whole(side: Any, patch: int) -> bool:
    return isinstance(side, int) and not isinstance(side, bool) and side >= patch and side % patch == 0


def dense_recipe(backbone: Backbone, name: str | None) -> Recipe | None:
    """Return the recipe of dense features: the scoring's, the model's own, or None for V-V streams."""
    return None if name == STREAMS else backbone.resolve(name)


def fitting_adapters(adapters: Adapters | str | Path | None, backbone: Backbone, scoring: Scoring) -> Adapters | None:
    """Return the adapters that a scoring reads, on the backbone's device, or None.

    Raises:
        ModelError: If it needs adapters and has none.
        RecipeError: If it does not use adapters.
        WeightsError: If they belong to another backbone.
    """
    if scoring.text != "adapters":
        if adapters is not None:
            raise RecipeError(f"scoring '{scoring.name}' does not use adapters; take 'adaptclip'")
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
    """Return a proxy, loaded by name if needed."""
    if proxy is None or isinstance(proxy, Proxy):
        return proxy
    return load_proxy(proxy, device=device)
