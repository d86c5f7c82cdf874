"""Patch maps upsampled to the photo's resolution by a trained upsampler, read from its published file.

An upsampler mixes the patches of a map for each pixel with weights that depend on the photo and on features, not on the
map: up = A F. So it commutes with words: T (A F) = A (T F), and only as many channels are mixed as there are words or
features, whichever are fewer. No weights are shipped.
"""

from __future__ import annotations

from pathlib import Path

from densevl.errors import WeightsError, one_of
from densevl.refine.upsampling.attention import AnyUp, Jafar
from densevl.refine.upsampling.base import Upsampler
from densevl.refine.upsampling.jbu import Jbu
from densevl.weights import bad_file, read_checkpoint

KINDS: dict[str, type[Upsampler]] = {"anyup": AnyUp, "jbu": Jbu, "jafar": Jafar}

__all__ = ["KINDS", "AnyUp", "Jafar", "Jbu", "Upsampler", "load_upsampler"]


def load_upsampler(kind: str, weights: str | Path, device: str | None = None) -> Upsampler:
    """Read an upsampler from its file.

    Args:
        kind: "anyup" (Wimmer et al., ICLR 2026), "jbu" (FeatUp, Fu et al., ICLR 2024) or "jafar" (Couairon et al.,
            NeurIPS 2025). weights: the published file, or safetensors with the same names.

    Raises:
        WeightsError: the file is damaged, or of another kind.
    """
    one_of(kind, KINDS, "upsampler", WeightsError)
    path = Path(weights)
    tensors = {key: value.float() for key, value in read_checkpoint(path).tensors.items()}
    for name, other in KINDS.items():
        if name != kind and other.mark(tensors) and not KINDS[kind].mark(tensors):
            raise bad_file(path, f"is of '{name}', not of '{kind}': take refine='{name}'")
    return KINDS[kind](tensors, path).to(device)
