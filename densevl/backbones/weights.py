"""Loading a weights file into a model of open_clip, strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from densevl.weights import WAY_OUT, State, bad_file, load_strictly, read_checkpoint

PATCHES = ("conv1.weight", "patch_embed.proj.weight")
"""Names of an image tower's first layer where nothing stands before them, so that it is the whole file."""
POSITIONS = "positional_embedding"
OTHER_SIZE = "it was trained for another input size or text length: name that architecture"


def load_weights(model: Any, path: Path, name: str) -> None:
    """Load a weights file strictly into an open_clip model.

    Args:
        model: built by open_clip with the architecture the file should fit.
        path: .safetensors, or a torch checkpoint (.pt, .pth, .bin) of plain tensors.
        name: the model's name, for messages.

    Raises:
        WeightsError: missing, damaged or of another architecture; up to three keys are listed.
    """
    tensors = read_checkpoint(path).tensors
    wanted = model.state_dict()
    if tensors.keys() & set(PATCHES) or (tensors and all(key.startswith("visual.") for key in tensors)):
        raise bad_file(
            path,
            f"holds the image tower alone, and '{name}' needs its text tower too: give the file "
            "that both were published in",
        )
    try:
        tensors = _as_open_clip(model, tensors, wanted)
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise bad_file(path, f"does not fit '{name}' ({reason}); {WAY_OUT}") from error
    misfits = {key for key in wanted if key in tensors and tensors[key].shape != wanted[key].shape}
    # open_clip would resize these tables, which hides weights of another input size or context
    sized = misfits and all(key.endswith(POSITIONS) for key in misfits) and wanted.keys() == tensors.keys()
    load_strictly(model, tensors, path, f"'{name}'", OTHER_SIZE if sized else WAY_OUT)


def _as_open_clip(model: Any, tensors: State, wanted: State) -> State:
    """Names of other programs turned into open_clip's, as its `load_checkpoint` does."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    tensors = convert_state_dict(model, dict(tensors))
    if POSITIONS in tensors and not hasattr(model, POSITIONS):
        tensors = convert_to_custom_text_state_dict(tensors)
    for key in ("logit_scale", "logit_bias"):  # a number, in a shape of its own
        if key in tensors and key in wanted and tensors[key].numel() == wanted[key].numel():
            tensors[key] = tensors[key].reshape(wanted[key].shape)
    if "logit_bias" in wanted and "logit_scale" in tensors:
        tensors.setdefault("logit_bias", torch.zeros_like(tensors["logit_scale"]))
    positions = "text.transformer.embeddings.position_ids"  # of transformers before 4.31
    return {key: value for key, value in tensors.items() if key != positions or key in wanted}
