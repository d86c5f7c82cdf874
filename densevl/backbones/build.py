"""From a config of open_clip and a weights file to a `Backbone`: built, loaded strictly, wrapped."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densevl.errors import MissingExtraError, ModelError

if TYPE_CHECKING:
    from densevl.backbones.base import Backbone


def build(
    name: str,
    model_config: dict[str, Any],
    weights: Path,
    preprocess: dict[str, Any],
    device: str,
    quick_gelu: bool = False,
    tokenizer_folder: Path | None = None,
) -> Backbone:
    """Build the architecture, load the weights strictly, wrap it.

    Args:
        name: for messages and results.
        model_config: as open_clip's JSON files have it: embed_dim, vision_cfg, text_cfg, ...
        weights: the checkpoint; it holds both towers, so neither fetches weights of its own.
        preprocess: mean, std, interpolation, resize_mode as far as known.
        device: where to put the model.
        quick_gelu: force QuickGELU, whatever the config says.
        tokenizer_folder: a folder that may hold the tokenizer's files.

    Raises:
        ModelError: open_clip cannot build it, or it gives no dense features. WeightsError: see `load_weights`.
        MissingExtraError: its text side needs a package that is not installed.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    from densevl.backbones.open_clip_model import OpenClipBackbone
    from densevl.backbones.towers import tower_of
    from densevl.backbones.weights import load_weights

    config = _without_downloads(model_config)
    text = config["text_cfg"]
    if (text.get("hf_model_name") or text.get("hf_tokenizer_name")) and not find_spec("transformers"):
        raise MissingExtraError("transformers", "hf", f"the text side of '{name}'")
    custom_text = config.pop("custom_text", False) or bool(text.get("hf_model_name"))
    config["quick_gelu"] = bool(config.get("quick_gelu")) or quick_gelu
    if custom_text and "multimodal_cfg" in config:
        model_class = open_clip.CoCa
    else:
        model_class = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    logging.getLogger(__name__).info("building %s from %s", name, weights)
    try:
        model = model_class(**config, cast_dtype=None)
        merged = merge_preprocess_dict(PreprocessCfg(), preprocess)
        settings = PreprocessCfg(**{**merged, "size": tower_of(model.visual, name).image_size})
        transform, tokenizer = image_transform_v2(settings, is_train=False), _tokenizer(text, tokenizer_folder)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelError(f"model '{name}': open_clip cannot build it from its config: {reason}") from error
    load_weights(model, weights, name)
    return OpenClipBackbone(
        model.to(device).requires_grad_(False),
        tokenizer,
        transform,
        name=name,
        mean=tuple(settings.mean),
        std=tuple(settings.std),
    )


def _without_downloads(model_config: dict[str, Any]) -> dict[str, Any]:
    """A copy of a config in which neither tower fetches weights of its own: the checkpoint holds both."""
    config = {
        **model_config,
        "text_cfg": dict(model_config["text_cfg"]),
        "vision_cfg": dict(model_config["vision_cfg"]),
    }
    if config["text_cfg"].get("hf_model_name"):
        config["text_cfg"]["hf_model_pretrained"] = False
    if config["vision_cfg"].get("timm_model_name"):
        config["vision_cfg"]["timm_model_pretrained"] = False
    return config


def _tokenizer(text: dict[str, Any], folder: Path | None) -> Any:
    """The tokenizer a text config names; a model folder that holds the files of one is used instead of the hub."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    length, settings = text.get("context_length", 77), text.get("tokenizer_kwargs") or {}
    if not text.get("hf_tokenizer_name"):
        return SimpleTokenizer(context_length=length, **settings)
    own = folder is not None and any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json"))
    source = str(folder) if own else text["hf_tokenizer_name"]
    return HFTokenizer(source, context_length=length, tokenizer_mode=text.get("tokenizer_mode"), **settings)
