"""`mix`: a model between two of the same architecture (WiSE-FT; Wortsman et al., CVPR 2022).

Models between a base model and its fine-tuned version keep more of the base model's abilities.
"""

from __future__ import annotations

import copy

import torch

from densevl.backbones.base import Backbone
from densevl.backbones.open_clip_model import OpenClipBackbone
from densevl.errors import ModelError, OptionError
from densevl.fitted import TAKEN


def mix(a: Backbone, b: Backbone, share: float) -> Backbone:
    """A model whose weights are (1 - share) a + share b, tensor by tensor; both stay unchanged.

    Args:
        a, b: CLIPs of open_clip's kind, with the same tensors. share: of b, 0..1; at 0 and 1 the weights are bit-equal
            to those of a and b.

    Raises:
        OptionError: the share is out of range.
        ModelError: names are given instead of models, or the models are of another kind, or differ in their tensors or
            in how they read pixels.
    """
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise OptionError(f"share is {share}: it is the share of the second model, 0 to 1")
    for one in (a, b):
        if not isinstance(one, Backbone):
            raise ModelError(
                f"{str(one)[:40]!r} is a {type(one).__name__}, not a model; load it first, by load_backbone(NAME)"
            )
        if not isinstance(one, OpenClipBackbone) or one.words is not None:
            raise ModelError(f"model '{one.name}' has no weights of its own on both sides to mix; take open_clip's")
    first, second = a.model.state_dict(), b.model.state_dict()  # type: ignore[attr-defined]
    _require_alike(a, b, first, second)
    mixed = copy.deepcopy(a.model)  # type: ignore[attr-defined]
    mixed.load_state_dict({key: _between(value, second[key], float(share)) for key, value in first.items()})
    made: OpenClipBackbone = a.around(mixed)  # type: ignore[attr-defined]
    made.__dict__.pop("text_fingerprint", None)
    made.logit_scale = float(mixed.logit_scale.float().exp())
    made.name = f"{1 - share:g} {a.name} + {share:g} {b.name}"
    return made


def _between(x: torch.Tensor, y: torch.Tensor, share: float) -> torch.Tensor:
    """Interpolate between two tensors; tensors without real numbers, such as indices, are equal in both."""
    y = y.to(x.device)
    return torch.lerp(x.float(), y.float(), share).to(x.dtype) if x.is_floating_point() else x


def _require_alike(a: Backbone, b: Backbone, first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    if odd := sorted(set(first) ^ set(second)):
        raise ModelError(f"models '{a.name}' and '{b.name}' have other weights, such as {odd[0]}: they cannot be mixed")
    for key, x in first.items():
        y = second[key]
        if x.shape != y.shape or (not x.is_floating_point() and not torch.equal(x, y.to(x.device))):
            raise ModelError(
                f"models '{a.name}' and '{b.name}' cannot be mixed: {key} is {tuple(x.shape)} in one and "
                f"{tuple(y.shape)} in the other, or holds other indices"
            )
    read = [(one.mean, one.std, *(one.reading.get(name) for name in TAKEN)) for one in (a, b)]
    if read[0] != read[1]:
        raise ModelError(f"models '{a.name}' and '{b.name}' have another mean, std or activation: they cannot be mixed")
