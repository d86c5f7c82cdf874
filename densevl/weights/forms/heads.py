"""The last projections of both towers: the width of the joint space, and cutting it to its first numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from densevl.weights.facts import Form
from densevl.weights.forms.sizes import NO_TEXT
from densevl.weights.reading import bad_file

IMAGE = {
    "visual.proj": 1,
    "visual.attnpool.c_proj.weight": 0,
    "visual.attnpool.c_proj.bias": 0,
    "visual.trunk.head.weight": 0,
    "visual.trunk.head.bias": 0,
    "visual.head.proj.weight": 0,
    "visual.head.proj.bias": 0,
    "visual.head.mlp.fc2.weight": 0,
    "visual.head.mlp.fc2.bias": 0,
}
"""The dimension of each that runs over the joint space."""
TEXT = {
    "text_projection": 1,
    "text_projection.weight": 0,
    "text_projection.bias": 0,
    "text.text_projection": 1,
    "text.text_projection.weight": 0,
    "text.text_projection.bias": 0,
    "text.proj.weight": 0,
    "text.proj.1.weight": 0,
    "text.proj.1.bias": 0,
    "text.proj.2.weight": 0,
}
GIVEN = {"head": "given"}
"""`Form.text` of a model whose text vectors come from elsewhere."""
SCALE = math.log(100)
"""The logit scale if a file has none: the value up to which CLIPs are trained."""


def cut(form: Form, config: dict[str, Any], width: int, path: Path) -> tuple[Form, dict[str, Any]]:
    """Cut a model's joint space to its first numbers (Matryoshka, Kusupati et al., NeurIPS 2022).

    Args:
        config: open_clip's model_cfg. width: numbers to keep.

    Raises:
        WeightsError: the joint space is narrower, or a side has no last projection.
    """
    state = dict(form.state)
    sides = (IMAGE,) if form.text == GIVEN else (IMAGE, TEXT)
    if not all(any(key in state for key in side) for side in sides):
        raise bad_file(path, f"has no last projection on both sides, so its vectors cannot be cut to {width} numbers")
    for key, dimension in {**IMAGE, **TEXT}.items():
        if key in state and state[key].ndim > dimension:
            if state[key].shape[dimension] < width:
                raise bad_file(path, f"gives vectors of {state[key].shape[dimension]} numbers, fewer than {width}")
            state[key] = state[key].narrow(dimension, 0, width)
    return replace(form, state=state), {**config, "embed_dim": width}


def wordless(form: Form, config: Mapping[str, Any]) -> tuple[Form, dict[str, Any]]:
    """Reduce a model to its image side, for text vectors that come from elsewhere.

    Args:
        config: open_clip's model_cfg.
    """
    state = {key: value for key, value in form.state.items() if key.startswith("visual.") or key == "logit_scale"}
    state.setdefault("logit_scale", torch.tensor(SCALE))
    wide = next((state[key].shape[at] for key, at in IMAGE.items() if key in state and state[key].ndim > at), None)
    own = {key: value for key, value in config.items() if key not in ("multimodal_cfg", "init_logit_bias")}
    own |= {"custom_text": True, "text_cfg": NO_TEXT, "embed_dim": wide or config["embed_dim"]}
    return replace(form, state=state, text=GIVEN, tower=False), own
