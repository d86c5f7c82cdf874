"""RADIO (NVlabs, CVPR 2025) with an adaptor that maps its tokens to a SigLIP 2's space, in open_clip's names.

Its file holds the tower and adaptors, but no words. Those come from the SigLIP 2 that the adaptor was trained for,
which is named as the model beside it. Patches go through the adaptor's summary head, as in RADSeg.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from densevl.errors import WeightsError
from densevl.saved import Kind, read_json
from densevl.weights.facts import CLIP_MEAN, CLIP_STD, Fact, Form, said
from densevl.weights.forms.naming import Rule, renamed
from densevl.weights.forms.settings import CONFIG
from densevl.weights.forms.sizes import DEPTHS, NO_TEXT, VISION_HEADS, depth, divided, shallow
from densevl.weights.forms.transformers import siglip_side
from densevl.weights.reading import State, bad_file, below

RADIO = "RADIO with words"
"""The name of the form."""
WORDS = "words."
"""The prefix for the names of the SigLIP 2 beside it."""
SIDE = 512
"""Side of whole images in pixels, preferred by all RADIOs from the third version on."""
ALIGNED = (768, 1280)
"""Widths of C-RADIOv3 whose positions are resized with aligned corners; others are not."""
TEACHER = "ViT-gopt-16-SigLIP2-384/webli"
_KIND = Kind("config", WeightsError, "download it again")
_PATCHES = ("patch_generator.embedder.weight", "embeddings.patch_projection.weight")
_TOWERS = ("base_model.", "radio_model.model.", "radio_model.", "")
_TRUNK = "visual.trunk."
_BLOCK, _INTO = r"(?:encoder\.layer|blocks)\.(\d+)\.", r"visual.trunk.blocks.\1."
_RULES: tuple[Rule, ...] = (
    (r"(?:patch_generator\.pos_embed|embeddings\.position_embedding)", "visual.trunk.pos_embed", ""),
    (r"(?:patch_generator\.cls_token\.token|embeddings\.cls_register_token)", "tokens", ""),
    (r"(?:patch_generator\.embedder|embeddings\.patch_projection)\.weight", "kernel", ""),
    (r"(?:patch_generator|embeddings)\.video_.*|summary_idxs|input_conditioner\..*|.*teacher.*", None, ""),
    (rf"{_BLOCK}attention\.([qkv])_proj\.(.*)", rf"{_INTO}attn.qkv.\3", "qkv"),
    (rf"{_BLOCK}attention\.o_proj\.(.*)", rf"{_INTO}attn.proj.\2", ""),
    (rf"{_BLOCK}(?:layer_scale([12])\.lambda1|ls([12])\.(?:gamma|grandma))", rf"{_INTO}ls\2\3.gamma", ""),
    (rf"{_BLOCK}(.*)", rf"{_INTO}\2", ""),
)


def is_radio(state: State) -> bool:
    """Whether a file holds a RADIO in NVIDIA's or transformers' naming."""
    return any(f"{start}{name}" in state for start in _TOWERS for name in _PATCHES)


def beside_words(words: State, found: State, path: Path) -> State:
    """Join a RADIO with the text side of the SigLIP 2 beside it."""
    return {**found, **{f"{WORDS}{key}": value for key, value in words.items()}}


def adaptors(state: State) -> dict[str, State]:
    """The summary heads by the name, or the number, of their teacher, in the order of the file."""
    found: dict[str, State] = {}
    for key, value in state.items():
        for start, middle in (("_heads.", "."), ("radio_model.adaptors.", ".head_mlp."), ("adaptors.", ".head_mlp.")):
            name, cut, rest = key.removeprefix(start).partition(middle)
            if key.startswith(start) and cut:
                found.setdefault(name, {})[rest] = value
    return found


def radio(state: State, path: Path, text: Form | None) -> Form:
    """Convert a RADIO and the words beside it.

    Args:
        text: the form of the file beside it; None if there is none.

    Raises:
        WeightsError: there is no adaptor, none for these words, or several; or tensors do not fit each other.
    """
    heads = adaptors(state)
    if not heads:
        raise bad_file(
            path,
            "is a RADIO without adaptors, so its patches do not reach words: take NVIDIA's own file, which has them, "
            "not a converted one; or use it as a proxy",
        )
    if text is None or not any(key.startswith("text.") for key in text.state):
        raise bad_file(
            path,
            f"is a RADIO, which has no words of its own: name the SigLIP 2 of its adaptor as the model beside it, "
            f"{TEACHER}, or a folder of it",
        )
    if any("parametrizations" in key for own in heads.values() for key in own):
        raise bad_file(path, "has adaptors in training form (spectral); take NVIDIA's file of the hub, which has none")
    config = text.config or siglip_side(text.state, path)
    embed = int(config["embed_dim"])
    fitting = {
        name: own for name, own in heads.items() if "final.2.weight" in own and len(own["final.2.weight"]) == embed
    }
    if len(fitting) != 1:
        listed = ", ".join(fitting or heads)
        raise bad_file(
            path,
            f"has {len(fitting)} adaptors of {embed} numbers, as the words beside it have, ({listed[:80]}): name the "
            "SigLIP 2 that one adaptor was trained for",
        )
    ((name, head),) = fitting.items()
    tower, trunk, architecture, rule = radio_tower(state, path)
    try:
        inside = len(head["fc1.weight"])
    except (KeyError, TypeError) as error:
        raise bad_file(path, f"is not a whole RADIO: its adaptor {name} lacks fc1.weight; download it again") from error
    named = {f"{_TRUNK}{key}": x for key, x in tower.items()} | {f"visual.mlp.{key}": x for key, x in head.items()}
    named |= {key: x for key, x in text.state.items() if key.startswith(("text.", "logit_"))}
    tokens = 1 + trunk["reg_tokens"]
    summary, note = _summary(name, list(heads), tokens, path)
    own = {
        **config,
        "custom_text": True,
        "vision_cfg": {
            "image_size": trunk["img_size"],
            "timm_model_name": architecture,
            "timm_pool": "token",
            "timm_proj": None,
        },
        "text_cfg": NO_TEXT if text.text else config["text_cfg"],
    }
    speaking = {
        "kind": "mlp",
        "embed": embed,
        "rule": rule,
        "hidden": inside,
        "inner": depth(head, "blocks."),
        "summary": summary,
        "side": min(SIDE, trunk["img_size"]),
    }
    inner = max(depth(own, "blocks.") for own in heads.values())
    note += shallow(
        path, tower=(trunk["depth"], DEPTHS.get(trunk["embed_dim"])), **{f"adaptor {name}": (speaking["inner"], inner)}
    )
    facts = said("RADIO's code", interpolation="bilinear", resize_mode="squash", positions=rule, **colours(state))
    facts |= {name: fact for name, fact in text.facts.items() if name == "text_activation"}
    facts |= {"image_activation": Fact(None, "the tower's own")}
    return Form(RADIO, named, own, trunk=trunk, text=text.text, head=speaking, facts=facts, decides=True, notes=note)


def radio_tower(state: State, path: Path) -> tuple[State, dict[str, Any], str, str]:
    """The tower alone: tensors in timm's names, its sizes, timm's architecture, and how its positions are resized.

    Raises:
        WeightsError: tensors are missing, or do not fit each other.
    """
    start = next(start for start in _TOWERS if any(f"{start}{kernel}" in state for kernel in _PATCHES))
    named = renamed({key: x for key, x in below(state, start).items() if _of_tower(key)}, _RULES, path)
    try:
        kernel, tokens, places = named.pop("kernel"), named.pop("tokens"), named[f"{_TRUNK}pos_embed"]
        width, patch = kernel.shape[0], math.isqrt(kernel.shape[1] // 3)
        named[f"{_TRUNK}patch_embed.proj.weight"] = kernel.unflatten(1, (3, patch, patch))
        named[f"{_TRUNK}patch_embed.proj.bias"] = torch.zeros(width)
        named[f"{_TRUNK}cls_token"], named[f"{_TRUNK}reg_token"] = tokens[None, :1], tokens[None, 1:]
        hidden, side = len(named[f"{_TRUNK}blocks.0.mlp.fc1.weight"]), math.isqrt(places.shape[1]) * patch
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise bad_file(path, f"is not a whole RADIO: {' '.join(str(error).split())[:80]}; download it again") from error
    sizes = {
        "img_size": side,
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth(named, f"{_TRUNK}blocks."),
        "num_heads": divided(width, None, {**VISION_HEADS, 1152: 72, 1536: 64})[0],
        "mlp_ratio": hidden / width,
        "reg_tokens": len(tokens) - 1,
    }
    scaled = f"{_TRUNK}blocks.0.ls1.gamma" in named
    architecture = "vit_base_patch16_radio_v3" if scaled else "vit_huge_patch16_radio_v4"
    return below(named, _TRUNK), sizes, architecture, rule_of(width, len(tokens))


def rule_of(width: int, tokens: int) -> str:
    """How its positions are resized, by its width and number of leading tokens, which is eight in the third version."""
    return "square_aligned" if width in ALIGNED and tokens == 8 else "square"


def _of_tower(key: str) -> bool:
    return key.startswith(("patch_generator.", "embeddings.", "encoder.layer.", "blocks.", "norm."))


def _summary(name: str, names: list[str], tokens: int, path: Path) -> tuple[int, tuple[str, ...]]:
    """The leading token of an adaptor, and a warning if that is a guess."""
    adaptors: Any = read_json(path.with_name(CONFIG), _KIND) if path.with_name(CONFIG).is_file() else {}
    adaptors = adaptors.get("adaptor_configs") if isinstance(adaptors, Mapping) else None
    own = adaptors.get(name) if isinstance(adaptors, Mapping) else None
    index = own.get("head_idx") if isinstance(own, Mapping) else int(name) if name.isdecimal() else None
    if type(index) is int and 0 <= index < tokens:
        return index, ()
    place = names.index(name)
    return place, (
        f"weights file {path.name} does not say which token belongs to its adaptor {name}: taken number {place}; dense "
        "features do not depend on it, vectors of whole images do",
    )


def colours(state: State) -> dict[str, tuple[float, ...]]:
    """Mean and deviation that the tower itself normalises with."""
    found = {}
    for name, usual in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
        values = next((x for key, x in state.items() if key.endswith(f"input_conditioner.norm_{name}")), None)
        found[name] = usual if values is None else tuple(round(float(x), 8) for x in values.flatten())
    return found
