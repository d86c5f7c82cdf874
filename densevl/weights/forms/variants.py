"""Models that are a CLIP with a change: Long-CLIP, Alpha-CLIP, DiffCLIP, PMC-CLIP, jina-clip.

Constant effects, such as an alpha channel that is all foreground, are folded into the weights here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from densevl.errors import ModelError
from densevl.weights.facts import CLIP_MEAN, CLIP_STD, GELU, Fact, Form, activations, said
from densevl.weights.forms.naming import Rule, renamed
from densevl.weights.forms.others import EVA02, bert_side, eva02, slip
from densevl.weights.forms.pixels import Processor, followed
from densevl.weights.forms.sizes import NO_TEXT, POOL, POSITIONS, depth, image_side
from densevl.weights.reading import State, bad_file, below

ALPHA, LONGER = "visual.conv1_alpha.weight", "positional_embedding_res"
FOREGROUND = (1 - 0.5) / 0.26
"""An alpha of 1 after Alpha-CLIP's normalisation."""
KEPT = 20
"""Positions of CLIP that Long-CLIP keeps (Zhang et al., ECCV 2024, 3.1)."""
_PMC: tuple[Rule, ...] = (
    (r"(fusion_module\.|img_special_token|mlm_projection|positional_embedding|ln_final\.).*", None, ""),
    (r"text_encoder\.pooler\..*", None, ""),
    (r".*\.position_ids", None, ""),
    (r"text_encoder\.(.*)", r"text.transformer.\1", ""),
    (r"text_projection", "text.proj.weight", "T"),
    (r"logit_scale", "logit_scale", "[]"),
)
_XLM = r"text_model\.transformer\.(?:roberta\.)?"
_LAYER, _INTO = rf"{_XLM}encoder\.layers\.(\d+)\.", r"text.transformer.layers.\1."
_JINA_TEXT: tuple[Rule, ...] = (
    (rf"{_XLM}emb_ln\.(.*)", r"text.transformer.embeddings.LayerNorm.\1", ""),
    (rf"{_XLM}(embeddings\..*)", r"text.transformer.\1", ""),
    (rf"{_LAYER}mixer\.out_proj\.(.*)", rf"{_INTO}self_attn.o_proj.\2", ""),
    (rf"{_LAYER}norm1\.(.*)", rf"{_INTO}post_attention_layernorm.\2", ""),
    (rf"{_LAYER}norm2\.(.*)", rf"{_INTO}post_mlp_layernorm.\2", ""),
    (rf"{_LAYER}(mlp\..*)", rf"{_INTO}\2", ""),
)


def long_clip(state: State, path: Path) -> State:
    """Long-CLIP in CLIP's names; its text positions are two tables, one for the first 20 and one for the others.

    Raises:
        WeightsError: the tables have different sizes.
    """
    own = dict(state)
    first, rest = own.get("positional_embedding"), own.pop(LONGER)
    if first is None or first.shape != rest.shape:
        raise bad_file(path, f"is not a whole Long-CLIP: {LONGER} does not fit its positional_embedding")
    own["positional_embedding"] = torch.cat([first[:KEPT], rest[KEPT:]])
    return own


def alpha_clip(state: State, path: Path) -> State:
    """Alpha-CLIP in CLIP's names, with an alpha channel of 1 everywhere, which adds a constant to each patch.

    Raises:
        WeightsError: LoRA's parts are beside the weights, or it is a ResNet, whose padding is not constant.
    """
    own = {key.replace(".in_proj.", ".in_proj_"): value for key, value in state.items()}
    alpha, places = own.pop(ALPHA), own.get(POSITIONS)
    if any("lora_" in key for key in own):
        raise bad_file(path, "is an Alpha-CLIP with LoRA's parts beside the weights: merge them first")
    if places is None or places.ndim != 2 or alpha.ndim != 4 or len(alpha) != places.shape[1]:
        raise bad_file(path, "is an Alpha-CLIP whose image tower is not a ViT, which densevl does not read")
    places = places.float().clone()
    places[1:] += FOREGROUND * alpha.float().sum((1, 2, 3))
    own[POSITIONS] = places
    return own


def diffclip(state: State, path: Path) -> Form:
    """DiffCLIP (Hammoud and Ghanem, 2025): SLIP's form, with differential attention in both towers.

    Raises:
        WeightsError: parts do not fit each other.
    """
    form = slip(state, path)
    config = dict(form.config or {})
    sides = (("vision_cfg", "visual.transformer", "head_width"), ("text_cfg", "transformer", "heads"))
    for side, prefix, heads in sides:
        norm = form.state.get(f"{prefix}.resblocks.0.attn.diff_norm.weight")
        width = config[side]["width"]
        if norm is None or len(norm) < 2 or len(norm) % 2 or width % len(norm):
            raise bad_file(path, f"is not a whole DiffCLIP: {prefix} lacks the norm of its differential attention")
        head = len(norm) // 2
        config[side] = {**config[side], heads: head if heads == "head_width" else width // head}
    config["vision_cfg"].pop("norm_kwargs")
    facts = {name: replace(fact, source="DiffCLIP's code") for name, fact in form.facts.items()}
    return replace(form, name="DiffCLIP", config=config, attention="differential", facts=facts)


def pmc_clip(state: State, path: Path) -> Form:
    """PMC-CLIP (Lin et al., MICCAI 2023): CLIP's ResNet and a PubMedBERT that attends to padding too.

    Raises:
        WeightsError: the image tower is another, or tensors are missing.
    """
    named = renamed(state, _PMC, path)
    if POOL not in named:
        raise bad_file(path, "is a PMC-CLIP whose image tower is not CLIP's ResNet, which densevl does not read")
    side = {**bert_side(named, path), "pooler": "cls_last_hidden_state_pooler", "head": "linear", "masked": False}
    config = {**image_side(named, path), "custom_text": True, "text_cfg": NO_TEXT}
    source = "PMC-CLIP's code"
    facts = {**activations(GELU, source), **said(source, mean=CLIP_MEAN, std=CLIP_STD)}
    facts["text_activation"] = Fact(None, "the text side's own")
    return Form("PMC-CLIP", named, config, text=side, facts=facts, decides=True)


def jina(state: State, path: Path, config: Mapping[str, Any] | None, pixels: Processor | None, *, words: bool) -> Form:
    """jina-clip v1 and v2: an EVA-02 without a head; the text side of v2 is an XLM-R with rotary positions.

    Args:
        config: config.json. pixels: settings of its processor. words: whether text vectors replace the text side.

    Raises:
        WeightsError: v1 is given without words, since no library has its text side; or tensors are missing.
    """
    image = {f"visual.{key}": value for key, value in below(state, "vision_model.").items()}
    named = renamed(image, EVA02, path)
    settings = dict((config or {}).get("vision_config") or {})
    own, trunk = eva02(named, path, int(settings.get("head_width", 64)))
    width = trunk["embed_dim"]
    # published models have no projection: an identity replaces it, whose rows can be cut
    head = named.pop("visual.trunk.head.weight", torch.eye(width))
    named["visual.head.proj.weight"] = state.get("visual_projection.weight", head)
    side = None
    if not words:
        text, side = _jina_text(state, path, dict((config or {}).get("text_config") or {}))
        named |= text
    if "logit_scale" in state:
        named["logit_scale"] = state["logit_scale"].reshape(())
    own["embed_dim"] = len(named["visual.head.proj.weight"])
    own["vision_cfg"]["timm_proj"] = "linear"
    own["text_cfg"] = {**NO_TEXT, "hf_tokenizer_name": "folder"} if side else NO_TEXT
    source = "jina-clip's code"
    facts = {**activations(GELU, source), **said(source, mean=CLIP_MEAN, std=CLIP_STD)}
    facts |= followed(
        {**said(source, interpolation="bicubic", resize_mode="shortest"), **facts}, pixels, trunk["img_size"]
    )
    cuts = (config or {}).get("matryoshka_dimensions")
    if isinstance(cuts, list):
        facts["matryoshka"] = Fact(cuts, "config.json")
    return Form("jina-clip", named, own, trunk=trunk, text=side, facts=facts, decides=True)


def _jina_text(state: State, path: Path, settings: dict[str, Any]) -> tuple[State, dict[str, Any]]:
    """The text side of jina-clip v2 in transformers' names for jina-embeddings-v3, with the LoRA of its task merged."""
    kwargs = dict(settings.get("hf_model_config_kwargs") or {})
    text = {key: value for key, value in state.items() if key.startswith("text_model.")}
    if not any(".mixer.Wqkv." in key and "norm_q" not in key for key in text) or any("gated_layers" in k for k in text):
        raise bad_file(
            path,
            "is a jina-clip v1, whose text side (JinaBERT) no library has: take v2, or give text vectors that were "
            "computed elsewhere with words=FILE",
        )
    merged = _merged(text, path, _task(settings, kwargs), kwargs.get("lora_alpha", 1))
    named: State = {}
    for key, value in merged.items():
        if ".mixer.Wqkv." not in key:
            named[key] = value
            continue
        for part, rows in zip("qkv", value.chunk(3), strict=False):
            name = key.replace("mixer.Wqkv", f"self_attn.{part}_proj")
            named[name] = rows
    joint = (rf"{_LAYER}(self_attn\..*)", rf"{_INTO}\2", "")
    named = renamed(named, (joint, *_JINA_TEXT), path)
    words = named.get("text.transformer.embeddings.word_embeddings.weight")
    kinds = named.get("text.transformer.embeddings.token_type_embeddings.weight")
    hidden = named.get("text.transformer.layers.0.mlp.fc1.weight")
    if words is None or kinds is None or hidden is None:
        raise bad_file(path, "is not a whole jina-clip: its text side lacks a table; download it again")
    width = words.shape[1]
    named["text.proj.weight"] = state.get("text_projection.weight", torch.eye(width))
    side = {
        "config": {
            "model_type": "jina_embeddings_v3",
            "vocab_size": len(words),
            "hidden_size": width,
            "num_hidden_layers": depth(named, "text.transformer.layers."),
            "num_attention_heads": int(kwargs.get("num_attention_heads", max(1, width // 64))),
            "intermediate_size": len(hidden),
            "type_vocab_size": len(kinds),
            "rope_parameters": {"rope_type": "default", "rope_theta": float(kwargs.get("rotary_emb_base", 20000.0))},
        },
        "pooler": "mean_pooler",
        "head": "linear",
        "context": 77,
        "vocabulary": len(words),
    }
    return {key: value for key, value in named.items() if key.startswith("text.")}, side


def _task(settings: Mapping[str, Any], kwargs: Mapping[str, Any]) -> int | None:
    """The number of the adaptation for its default task; None for none."""
    task, tasks = settings.get("default_lora_task"), kwargs.get("lora_adaptations")
    if task is None:
        return None
    if not isinstance(tasks, list) or task not in tasks:
        raise ModelError(f"config.json: the task {str(task)[:40]!r} is none of its lora_adaptations")
    return tasks.index(task)


def _merged(text: State, path: Path, task: int | None, alpha: float) -> State:
    """Merge a task's low-rank changes into weights that torch's parametrize wrote beside them."""
    found: State = {}
    for key, value in text.items():
        stem, mark, part = key.partition(".parametrizations.weight.")
        if not mark:
            found[key] = value
        elif part == "original":
            low, high = text.get(f"{stem}{mark}0.lora_A"), text.get(f"{stem}{mark}0.lora_B")
            if task is not None and low is not None and high is not None:
                a, b = low[task].float(), high[task].float()
                table = ".embeddings." in stem
                change, rank = (a @ b, len(b)) if table else (b @ a, len(a))
                if change.shape != value.shape:
                    raise bad_file(path, f"has changes of {tuple(change.shape)} for {stem}, of {tuple(value.shape)}")
                value = value.float() + change * (float(alpha) / rank)
            found[f"{stem}.weight"] = value
    return found
