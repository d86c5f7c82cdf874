"""LoRA (Hu et al., ICLR 2022) as peft saves it: low-rank changes, merged into the weights that they belong to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densevl.errors import WeightsError
from densevl.saved import Kind, read_json
from densevl.weights.reading import State, bad_file

CONFIG = Kind("adapter config", WeightsError, "copy adapter_config.json beside the adapter")
NAME = "adapter_config.json"
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_PREFIX, _BASE = "base_model.model.", ".base_layer."
_ADAPTER = re.compile(r"\.lora_([AB])\.(?:[^.]+\.)?weight$")
"""Names end in the adapter's name, "default", if a peft model saved its state itself."""
_UNREAD = (
    *("alpha_pattern", "use_dora", "fan_in_fan_out", "lora_bias", "layer_replication", "use_qalora"),
    "alora_invocation_tokens",
)
_STARTS = (None, True, False, "gaussian", "eva")
"""`init_lora_weights` that leave the base weights unchanged; PiSSA, OLoRA, CorDA and LoftQ change them."""


def is_adapter(tensors: State) -> bool:
    """Whether a file holds LoRA changes rather than a model."""
    return any(_ADAPTER.search(key) for key in tensors) and not any(_BASE in key for key in tensors)


def merge(base: State, adapter: State, path: Path) -> State:
    """Add the changes of an adapter to a base, under the base's names: W + B A alpha / r.

    Args:
        path: of the adapter; adapter_config.json lies beside it.

    Raises:
        WeightsError: the adapter is of another kind, lacks its config, or belongs to another base.
    """
    if not path.with_name(NAME).is_file():
        raise bad_file(path, f"holds changes to a model (LoRA), and {NAME}, which says their scale, is not beside it")
    settings = read_json(path.with_name(NAME), CONFIG)
    if odd := next((name for name in _UNREAD if settings.get(name)), None):
        raise CONFIG.bad(path.with_name(NAME), f"says {odd}, which densevl does not merge")
    if (kind := settings.get("peft_type", "LORA")) != "LORA":
        raise CONFIG.bad(path.with_name(NAME), f"says {str(kind)[:40]}, and densevl merges LoRA only")
    if settings.get("init_lora_weights") not in _STARTS:
        raise CONFIG.bad(
            path.with_name(NAME),
            f"says init_lora_weights {str(settings['init_lora_weights'])[:40]!r}, which changes the base too: save the "
            "merged model with peft (merge_and_unload)",
        )
    own = {_ADAPTER.sub(r".lora_\1.weight", key.removeprefix(_PREFIX)): value for key, value in adapter.items()}
    if len(own) < len(adapter):
        raise bad_file(path, "holds several adapters; save a single one")
    merged = dict(base)
    for key, low in own.items():
        name = f"{key.removesuffix(_DOWN)}.weight" if key.endswith(_DOWN) else key
        if key.endswith(_UP):
            continue
        if "lora_" in name:
            raise bad_file(path, f"holds {key[:80]}, a change that densevl does not merge: merge it with peft")
        old, high = base.get(name), own.get(f"{key.removesuffix(_DOWN)}{_UP}")
        paired = high is not None and low.ndim == high.ndim == 2 and len(low) == high.shape[1]
        if key.endswith(_DOWN) and old is not None and high is not None and paired:
            change = high.float() @ low.float() * _scale(settings, len(low), path)
            if change.shape != old.shape:
                raise bad_file(path, f"changes {name} by {tuple(change.shape)}, and its base has {tuple(old.shape)}")
            merged[name] = old.float() + change
        elif not key.endswith(_DOWN) and old is not None and old.shape == low.shape:
            merged[name] = low  # trained in full beside the low-rank changes
        else:
            raise bad_file(path, f"changes {name[:80]}, which its base does not have so: name the base it was made for")
    return merged


def _scale(settings: Mapping[str, Any], rank: int, path: Path) -> float:
    alpha = settings.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not rank:
        raise CONFIG.bad(path.with_name(NAME), "has no number for lora_alpha")
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
