"""Linear layers and MLPs of blocks: plain ones run by `kernels.linear`, others as they are.

Modules are read, never edited. Shape letters: M tokens, D width.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from densevl.kernels.common import QUICK, captured
from densevl.kernels.dispatch import wants_gradients
from densevl.kernels.linear import add_linear, diverted, is_plain, is_watched, linear

KINDS = ("gelu", "gelu_tanh", "silu", "quick")
HIDDEN = {"cpu": 2**21, "cuda": 2**26}
"""Numbers of an MLP's hidden layer, four times as wide as tokens, held at once. With more, a CPU's memory is returned
to the system and faulted in again at every layer; with far fewer, weights are read too often."""
Mlp = tuple[nn.Linear, str, nn.Linear]


def through_mlp(module: nn.Module, x: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
    """The output of an MLP for x, (..., D), added in place to `onto`, contiguous and of that shape, if given."""
    if onto is not None and getattr(module, "adds", False):
        return module(x, add=onto, out=onto)
    parts = None if captured() else mlp_of(module)
    if parts is not None and is_plain(parts[0]) and is_plain(parts[2]):
        first, kind, second = parts
        if not wants_gradients((x, first.weight, second.weight)) and first.weight.dtype == torch.float32:
            # QuickGELU(x) is SiLU(1.702 x) / 1.702.
            then, times = ("silu", QUICK) if kind == "quick" else (kind, 1.0)
            bias = first.bias if first.bias is None or times == 1 else first.bias * times
            hidden = linear(x, first.weight, bias, then, times=times)
            if onto is None:
                return linear(hidden, second.weight, second.bias, times=1 / times)
            return add_linear(onto, hidden, second.weight, second.bias, times=1 / times, in_place=True)
        y = module(x)
    else:
        with diverted():  # gated MLPs, such as EVA02's SwiGLU, and those with an inner norm
            y = module(x)
    return y if onto is None else onto.add_(y)


def mlp_of(module: nn.Module) -> Mlp | None:
    """The two layers of an MLP and its activation, one of `KINDS`; None if it has further parts."""
    if is_watched(module):
        return None
    if type(module) is nn.Sequential:
        parts = [part for part in module if not isinstance(part, nn.Identity | nn.Dropout)]
    elif _name(module) == ("timm", "Mlp") and isinstance(getattr(module, "norm", None), nn.Identity):
        parts = [module.fc1, module.act, module.fc2]  # type: ignore[list-item]
    else:
        return None
    if len(parts) != 3 or not (isinstance(parts[0], nn.Linear) and isinstance(parts[2], nn.Linear)):
        return None
    kind = _kind(parts[1])
    return None if kind is None else (parts[0], kind, parts[2])


def _name(module: nn.Module) -> tuple[str, str]:
    return type(module).__module__.partition(".")[0], type(module).__name__


def _kind(activation: nn.Module) -> str | None:
    """Which of `KINDS` an activation is, by its values, because libraries have many names for each."""
    if any(activation.children()) or activation.state_dict():  # learned, so it may change at any time
        return None
    own = tuple(sorted((key, value) for key, value in vars(activation).items() if key not in _OF_ANY))
    key = type(activation), type(activation).forward, own
    try:
        if key not in _found:
            _found[key] = _computed(activation)
    except TypeError:  # unhashable settings
        return _computed(activation)
    return _found[key]


_OF_ANY = frozenset(vars(nn.Module()))
_found: dict[object, str | None] = {}
"""Kinds by class and settings."""


def _computed(activation: nn.Module) -> str | None:
    x = torch.linspace(-12, 12, 1001)
    try:
        got = activation(x.clone())
    except (RuntimeError, TypeError):
        return None
    wanted = (F.gelu(x), F.gelu(x, approximate="tanh"), F.silu(x), x * (QUICK * x).sigmoid())
    same = (kind for kind, want in zip(KINDS, wanted, strict=True) if torch.allclose(got, want, rtol=0, atol=1e-5))
    return next(same, None)


def pieces(x_BND: torch.Tensor) -> list[torch.Tensor]:
    """Even runs (1, M, D) of contiguous tokens, as views, each with a hidden layer of at most `HIDDEN` numbers."""
    count = -(-4 * x_BND.numel() // HIDDEN.get(x_BND.device.type, HIDDEN["cuda"]))
    return list(x_BND.view(1, -1, x_BND.shape[-1]).chunk(max(count, 1), dim=1))
