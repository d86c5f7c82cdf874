"""From the tensors of any CLIP to open_clip's names: which program wrote them is told by what they are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from densevl.weights.facts import Form
from densevl.weights.forms.others import cn_clip, eva, native, slip, tower
from densevl.weights.forms.transformers import KERNEL, of_transformers
from densevl.weights.reading import State, bad_file, below

__all__ = ["recognise"]

WRAPPERS = ("module.", "_orig_mod.", "model.", "clip.", "clip_model.", "student.", "base_model.model.")
"""What training programs put before every name."""
ADDITIONS = {
    "lambda_q1": "is a DiffCLIP, whose attention open_clip does not have",
    "prompt_learner": "holds learned prompts and no model; words are given to a model as labels",
    "lora_": "holds changes to a model (LoRA) and no model: merge them into it first",
    "conv1_alpha": "is an Alpha-CLIP: give it to 'regions --operator alpha', beside a CLIP",
    "fusion_module": "is a PMC-CLIP, whose text side looks at padding, which densevl does not do",
    "visual_encoder.": "is a BLIP, whose image side is no CLIP's",
    "sem_seg_head.": "is a model of segmentation around a CLIP; densevl takes the CLIP alone",
    "vision_model.blocks.": "is a jina-clip, whose text side densevl does not have",
    "text_model.shared": "holds a text side of T5, which densevl does not have",
}
"""By a part of a name: what is not a model that densevl runs, and why."""


def recognise(
    tensors: State, path: Path, config: Mapping[str, Any] | None = None, pixels: Mapping[str, Any] | None = None
) -> Form:
    """What a file holds, in open_clip's names.

    Args:
        tensors: of the file. path: the file, for messages. config, pixels: config.json and preprocessor_config.json of
            transformers, where there are any.

    Raises:
        WeightsError: nothing that densevl runs, with the reason. ModelError: a config that is not read.
    """
    state = _unwrapped(tensors)
    for part, reason in ADDITIONS.items():
        if any(part in key for key in state):
            raise bad_file(path, reason)
    if KERNEL in state or (config is not None and "embeddings.patch_embedding.weight" in state):
        whole = state if KERNEL in state else {f"vision_model.{key}": value for key, value in state.items()}
        return of_transformers(whole, path, config, pixels or {})
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
    """Whether a file holds an image tower alone."""
    first = {"conv1.weight", "patch_embed.proj.weight"} & state.keys()
    return bool(first) or (bool(state) and all(key.startswith("visual.") for key in state))


def _tower(state: State, path: Path) -> Form:
    whole = tower(state)
    return replace(eva(whole.state, path), tower=True) if "visual.patch_embed.proj.weight" in whole.state else whole


def _unwrapped(tensors: State) -> State:
    state = tensors
    while prefix := next((p for p in WRAPPERS if state and all(key.startswith(p) for key in state)), ""):
        state = below(state, prefix)
    return state
