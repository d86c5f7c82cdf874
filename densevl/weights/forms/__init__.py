"""From the tensors of any CLIP to open_clip's names; the tensors' names show which program wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from densevl.errors import DensevlError
from densevl.saved import said
from densevl.weights.facts import Form
from densevl.weights.forms.dinotxt import dinotxt, is_dinotxt, joined
from densevl.weights.forms.others import cn_clip, eva, native, slip, tower
from densevl.weights.forms.pixels import Processor
from densevl.weights.forms.radio import WORDS, is_radio, radio
from densevl.weights.forms.settings import CONFIG, side
from densevl.weights.forms.sizes import depth
from densevl.weights.forms.tipsv2 import TIPS, tipsv2
from densevl.weights.forms.transformers import KERNEL, of_transformers
from densevl.weights.forms.variants import ALPHA, LONGER, alpha_clip, diffclip, jina, long_clip, pmc_clip
from densevl.weights.reading import State, bad_file, below

__all__ = ["recognise"]

WRAPPERS = ("module.", "_orig_mod.", "model.", "clip.", "clip_model.", "student.", "base_model.model.")
"""Prefixes that training programs put before every name."""
IMAGE_SIDE = ("visual.", "vision_model.", "visual_projection.", "image_projection", "logit_scale")
BLOCKS = {
    "vision_config": ("visual.trunk.blocks.", "visual.transformer.resblocks."),
    "text_config": ("text.transformer.resblocks.", "transformer.resblocks."),
}
"""Prefixes of blocks in open_clip's names, by the part of config.json that counts them."""
ADDITIONS = {
    "prompt_learner": "holds learned prompts and no model; words are given to a model as labels",
    ".base_layer.": "holds a model of peft whose changes are not merged: save what its merge_and_unload() gives",
    ".lora_A.": "holds changes to a model (LoRA) and no model: name its base beside it as the model",
    "lora_unet_": "holds changes to a model that draws images, and no model",
    "lora_te_": "holds changes to a text side (LoRA), in a form that densevl does not merge",
    ".self_attn.qkv.": "is a BLIP, whose image side is not CLIP's",
    "classifier.weight": "is a classifier of fixed classes made of a CLIP, without words; densevl takes the CLIP alone",
    "visual_encoder.": "is a BLIP, whose image side is not CLIP's",
    "sem_seg_head.": "is a segmentation model around a CLIP; densevl takes the CLIP alone",
    "text_model.shared": "holds a text side of T5, which densevl does not have",
}
"""By a part of a name: models that densevl does not run, and why."""


def recognise(
    tensors: State,
    path: Path,
    config: Mapping[str, Any] | None = None,
    pixels: Processor | None = None,
    *,
    words: bool = False,
) -> Form:
    """Convert the content of a file to open_clip's names.

    Args:
        tensors: of the file. path: the file, for messages. config, pixels: config.json and the settings of the
            transformers processor, if there are any.
        words: whether text vectors come from elsewhere, so that any text side is left out.

    Raises:
        WeightsError: densevl does not run the model, with the reason.
        ModelError: the config is not supported.
    """
    try:
        form = _form(_unwrapped(tensors), path, config, pixels, words)
        _require_depth(form.state, config, path)
        return form
    except DensevlError:
        raise
    except Exception as error:  # wrong shapes cause too many kinds of error for a message each
        raise bad_file(path, f"holds tensors of no model's shapes ({said(error)}); download it again") from error


def _require_depth(state: State, config: Mapping[str, Any] | None, path: Path) -> None:
    """Refuse a file that lacks the last blocks of a tower; only the config shows that, since no number is missing."""
    for name, starts in BLOCKS.items():
        expected = side(config, name).get("num_hidden_layers")
        found = max(depth(state, start) for start in starts)
        if type(expected) is int and 0 < found < expected:
            raise bad_file(
                path,
                f"has {found} blocks where {CONFIG} beside it says {expected} ({name}): it is incomplete, or the "
                "config is another model's; download both again",
            )


def _form(state: State, path: Path, config: Mapping[str, Any] | None, pixels: Processor | None, words: bool) -> Form:
    if words and any(key.startswith(("visual.", "vision_model.")) for key in state):
        state = {key: value for key, value in state.items() if key.startswith(IMAGE_SIDE)}
    for part, reason in ADDITIONS.items():
        if any(part in key for key in state):
            raise bad_file(path, reason)
    if KERNEL in state or (config is not None and "embeddings.patch_embedding.weight" in state):
        whole = state if KERNEL in state else {f"vision_model.{key}": value for key, value in state.items()}
        return of_transformers(whole, path, config, pixels)
    if is_dinotxt(state):
        return dinotxt(joined({path: state}) or state, path)
    if is_radio(state):
        text = below(state, WORDS)
        return radio(state, path, _form(text, path, config, None, words=False) if text else None)
    if TIPS in state:
        return tipsv2(state, path, config, pixels)
    if any(key.startswith("vision_model.blocks.") for key in state):
        return jina(state, path, config, pixels, words=words)
    if any(key.startswith("fusion_module.") for key in state):
        return pmc_clip(state, path)
    if "visual.class_embedding" not in state and any(key.endswith(".lambda_q1") for key in state):
        return diffclip(state, path)
    if LONGER in state:
        return replace(native(long_clip(state, path), path), name="Long-CLIP")
    if ALPHA in state or ALPHA.removeprefix("visual.") in state:
        whole = tower(state, path).state if _is_tower(state) else state
        plain = alpha_clip(whole, path)
        return replace(tower(plain, path) if _is_tower(plain) else native(plain, path), name="Alpha-CLIP")
    if "bert.embeddings.word_embeddings.weight" in state:
        return cn_clip(state, path)
    if "image_projection" in state and "visual.patch_embed.proj.weight" in state:
        return slip(state, path)
    if _is_tower(state):
        return _tower(state, path)
    if "visual.patch_embed.proj.weight" in state and "visual.blocks.0.norm1.weight" in state:
        return eva(state, path)
    return native(state, path)


def _is_tower(state: State) -> bool:
    """Whether a file holds only an image tower."""
    first = {"conv1.weight", "patch_embed.proj.weight"} & state.keys()
    return bool(first) or (bool(state) and all(key.startswith(("visual.", "logit_")) for key in state))


def _tower(state: State, path: Path) -> Form:
    form = tower(state, path)
    return replace(eva(form.state, path), tower=True) if "visual.patch_embed.proj.weight" in form.state else form


def _unwrapped(tensors: State) -> State:
    state = tensors
    while prefix := next((p for p in WRAPPERS if state and all(key.startswith(p) for key in state)), ""):
        state = below(state, prefix)
    return state
