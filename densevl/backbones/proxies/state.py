"""Tensors of proxies: extracted from the files of their authors' training, and loaded into timm's models.

Supported: timm's naming, DINO's own (which is the same), DINO's training checkpoints (the teacher's backbone), and
whatever timm converts itself, such as DINOv2's and DINOv3's own naming.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from torch import nn

from densevl.weights import WAY_OUT, Checkpoint, State, bad_file, below, load_strictly, read_checkpoint

PATCHES = "patch_embed.proj.weight"


def read_state(path: Path) -> State:
    """The tensors of a weights file by name, without containers, wrappers and heads.

    Raises:
        WeightsError: see `read_checkpoint`.
    """
    return backbone_of(read_checkpoint(path))


def backbone_of(checkpoint: Checkpoint) -> State:
    """The tensors below "backbone.", if there are any, otherwise all; without classification heads."""
    tensors = below(checkpoint.tensors, "backbone.") or checkpoint.tensors
    return {key: value for key, value in tensors.items() if not key.startswith("head.")}


def load_timm(model: nn.Module, state: State, path: Path, name: str) -> None:
    """Load into a timm model strictly; timm's converter for the architecture handles other naming.

    Raises:
        WeightsError: the tensors belong to another architecture or patch size.
    """
    wanted = model.state_dict()
    if set(state) != set(wanted):
        # the converter resizes patch kernels that do not fit, which would hide another patch size
        kernel, own = state.get(PATCHES), wanted.get(PATCHES)
        if kernel is not None and own is not None and kernel.ndim == 4 and kernel.shape != own.shape:
            raise bad_file(
                path, f"does not fit '{name}': {PATCHES} is {tuple(kernel.shape)}, not {tuple(own.shape)}; {WAY_OUT}"
            )
        convert = getattr(import_module(type(model).__module__), "checkpoint_filter_fn", None)
        if convert is not None:
            try:
                state = convert(dict(state), model)
            except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                reason = " ".join(str(error).split())[:200]
                raise bad_file(path, f"does not fit '{name}' ({reason}); {WAY_OUT}") from error
    load_strictly(model, state, path, f"'{name}'")
