"""From a name to a `Backbone`.

Names: "auto" · "photo", "photo+vit", "photo+vit28" · "mini" · "ARCH/TAG" as open_clip lists them, such as
"ViT-B-16/openai" · "hf-hub:ORG/REPO", followed by "@REVISION" or "/FILE" if needed, or "ORG/REPO" · a folder with
weights and the config of open_clip or transformers, as a path or as "local-dir:PATH" · a weights file, whose sizes are
read from it · an architecture, "ARCH/TAG" or a config file together with `weights=` · "catseg" or "catseg-640" with
CAT-Seg's file as `weights=` · a .onnx file from `densevl export` · "projected:FILE", projectors of `tools.projector`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevl import devices
from densevl.backbones import at_hand
from densevl.backbones.at_hand import CATSEG, PHOTO_NAMES
from densevl.backbones.from_files import (
    CONFIG,
    FOLDER,
    THEIR_CONFIG,
    How,
    from_files,
    from_folder,
    of_file,
    of_named,
    published,
    published_file,
)
from densevl.errors import ModelError, OptionError, PrecisionError
from densevl.weights import hub
from densevl.weights.given import all_given
from densevl.weights.words import read_words

if TYPE_CHECKING:
    from densevl.backbones.base import Backbone

PROJECTED = "projected:"


def load_backbone(
    name: str = "auto",
    weights: str | Path | None = None,
    *,
    device: str | None = None,
    precision: str = "float32",
    activation: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    words: str | Path | Mapping[str, Any] | None = None,
    truncate_dim: int | None = None,
) -> Backbone:
    """Load a model by name.

    Args:
        name: see the module text.
        weights: a checkpoint file; then `name` is an open_clip architecture ("ViT-B-16"), a config JSON file, or "mini"
            for a file that `tools.mini` or `tools.clipself` wrote.
        device: "cpu", "cuda", ...; None takes CUDA when there is one.
        precision: of the linear layers of the image tower's blocks: "float32", "int8" (faster on a CPU), "bfloat16",
            "float16" or "float32-packed" (CPU; float32's numbers, weights packed beforehand). CLIPs keep only the
            lowered weights: `encode_image` uses them too, and the model takes half the memory, or a quarter; packed
            weights take float32's. "auto" takes the fastest on this machine (see docs/speed.md), float32 for models
            that have no other; `backbone.precision` says which. See `Backbone.at_precision` to keep both.
        activation: "quick_gelu", "gelu" or "gelu_tanh", for both towers, if the weights do not say it, or say it
            wrongly.
        mean, std: likewise for pixels: three numbers, RGB on the 0-1 scale.
        words: vectors of texts that replace the model's text side, which it then need not have: a dict, or a file that
            `weights.words.read_words` reads; see `OpenClipBackbone.with_words`.
        truncate_dim: keep only the first so many numbers of vectors, for models trained for that (Matryoshka).

    Raises:
        OptionError: a width is below 1.
        ModelError: the name is unknown, files are not at hand, or the model gives no dense features or cannot run at
            this precision.
        WeightsError: weights are damaged, belong to another architecture, or exceed the memory.
        MissingExtraError: "photo" lacks its packages, or a Hugging Face text side lacks transformers.
    """
    import torch

    from densevl.backbones.exported import ENDING, Exported
    from densevl.backbones.lowered.probe import fastest
    from densevl.backbones.precision import AUTO, check

    where = devices.choose(device)
    if truncate_dim is not None and (type(truncate_dim) is not int or truncate_dim < 1):
        raise OptionError(f"truncate_dim is {str(truncate_dim)[:20]}; it is a whole number from 1")
    if words is not None and not isinstance(words, Mapping | str | os.PathLike):
        raise OptionError(f"words is a {type(words).__name__}; it is a dict from texts to vectors, or a file of them")
    vectors = words if words is None or isinstance(words, Mapping) else read_words(words)
    lowered = fastest(torch.device(where)).precision if precision == AUTO else precision
    how = How(where, lowered, all_given(activation, mean, std), vectors, truncate_dim)
    if weights is None and name.lower().endswith(ENDING):
        if device is not None and where != "cpu":
            raise ModelError(f"'{name}' runs on the CPU, by onnxruntime; leave the device out")
        if how.given:
            raise ModelError(f"'{name}' says its activation and pixel statistics itself; leave them out")
        return Exported(name, partial(load_backbone, device="cpu")).at_precision(precision)
    check(precision, torch.device(where))
    try:
        loaded = _load(name, weights, how)
    except PrecisionError:
        if precision != AUTO:
            raise
        loaded = _load(name, weights, replace(how, precision="float32"))
    return loaded.at_precision(precision)


def _load(name: str, weights: str | Path | None, how: How) -> Backbone:
    if name in CATSEG:
        if weights is None:
            raise ModelError(f"model '{name}' needs the authors' file, model_base.pth or model_large.pth: weights=FILE")
        from densevl.backbones.decoders.cat_seg import load_cat_seg

        return load_cat_seg(name, Path(weights), how)
    if weights is not None and not name.startswith(PROJECTED):
        named = hub.parse(str(weights)) if str(weights).startswith(hub.PREFIX) else None
        return from_files(name, hub.fetch_model(named) if named else Path(weights), how)
    if name == "auto":
        name = at_hand.best_at_hand()
        at_hand.offer(name)
    if name in (*PHOTO_NAMES, "mini") and (how.given or how.words is not None or how.width):
        raise ModelError(f"model '{name}' has activation, pixel statistics, words and width of its own; leave them out")
    if name in PHOTO_NAMES:
        from densevl.backbones.photo import Photo

        return Photo(device=how.device, grouping=name.partition("+")[2] or None)
    if name == "mini":
        from densevl.backbones.mini import Mini

        return Mini(device=how.device)
    if name.startswith(PROJECTED):
        from densevl.backbones.projected import Projected

        if name == PROJECTED:
            raise ModelError(
                f"'{PROJECTED}' names no file of projectors; give one, as in {PROJECTED}joined.safetensors"
            )
        if weights is not None or how.given or how.words is not None or how.width:
            raise ModelError(f"'{name}' names its towers itself; leave weights, activation, pixels, words, width out")
        return Projected(name.removeprefix(PROJECTED), partial(load_backbone, device=how.device), device=how.device)
    if name.startswith(FOLDER):
        return from_folder(Path(name.removeprefix(FOLDER)), how)
    if found := published(name):
        return _from_hub(*found, how)
    if os.path.isdir(name):
        return from_folder(Path(name), how)
    if os.path.isfile(name):
        path = Path(name)
        return from_folder(path.parent, how) if path.name in (CONFIG, THEIR_CONFIG) else of_file(path, how)
    if repo := hub.parse(name):
        return _from_repo(repo, how)
    raise at_hand.unknown(name)


def _from_repo(repo: hub.Repo, how: How) -> Backbone:
    """Load a repository of the hub and record the commit."""
    path = hub.fetch_model(repo)
    if path.is_file():
        return of_file(path, how)
    backbone = from_folder(path, how, str(repo))
    backbone.reading = {**backbone.reading, "revision": [path.name, repo.repo]}
    return backbone


def _from_hub(arch: str, tag: str, how: How) -> Backbone:
    path, config = published_file(arch, tag)
    return of_named(f"{arch}/{tag}", arch, tag, path, how, config)
