"""Settings in transformers' config.json that no shape shows: heads, activation, epsilon, end token, input size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from densevl.errors import ModelError
from densevl.weights.facts import GELU, QUICK, TANH

CONFIG = "config.json"
ACTIVATIONS = {"quick_gelu": QUICK, "gelu": GELU, "gelu_pytorch_tanh": TANH, "gelu_new": TANH}
LEGACY_END = 2
"""The wrong value in old configs of CLIP: transformers then takes the token of the highest number, as OpenAI did."""


def side(config: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """The part of a config for one tower; empty if there is none.

    Raises:
        ModelError: it is not an object.
    """
    found = (config or {}).get(name)
    if found is not None and not isinstance(found, dict):
        raise ModelError(f"{CONFIG}: {name} is {str(found)[:40]}, which must be an object; download it again")
    return dict(found or {})


def heads(config: Mapping[str, Any], usual: int | None) -> int | None:
    """Attention heads; `usual` if the config does not set them.

    Raises:
        ModelError: it is not a whole number from 1.
    """
    return _whole(config, "num_attention_heads", usual)


def length(config: Mapping[str, Any], usual: int) -> int:
    """Positions of a text side.

    Raises:
        ModelError: it is not a whole number from 1.
    """
    return _whole(config, "max_position_embeddings", usual) or usual


def input_size(config: Mapping[str, Any], grid: int, patch: int) -> int:
    """Side of the input in pixels; the config may exceed the patches, and the convolution then ignores the rest."""
    size = config.get("image_size")
    return size if type(size) is int and size // patch == grid else grid * patch


def epsilon(config: Mapping[str, Any], usual: float) -> float:
    """The epsilon of layer norms.

    Raises:
        ModelError: it is not a number above 0.
    """
    found = config.get("layer_norm_eps", usual)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < 1:
        raise ModelError(f"{CONFIG}: layer_norm_eps is {str(found)[:40]!r}; it is a number between 0 and 1")
    return float(found)


def activation(config: Mapping[str, Any], usual: str) -> str:
    """One of `facts.ACTIVATIONS`.

    Raises:
        ModelError: it is another one.
    """
    kind = config.get("hidden_act")
    if kind is None:
        return usual
    if str(kind) not in ACTIVATIONS:
        raise ModelError(f"{CONFIG}: the activation {str(kind)[:40]!r} is none of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[str(kind)]


def end(config: Mapping[str, Any], *, legacy: bool) -> dict[str, Any]:
    """The part of open_clip's text_cfg that says at which token a text is read.

    Args:
        legacy: whether `LEGACY_END` means the token of the highest number.

    Raises:
        ModelError: it is not the number of a token.
    """
    found = config.get("eos_token_id", 49407)
    if type(found) is not int or found < 0:
        raise ModelError(f"{CONFIG}: eos_token_id is {str(found)[:40]!r}; it is the number of one token")
    return {} if legacy and found == LEGACY_END else {"pool_type": "eos", "eos_id": found}


def _whole(config: Mapping[str, Any], name: str, usual: int | None) -> int | None:
    found = config.get(name, usual)
    if found is not None and (type(found) is not int or not 0 < found < 100_000):
        raise ModelError(f"{CONFIG}: {name} is {str(found)[:40]!r}; it is a whole number from 1")
    if found is None and name in config:
        raise ModelError(f"{CONFIG}: {name} is null; it is a whole number from 1")
    return found
