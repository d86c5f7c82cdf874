"""dino.txt (facebookresearch/dinov2 and dinov3, CVPR 2025) in open_clip's names.

It is a frozen DINO, a head of blocks behind it and a text side, in up to three files; the tower is in timm's, Meta's or
transformers' naming. Patches are compared with the second half of the text vector, and CLS with the first. Only the
second half is the joint space here, and an image's vector is the mean of its patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from densevl.weights.facts import GELU, IMAGENET_MEAN, IMAGENET_STD, Fact, Form, said
from densevl.weights.forms.naming import Rule, renamed
from densevl.weights.forms.sizes import DEPTHS, NO_TEXT, TEXT_HEADS, VISION_HEADS, depth, divided, shallow, text_sizes
from densevl.weights.reading import State, bad_file, below

HEAD, TEXT, TOWER = "visual_model.head.", "text_model.", "visual_model.backbone."
_HEAD_LAYER, _WORD, _END = "ln_final.weight", "backbone.token_embedding.weight", "head.linear_projection.weight"
HEAD_DEPTH, TEXT_DEPTHS = 2, {1280: 24}
"""Blocks of the published heads, and of their text sides by width."""
SCALE = 100.0
"""The logit scale if a file has none: DINOv2's files leave it out."""
_KERNEL = (
    "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.weight",
)
_TRAINED = "backbone."
"""The prefix of a tower's names in DINO's training checkpoints."""
_LAYER, _INTO = r"text_model\.backbone\.blocks\.(\d+)\.", r"text.transformer.resblocks.\1."
_MIXED = "is a dino.txt of parts that do not belong together; download those of one model"
_RULES: tuple[Rule, ...] = (
    (rf"{HEAD}(?:blocks|block_list)\.(.*)\.bias_mask", None, ""),
    (rf"{HEAD}(?:blocks|block_list)\.(\d+)\.mlp\.w12\.(.*)", r"visual.blocks.\1.mlp.fc1.\2", ""),
    (rf"{HEAD}(?:blocks|block_list)\.(\d+)\.mlp\.w3\.(.*)", r"visual.blocks.\1.mlp.fc2.\2", ""),
    (rf"{HEAD}(?:blocks|block_list)\.(.*)", r"visual.blocks.\1", ""),
    (rf"{HEAD}ln_final\.(.*)", r"visual.norm.\1", ""),
    (rf"{_LAYER}attention_norm\.(.*)", rf"{_INTO}ln_1.\2", ""),
    (rf"{_LAYER}attention\.qkv\.(.*)", rf"{_INTO}attn.in_proj_\2", ""),
    (rf"{_LAYER}attention\.proj\.(.*)", rf"{_INTO}attn.out_proj.\2", ""),
    (rf"{_LAYER}ffn_norm\.(.*)", rf"{_INTO}ln_2.\2", ""),
    (rf"{_LAYER}feed_forward\.fc1\.(.*)", rf"{_INTO}mlp.c_fc.\2", ""),
    (rf"{_LAYER}feed_forward\.fc2\.(.*)", rf"{_INTO}mlp.c_proj.\2", ""),
    (r"text_model\.backbone\.(.*)", r"text.\1", ""),
    (r"text_model\.head\.linear_projection\.weight", "text.text_projection", "T"),
    (r"logit_scale", "logit_scale", "[]"),
)
_BLOCK, _TRUNK = r"(?:(?:encoder\.|model\.)?layer|blocks)\.(\d+)\.", r"visual.trunk.blocks.\1."
_TOWER: tuple[Rule, ...] = (
    (r"(?:embeddings\.)?mask_token|.*\.bias_mask|rope_embed\.periods|local_cls_norm\..*|head\..*", None, ""),
    (r"(?:embeddings\.)?cls_token", "visual.trunk.cls_token", ""),
    (r"(?:embeddings\.)?(?:register_tokens|storage_tokens)|reg_token", "visual.trunk.reg_token", ""),
    (r"embeddings\.position_embeddings", "visual.trunk.pos_embed", ""),
    (r"embeddings\.patch_embeddings\.(?:projection\.)?(.*)", r"visual.trunk.patch_embed.proj.\1", ""),
    (rf"{_BLOCK}attention\.(?:attention\.)?(query|key|value|[qkv])(?:_proj)?\.(.*)", rf"{_TRUNK}attn.qkv.\3", "qkv"),
    (rf"{_BLOCK}attention\.(?:output\.dense|o_proj)\.(.*)", rf"{_TRUNK}attn.proj.\2", ""),
    (rf"{_BLOCK}layer_scale([12])\.lambda1", rf"{_TRUNK}ls\2.gamma", ""),
    (rf"{_BLOCK}mlp\.up_proj\.(.*)", rf"{_TRUNK}mlp.fc1.\2", ""),
    (rf"{_BLOCK}mlp\.down_proj\.(.*)", rf"{_TRUNK}mlp.fc2.\2", ""),
    (rf"{_BLOCK}(.*)", rf"{_TRUNK}\2", ""),
    (r"(?:layer)?norm\.(.*)", r"visual.trunk.norm.\1", ""),
    (r"(.*)", r"visual.trunk.\1", ""),
)


def part_of_dinotxt(state: State) -> str:
    """The part of a dino.txt in a file, as the prefix of its names in a complete one; "" for none."""
    if f"{HEAD}{_HEAD_LAYER}" in state or f"{TEXT}{_WORD}" in state:
        return "whole"
    if _HEAD_LAYER in state and any(key.startswith(("block_list.", "blocks.0.")) for key in state):
        return HEAD
    if _WORD in state and _END in state:
        return TEXT
    return TOWER if any(f"{start}{key}" in state for key in _KERNEL for start in ("", _TRAINED)) else ""


def is_dinotxt(state: State) -> bool:
    """Whether a file holds more of a dino.txt than a tower, which may be any DINO's."""
    return part_of_dinotxt(state) not in ("", TOWER)


def joined(parts: Mapping[Path, State]) -> State | None:
    """Join the files of a folder into one dino.txt; None if they are none.

    Raises:
        WeightsError: two files hold the same part, or one holds no part.
    """
    found: State = {}
    kinds = {path: part_of_dinotxt(state) for path, state in parts.items()}
    if not any(map(is_dinotxt, parts.values())):
        return None
    if foreign := next((path for path, kind in kinds.items() if not kind), None):
        raise bad_file(foreign, "is not part of a dino.txt, but files beside it are: move it out of their folder")
    for path, state in parts.items():
        prefix = "" if kinds[path] == "whole" else kinds[path]
        if prefix == TOWER:
            state = below(state, _TRAINED) or state
        new = {f"{prefix}{key}": value for key, value in state.items()}
        if new.keys() & found.keys():
            raise bad_file(path, "is a second file of the same part of a dino.txt; keep one of each in the folder")
        found |= new
    return found


def on_its_tower(tower: State, found: State, path: Path) -> State:
    """Join a file of a dino.txt with the tower beside it."""
    return (joined({path: found, path.with_name("tower"): tower}) if part_of_dinotxt(tower) else None) or found


def dinotxt(state: State, path: Path) -> Form:
    """Convert a dino.txt whose parts are joined.

    Raises:
        WeightsError: a part is missing, or tensors do not fit each other.
    """
    tower = below(state, TOWER)
    for part, what in ((tower, "tower"), (below(state, HEAD), "vision head"), (below(state, TEXT), "text encoder")):
        if not part:
            raise bad_file(
                path,
                f"is a part of dino.txt without its {what}: put the files of DINO's tower, the vision head and the "
                "text encoder into one folder, and name the folder",
            )
    rotary = "pos_embed" not in tower and "embeddings.position_embeddings" not in tower
    if rotary == any(key.startswith("block_list.") or ".mlp.w12." in key for key in below(state, HEAD)):
        raise bad_file(path, _MIXED)
    named = renamed({key: x for key, x in state.items() if not key.startswith(TOWER)}, _RULES, path)
    try:
        named |= renamed(_masked(tower) if rotary else tower, _TOWER, path)
        if rotary:
            named = _biases({_gamma(key): x for key, x in named.items()}, path)
        for index in range(depth(named, "visual.blocks.")):  # DINOv3's gate is a separate layer
            mlp = f"visual.blocks.{index}.mlp."
            for kind in ("weight", "bias"):
                if f"{mlp}w1.{kind}" in named:
                    named[f"{mlp}fc1.{kind}"] = torch.cat([named.pop(f"{mlp}w{number}.{kind}") for number in (1, 2)])
        words = named["text.text_projection"]
        named["text.text_projection"] = words[:, words.shape[1] // 2 :].contiguous()
        for index in range(depth(named, "text.transformer.resblocks.")):
            layer = f"text.transformer.resblocks.{index}.attn.in_proj_"
            named.setdefault(f"{layer}bias", torch.zeros(len(named[f"{layer}weight"])))
        named.setdefault("logit_scale", torch.tensor(math.log(SCALE)))
        kernel, places = named["visual.trunk.patch_embed.proj.weight"], named.get("visual.trunk.pos_embed")
        width, patch = kernel.shape[0], kernel.shape[-1]
        registers = named["visual.trunk.reg_token"].shape[1]
        if places is not None and math.isqrt(places.shape[1]) ** 2 != places.shape[1]:  # the first belongs to CLS
            named["visual.trunk.cls_token"] = named["visual.trunk.cls_token"] + places[:, :1]
            named["visual.trunk.pos_embed"] = places = places[:, 1:].contiguous()
        size = 16 * patch if places is None else math.isqrt(places.shape[1]) * patch
        hidden, inner = (
            len(named[f"visual.{part}blocks.0.mlp.fc{number}.{kind}"])
            for part, number, kind in (("trunk.", 1, "weight"), ("", 1, "bias"))
        )
        text = text_sizes(named, path, None, "text.")
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise bad_file(
            path, f"is not a whole dino.txt: {' '.join(str(error).split())[:80]}; download it again"
        ) from error
    if registers != 4 or named["text.text_projection"].shape[1] != width:
        raise bad_file(path, _MIXED)
    heads = divided(width, None, VISION_HEADS)[0]
    architecture = "vit_large_patch16_dinov3" if rotary else "vit_large_patch14_reg4_dinov2"
    if "visual.trunk.blocks.0.attn.q_bias" in named:
        architecture += "_qkvb"
    own = {
        "embed_dim": width,
        "custom_text": True,
        "vision_cfg": {
            "image_size": size,
            "timm_model_name": architecture,
            "timm_pool": "token",
            "timm_proj": None,
        },
        "text_cfg": {**NO_TEXT, **text, "heads": divided(text["width"], None, TEXT_HEADS)[0]},
    }
    trunk = {
        "img_size": size,
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth(named, "visual.trunk.blocks."),
        "num_heads": heads,
        "mlp_ratio": hidden / width,
    }
    head = {
        "kind": "blocks",
        "embed": width,
        "rule": "size_antialias",
        "depth": depth(named, "visual.blocks."),
        "heads": heads,
        "hidden": inner // 2,
        "qkv_bias": "visual.blocks.0.attn.qkv.bias" in named,
    }
    source = "dino.txt's code"
    facts = said(source, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bicubic", resize_mode="shortest")
    facts |= said(source, positions="size_antialias", text_activation=GELU)
    facts |= {"image_activation": Fact(None, "the tower's own")}
    name = f"dino.txt on DINOv{3 if rotary else 2}"
    notes = shallow(
        path,
        tower=(depth(named, "visual.trunk.blocks."), DEPTHS.get(width)),
        head=(depth(named, "visual.blocks."), HEAD_DEPTH if width in DEPTHS else None),
        text=(text["layers"], TEXT_DEPTHS.get(text["width"])),
    )
    return Form(name, named, own, trunk=trunk, head=head, facts=facts, decides=True, notes=notes)


def _gamma(key: str) -> str:
    """Rename layer scales for timm's `Eva`, whose names differ from Meta's."""
    if not key.startswith("visual.trunk.blocks."):
        return key
    return key.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2")


def _masked(tower: State) -> State:
    """Complete a DINOv3's biases: masked entries are zero, and so is a bias of keys that is missing."""
    found = dict(tower)
    for key, bias in tower.items():
        if key.endswith("attn.qkv.bias") and (mask := tower.get(f"{key}_mask")) is not None:
            found[key] = torch.where(mask == 0, 0, bias)
        elif key.endswith("attention.q_proj.bias"):
            found.setdefault(key.replace("q_proj", "k_proj"), torch.zeros_like(bias))
    return found


def _biases(named: State, path: Path) -> State:
    """Biases of queries and values in timm's form, which omits them if all are zero.

    Raises:
        WeightsError: keys have a bias, which rotary positions do not cancel.
    """
    joint = {key: x for key, x in named.items() if key.startswith("visual.trunk.") and key.endswith(".attn.qkv.bias")}
    found = {key: x for key, x in named.items() if key not in joint}
    for key, bias in joint.items() if any(bias.any() for bias in joint.values()) else ():
        q, k, v = bias.chunk(3)
        if k.any():
            raise bad_file(path, "has a DINOv3 whose keys have a bias, unlike all published ones; download it again")
        found |= {key.replace("qkv.bias", "q_bias"): q.clone(), key.replace("qkv.bias", "v_bias"): v.clone()}
    return found
