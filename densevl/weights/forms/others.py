"""Models of training programs in open_clip's names: OpenAI's and open_clip's own, EVA, SLIP's family, cn_clip."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from densevl.weights.facts import (
    CLIP_MEAN,
    CLIP_STD,
    GELU,
    IMAGENET_MEAN,
    IMAGENET_STD,
    QUICK,
    Fact,
    Form,
    activations,
    said,
)
from densevl.weights.forms.naming import Rule, renamed
from densevl.weights.forms.sizes import (
    KERNEL,
    NO_TEXT,
    POOL,
    TOKENS,
    depth,
    image_side,
    native_config,
    text_sizes,
    unsure,
    vision_sizes,
)
from densevl.weights.reading import State, bad_file, below

OPENAI = ("input_resolution", "context_length", "vocab_size")
"""Numbers that only OpenAI's own files hold beside the weights."""
_EVA: tuple[Rule, ...] = (
    (r"visual\.(?:.*\.)?rope\..*", None, ""),
    (r".*\.relative_position_index", None, ""),
    (r"visual\.blocks\.(\d+)\.attn\.inner_attn_ln\.(.*)", r"visual.trunk.blocks.\1.attn.norm.\2", ""),
    (r"visual\.blocks\.(\d+)\.mlp\.ffn_ln\.(.*)", r"visual.trunk.blocks.\1.mlp.norm.\2", ""),
    (r"visual\.blocks\.(\d+)\.mlp\.w1\.(.*)", r"visual.trunk.blocks.\1.mlp.fc1_g.\2", ""),
    (r"visual\.blocks\.(\d+)\.mlp\.w2\.(.*)", r"visual.trunk.blocks.\1.mlp.fc1_x.\2", ""),
    (r"visual\.blocks\.(\d+)\.mlp\.w3\.(.*)", r"visual.trunk.blocks.\1.mlp.fc2.\2", ""),
    (r"visual\.(.*)", r"visual.trunk.\1", ""),
)
_SEPARATE: Rule = (r"visual\.blocks\.(\d+)\.attn\.([qv])_bias", r"visual.trunk.blocks.\1.attn.\2_proj.bias", "")
EVA02: tuple[Rule, ...] = (_SEPARATE, *_EVA)
"""Towers with a layer each for q, k and v."""
_SLIP: tuple[Rule, ...] = (
    (r"image_mlp\..*", None, ""),
    (r"visual\.head\..*", None, ""),
    (r"visual\.cls_token", "visual.class_embedding", "flat"),
    (r"visual\.pos_embed", "visual.positional_embedding", ""),
    (r"visual\.patch_embed\.proj\.weight", "visual.conv1.weight", ""),
    (r"visual\.norm\.(.*)", r"visual.ln_post.\1", ""),
    (r"visual\.blocks\.(\d+)\.attn\.qkv\.(.*)", r"visual.transformer.resblocks.\1.attn.in_proj_\2", ""),
    (r"visual\.blocks\.(\d+)\.attn\.proj\.(.*)", r"visual.transformer.resblocks.\1.attn.out_proj.\2", ""),
    (r"visual\.blocks\.(\d+)\.attn\.(.*)", r"visual.transformer.resblocks.\1.attn.\2", ""),
    (r"visual\.blocks\.(\d+)\.norm([12])\.(.*)", r"visual.transformer.resblocks.\1.ln_\2.\3", ""),
    (r"visual\.blocks\.(\d+)\.mlp\.fc1\.(.*)", r"visual.transformer.resblocks.\1.mlp.c_fc.\2", ""),
    (r"visual\.blocks\.(\d+)\.mlp\.fc2\.(.*)", r"visual.transformer.resblocks.\1.mlp.c_proj.\2", ""),
    (r"image_projection", "visual.proj", ""),
    (r"logit_scale", "logit_scale", "[]"),
)
_CN: tuple[Rule, ...] = (
    (r"bert\.pooler\..*", None, ""),
    (r".*\.position_ids", None, ""),
    (r"bert\.(.*)", r"text.transformer.\1", ""),
    (r"text_projection", "text.proj.weight", "T"),
    (r"logit_scale", "logit_scale", "[]"),
)


def native(state: State, path: Path) -> Form:
    """A file with open_clip's names, which are OpenAI's too; sizes are read from the tensors of CLIP's towers."""
    marks = {key: value for key, value in state.items() if key in OPENAI}
    own = {key: value for key, value in state.items() if key not in (*OPENAI, "attn_mask")}
    plain = {KERNEL, TOKENS} <= own.keys() and (POOL in own or {"visual.proj", "visual.class_embedding"} <= own.keys())
    config = native_config(own, path) if plain else None
    if len(marks) < len(OPENAI):
        return Form("open_clip", own, config, guesses=unsure(None, config) if config else ())
    facts = {**activations(QUICK, "OpenAI's own file"), **said("OpenAI's own file", mean=CLIP_MEAN, std=CLIP_STD)}
    return Form("CLIP of OpenAI", own, config, facts=facts)


def eva(state: State, path: Path) -> Form:
    """EVA-CLIP, EVA-02-CLIP and models trained from them with their code (CLIPSelf, DeCLIP)."""
    separate = any(key.endswith(".attn.q_proj.weight") for key in state)
    named = renamed(state, EVA02 if separate else _EVA, path)
    head, bias = "visual.trunk.head.weight", "visual.trunk.head.bias"
    if head in named and bias not in named:  # with 8 or 18 billion weights: a projection, as in open_clip
        named["visual.head.proj.weight"] = named.pop(head)
    facts = {**activations(GELU, "EVA's code"), **said("EVA's code", mean=CLIP_MEAN, std=CLIP_STD)}
    if not separate or head not in named or f"text.{TOKENS}" not in named:
        return Form("EVA-CLIP", named, facts=facts)
    image, trunk = eva02(named, path)
    width = len(named[head])
    config = {**image, "embed_dim": width, "text_cfg": text_sizes(named, path, below="text.")}
    guesses = unsure(None, config, trunk)
    return Form("EVA-CLIP", named, config, trunk={**trunk, "num_classes": width}, facts=facts, guesses=guesses)


def eva02(named: State, path: Path, head: int = 64) -> tuple[dict[str, Any], dict[str, Any]]:
    """The image side of open_clip's model_cfg, without its width, and `Form.trunk` of an EVA-02 of any size.

    Args:
        head: width of an attention head.

    Raises:
        WeightsError: a table is missing.
    """
    kernel, places = named.get("visual.trunk.patch_embed.proj.weight"), named.get("visual.trunk.pos_embed")
    hidden = named.get("visual.trunk.blocks.0.mlp.fc1_g.weight")
    if kernel is None or places is None or hidden is None or kernel.ndim != 4 or places.ndim != 3:
        raise bad_file(path, "holds an incomplete EVA-02: its image tower lacks a table; download it again")
    width, patch = kernel.shape[0], kernel.shape[-1]
    size = math.isqrt(max(places.shape[1] - 1, 0)) * patch
    vision = {
        "image_size": size,
        "timm_model_name": "eva02_base_patch16_clip_224",
        "timm_pool": "token",
        "timm_proj": None,
    }
    trunk = {
        "img_size": size,
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth(named, "visual.trunk.blocks."),
        "num_heads": max(1, width // head),
        "mlp_ratio": len(hidden) / width,
    }
    return {"custom_text": True, "vision_cfg": vision}, trunk


def slip(state: State, path: Path) -> Form:
    """SLIP, SynthCLIP, LaCLIP and others of that program: timm's ViT as open_clip's own, which every recipe rewires."""
    if "visual.proj" not in (named := renamed(state, _SLIP, path)):
        raise bad_file(path, "has no image_projection, so images do not reach the words; give the whole model's file")
    bias = named.pop("visual.patch_embed.proj.bias", None)
    places = named.get("visual.positional_embedding")
    if bias is None or places is None or places.ndim != 3 or places.shape[-1] != len(bias):
        raise bad_file(path, "is not a whole SLIP: its patch embedding and positions do not fit; download it again")
    places = places[0].clone()
    places[1:] += bias
    named["visual.positional_embedding"] = places
    width = places.shape[-1]
    heads = 12 if width == 384 else None  # heads of its small tower are half as wide as usual
    vision = {**vision_sizes(named, path, heads), "no_ln_pre": True, "norm_kwargs": {"eps": 1e-6}}
    config = {"embed_dim": named["visual.proj"].shape[1], "vision_cfg": vision, "text_cfg": text_sizes(named, path)}
    source = "SLIP's code"
    facts = said(source, image_activation=GELU, text_activation=QUICK, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return Form("SLIP", named, config, facts=facts, decides=True)


def cn_clip(state: State, path: Path) -> Form:
    """Chinese-CLIP in its authors' format."""
    named = renamed(state, _CN, path)
    config: dict[str, Any] = {
        **image_side(named, path),
        "custom_text": True,
        "text_cfg": {**NO_TEXT, "context_length": 52},
    }
    side = {**bert_side(named, path), "pooler": "cls_last_hidden_state_pooler", "head": "linear", "context": 52}
    source = "cn_clip's code"
    facts = {**said(source, mean=CLIP_MEAN, std=CLIP_STD, resize_mode="squash"), **activations(QUICK, source)}
    facts["text_activation"] = Fact(None, "the text side's own")
    return Form("Chinese-CLIP", named, config, text=side, facts=facts, decides=True, guesses=unsure(None, config))


def bert_side(named: State, path: Path) -> dict[str, Any]:
    """A BERT under text.transformer, with sizes read from its tensors: config and vocabulary of `Form.text`.

    Raises:
        WeightsError: a table is missing.
    """
    text = below(named, "text.transformer.")
    words, places = text.get("embeddings.word_embeddings.weight"), text.get("embeddings.position_embeddings.weight")
    hidden = text.get("encoder.layer.0.intermediate.dense.weight")
    kinds = text.get("embeddings.token_type_embeddings.weight")
    if words is None or places is None or hidden is None or kinds is None:
        raise bad_file(path, "holds an incomplete text side: its BERT lacks a table; download it again")
    width = words.shape[1]
    return {
        "config": {
            "model_type": "bert",
            "vocab_size": len(words),
            "hidden_size": width,
            "num_hidden_layers": depth(text, "encoder.layer."),
            "num_attention_heads": max(1, width // 64),
            "intermediate_size": len(hidden),
            "max_position_embeddings": len(places),
            "type_vocab_size": len(kinds),
        },
        "vocabulary": len(words),
    }


def tower(state: State, path: Path) -> Form:
    """The image tower of a CLIP alone, as published by FARE, TeCoA and CLIPSelf."""
    named = {key if key.startswith(("visual.", "logit_")) else f"visual.{key}": value for key, value in state.items()}
    config = None
    if KERNEL in named and ("visual.class_embedding" in named or POOL in named):
        config = {**image_side(named, path), "custom_text": True, "text_cfg": NO_TEXT}
    guesses = unsure(None, config) if config else ()
    return Form("an image tower alone", named, config, tower=True, guesses=guesses)
