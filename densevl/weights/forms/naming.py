"""Renaming tensors by tables of a pattern, the new name, and an operation on the tensor."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from densevl.weights.reading import State, bad_file

Rule = tuple[str, str | None, str]
"""A pattern of whole names; the new name, or None to leave the tensor out; and the operation: "" none, "T" transpose,
"flat" to one dimension, "[]" to a scalar, "qkv" join three parts, of which the second group says which."""
_ORDER = {"q": 0, "k": 1, "v": 2, "query": 0, "key": 1, "value": 2}


def renamed(tensors: Mapping[str, torch.Tensor], rules: Sequence[Rule], path: Path) -> State:
    """Rename tensors by the first rule whose pattern matches; tensors without a rule keep their name.

    Raises:
        WeightsError: two tensors get one name, or a part of one is missing.
    """
    compiled = [(re.compile(pattern), target, how) for pattern, target, how in rules]
    found: State = {}
    parts: dict[str, dict[int, torch.Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        name, how, which = _rule(key, compiled)
        if name is None:
            continue
        if how == "qkv":
            parts[name][_ORDER[which]] = value
        elif name in found:
            raise bad_file(path, f"holds two tensors that are both {name}; save its state_dict again")
        else:
            found[name] = _changed(value, how)
    for name, three in parts.items():
        shapes = {part.shape[1:] for part in three.values()}
        if len(three) < 3 or len(shapes) > 1 or any(part.ndim == 0 for part in three.values()):
            raise bad_file(path, f"lacks a part of {name}, or has parts that do not fit each other; download it again")
        found[name] = torch.cat([three[place] for place in range(3)])
    return found


def _rule(key: str, rules: Sequence[tuple[re.Pattern[str], str | None, str]]) -> tuple[str | None, str, str]:
    for pattern, target, how in rules:
        if match := pattern.fullmatch(key):
            which = match[2] if how == "qkv" else ""
            return (None if target is None else match.expand(target)), how, which
    return key, "", ""


def _changed(value: torch.Tensor, how: str) -> torch.Tensor:
    if how == "T":
        return value.T if value.ndim == 2 else value
    if how == "flat":
        return value.reshape(-1)
    return value.reshape(()) if how == "[]" and value.numel() == 1 else value


def layers(source: str, target: str) -> list[Rule]:
    """The blocks of CLIP's transformer: from transformers' names, old and new, to open_clip's."""
    block = rf"{source}\.encoder\.layers?\.(\d+)"
    into = rf"{target}transformer.resblocks.\1"
    rules: list[Rule] = [
        (rf"{block}\.self_attn\.([qkv])_proj\.(weight|bias)", rf"{into}.attn.in_proj_\3", "qkv"),
        (rf"{block}\.self_attn\.out_proj\.(.*)", rf"{into}.attn.out_proj.\2", ""),
    ]
    for old, new in (
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    ):
        rules.append((rf"{block}\.{re.escape(old)}\.(.*)", rf"{into}.{new}.\2", ""))
    return rules
