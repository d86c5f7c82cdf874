"""From a folder or a repository of the hub to a `ConceptModel`, read as data; code of repositories is never run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from densevl import devices
from densevl.concepts.base import ConceptModel
from densevl.errors import MissingExtraError, ModelError
from densevl.saved import Kind, read_json
from densevl.weights import below, build_strictly, hub
from densevl.weights.folders import read_weights, weights_in

FOLDER, CONFIG, PIXELS = "local-dir:", "config.json", ("preprocessor_config.json", "processor_config.json")
KINDS = {"sam3": "sam3", "sam3_video": "sam3", "clipseg": "clipseg"}
"""Model types of configs, and the classes that run them."""
PUBLISHED = {
    "facebook/sam3": "sam3",
    **dict.fromkeys(("CIDAS/clipseg-rd64-refined", "CIDAS/clipseg-rd64", "CIDAS/clipseg-rd16"), "clipseg"),
}
"""Repositories that are known without reading their config."""
SETTINGS = Kind("config", ModelError, "download the model again")
DETECTOR, LEFT_OUT = "detector_model.", ("tracker_model.", "tracker_neck.")
"""In a SAM 3 for video, the prefix of the part that is read, and those of other parts."""
USUAL = {
    "sam3": (1008, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clipseg": (352, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Side, mean and std, if no processor beside the weights sets them."""


def concept_kind(name: Any) -> str | None:
    """The kind of a concept model by its config on this disk: "sam3", "clipseg", or None for other names."""
    folder = _here(name) if isinstance(name, str | Path) else None
    if folder is None and isinstance(name, str):
        return PUBLISHED.get(name.removeprefix(hub.PREFIX))
    if folder is None or not (folder / CONFIG).is_file():
        return None
    try:
        return KINDS.get(str(read_json(folder / CONFIG, SETTINGS).get("model_type")))
    except ModelError:
        return None  # loading it will report the error


def load_concepts(name: str | Path, device: str | None = None) -> ConceptModel:
    """Load a concept model.

    Args:
        name: a folder with config.json, weights and tokenizer of SAM 3 or CLIPSeg as transformers saves them, as a path
            or as local-dir:PATH; or hf-hub:ORG/REPO, ORG/REPO ("facebook/sam3", "CIDAS/clipseg-rd64-refined").
        device: None takes CUDA when there is one.

    Raises:
        ModelError: there is no such model, or it is of another kind.
        WeightsError: weights are damaged, or do not fit the config.
        MissingExtraError: transformers is not installed.
    """
    where = devices.choose(device)
    if not str(name).removeprefix(FOLDER).strip():
        raise ModelError(
            "no concept model is named; name a folder of SAM 3 or CLIPSeg, or a repository such as facebook/sam3"
        )
    folder = _here(name)
    if folder is None:
        repo = hub.parse(str(name))
        if repo is None:
            raise ModelError(f"no concept model '{name}'; name a folder of SAM 3 or CLIPSeg, or a repository ORG/REPO")
        folder = hub.fetch_model(repo)
    if not (folder / CONFIG).is_file():
        raise ModelError(f"folder {folder} has no {CONFIG}; name a folder of SAM 3 or CLIPSeg as transformers saves it")
    config = read_json(folder / CONFIG, SETTINGS)
    kind = KINDS.get(str(config.get("model_type")))
    if kind is None:
        raise ModelError(
            f"model '{name}' is of type '{config.get('model_type')}', and concept models are sam3 and clipseg; "
            "others go as densevl.Segmenter(model)"
        )
    model = _built(str(name), kind, config, folder)
    model.module.to(where)
    return model


def _built(name: str, kind: str, config: Mapping[str, Any], folder: Path) -> ConceptModel:
    try:
        import transformers

        from densevl.concepts.models import ClipSeg, Sam3
    except ImportError as error:
        raise MissingExtraError("transformers", "hf", f"concept model '{name}'") from error
    own: Mapping[str, Any] = config.get("detector_config") or config
    parts: Any = {
        "sam3": ("Sam3Config", "Sam3Model", Sam3),
        "clipseg": ("CLIPSegConfig", "CLIPSegForImageSegmentation", ClipSeg),
    }[kind]
    if not hasattr(transformers, parts[1]):
        raise ModelError(f"model '{name}' needs transformers.{parts[1]}: pip install -U transformers")
    try:
        settings = getattr(transformers, parts[0]).from_dict(dict(own))
    except Exception as error:  # a config's own checks raise many types
        raise ModelError(f"config {folder / CONFIG} is not of {kind} ({' '.join(str(error).split())[:150]})") from error
    path = weights_in(folder, own=False)
    if path is None:
        raise ModelError(f"folder {folder} has no weights; put a .safetensors file beside {CONFIG}")
    tensors = dict(read_weights(path).tensors)
    if any(key.startswith(DETECTOR) for key in tensors):
        tensors = below({key: value for key, value in tensors.items() if not key.startswith(LEFT_OUT)}, DETECTOR)
    state = {
        key: value.float() if value.is_floating_point() else value
        for key, value in tensors.items()
        if not key.endswith("position_ids")
    }
    module: torch.nn.Module = build_strictly(
        lambda: getattr(transformers, parts[1])(settings), state, path, kind, "its config is of other sizes"
    )
    side, mean, std, guesses = _pixels(name, kind, folder, settings)
    module.eval().requires_grad_(False)
    tokenizer = _tokenizer(name, folder)
    rows = max((len(part.weight) for key, part in module.named_modules() if key.endswith("token_embedding")), default=0)
    if rows and len(tokenizer) > rows:
        raise ModelError(
            f"model '{name}' has {rows} tokens and its tokenizer {len(tokenizer)}: these are of two models; "
            "fetch the folder again"
        )
    made: ConceptModel = parts[2](name, module, tokenizer, side, mean, std)
    made.guesses = guesses
    return made


def _pixels(name: str, kind: str, folder: Path, settings: Any) -> tuple[int, Any, Any, tuple[str, ...]]:
    """Side, mean and std from the processor's settings; and a sentence about missing ones."""
    side, mean, std = USUAL[kind]
    if kind == "sam3":  # its positions fit one size
        side = settings.vision_config.image_size
    path = next((folder / file for file in PIXELS if (folder / file).is_file()), None)
    processor = {} if path is None else read_json(path, SETTINGS)
    processor = processor["image_processor"] if isinstance(processor.get("image_processor"), Mapping) else processor
    size, mean, std = processor.get("size", side), processor.get("image_mean", mean), processor.get("image_std", std)
    if isinstance(size, Mapping):
        sides = [size[key] for key in ("height", "width", "shortest_edge") if key in size]
        if path is not None and len(set(map(str, sides))) > 1:
            raise SETTINGS.bad(path, f"makes photos {' by '.join(map(str, sides))} pixels, and {kind} sees squares")
        size = sides[0] if sides else side
    sound = all(isinstance(row, list | tuple) and len(row) == 3 and all(map(_is_number, row)) for row in (mean, std))
    if path is not None and (type(size) is not int or not 1 <= size <= 4096 or not sound or min(std) <= 0):
        raise SETTINGS.bad(path, "says no size, mean and std of pixels")
    if kind == "sam3" and size != side:
        raise ModelError(
            f"model '{name}' sees photos of {side} pixels a side, and its processor makes them {size}: set size in "
            f"{path} to {side}"
        )
    if size < (patch := getattr(settings.vision_config, "patch_size", 1)):
        raise ModelError(f"model '{name}' has patches of {patch} pixels a side, and {path} makes photos of {size}")
    unsaid = [key for key in ("size", "image_mean", "image_std") if key not in processor]
    if not unsaid:
        return size, mean, std, ()
    values = f"size {size}, mean {list(mean)}, std {list(std)}"
    where = f"has no {PIXELS[0]}" if path is None else f"has a {path.name} without {', '.join(unsaid)}"
    return size, mean, std, (f"model '{name}' {where}: photos are made as is usual for {kind}, {values}",)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tokenizer(name: str, folder: Path) -> Any:
    """The tokenizer of a folder, read without its config, which would make transformers ask for remote code."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as apart:
        for file in hub.WORDS:
            if (folder / file).is_file():
                Path(apart, file).write_bytes((folder / file).read_bytes())
        try:
            return AutoTokenizer.from_pretrained(apart, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # tokenizer parsers raise many types
            raise ModelError(
                f"model '{name}' has no tokenizer that can be read: put tokenizer.json and tokenizer_config.json "
                "beside its weights"
            ) from error


def _here(name: str | Path) -> Path | None:
    """The folder of a model on this disk: the given one, or one in the hub's cache."""
    text = str(name)
    folder = Path(text.removeprefix(FOLDER))
    if folder.is_dir():
        return folder
    try:
        repo = hub.parse(text) if "/" in text and not text.startswith(FOLDER) else None
    except ModelError:
        return None
    return None if repo is None else hub.cached_folder(repo)
