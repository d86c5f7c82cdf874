"""Models of Hugging Face's transformers in open_clip's names: CLIP, MetaCLIP 2, Chinese-CLIP, AltCLIP, SigLIP.

Their weights and their config.json are read; their code is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from densevl.weights.facts import CLIP_MEAN, CLIP_STD, HALF, QUICK, TANH, Fact, Form
from densevl.weights.forms.naming import Rule, layers, renamed
from densevl.weights.forms.pixels import Processor, followed
from densevl.weights.forms.settings import CONFIG, activation, end, epsilon, heads, input_size, side
from densevl.weights.forms.sizes import NO_TEXT, SIGLIP_HEADS, depth, divided, text_sizes, unsure, vision_sizes
from densevl.weights.reading import State, bad_file

KERNEL = "vision_model.embeddings.patch_embedding.weight"
_SIGLIP_WIDTHS = {768: "base", 1024: "large", 1152: "so400m"}
_VISION: tuple[Rule, ...] = (
    (r".*\.position_ids", None, ""),
    (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding", "flat"),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "visual.conv1.weight", ""),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding", ""),
    (r"vision_model\.pre_layrnorm\.(.*)", r"visual.ln_pre.\1", ""),
    (r"vision_model\.post_layernorm\.(.*)", r"visual.ln_post.\1", ""),
    (r"visual_projection\.weight", "visual.proj", "T"),
    *layers("vision_model", "visual."),
    (r"logit_scale", "logit_scale", "[]"),
)
_TEXT: tuple[Rule, ...] = (
    (r"text_model\.embeddings\.token_embedding\.weight", "token_embedding.weight", ""),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding", ""),
    (r"text_model\.final_layer_norm\.(.*)", r"ln_final.\1", ""),
    (r"text_projection\.weight", "text_projection", "T"),
    *layers("text_model", ""),
)
_SIGLIP: tuple[Rule, ...] = (
    (r".*\.position_ids", None, ""),
    (r"vision_model\.embeddings\.patch_embedding\.(.*)", r"visual.trunk.patch_embed.proj.\1", ""),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.trunk.pos_embed", ""),
    (
        r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)",
        r"visual.trunk.blocks.\1.attn.qkv.\3",
        "qkv",
    ),
    (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.*)", r"visual.trunk.blocks.\1.attn.proj.\2", ""),
    (r"vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.(.*)", r"visual.trunk.blocks.\1.norm\2.\3", ""),
    (r"vision_model\.encoder\.layers\.(\d+)\.mlp\.(.*)", r"visual.trunk.blocks.\1.mlp.\2", ""),
    (r"vision_model\.post_layernorm\.(.*)", r"visual.trunk.norm.\1", ""),
    (r"vision_model\.head\.probe", "visual.trunk.attn_pool.latent", ""),
    (r"vision_model\.head\.attention\.in_proj_(weight|bias)", r"visual.trunk.attn_pool.in_proj_\1", ""),
    (r"vision_model\.head\.attention\.out_proj\.(.*)", r"visual.trunk.attn_pool.proj.\1", ""),
    (r"vision_model\.head\.layernorm\.(.*)", r"visual.trunk.attn_pool.norm.\1", ""),
    (r"vision_model\.head\.mlp\.(.*)", r"visual.trunk.attn_pool.mlp.\1", ""),
    (r"text_model\.embeddings\.token_embedding\.weight", "text.token_embedding.weight", ""),
    (r"text_model\.embeddings\.position_embedding\.weight", "text.positional_embedding", ""),
    (r"text_model\.final_layer_norm\.(.*)", r"text.ln_final.\1", ""),
    (r"text_model\.head\.(.*)", r"text.text_projection.\1", ""),
    *layers("text_model", "text."),
    (r"logit_(scale|bias)", r"logit_\1", "[]"),
)


_BOX_WORDS = "boxtext_head.weight"
_FINE: tuple[Rule, ...] = (
    (r"vision_model\.head\..*|text_model\.head\..*|longtext_head\..*", None, ""),
    (r"text_model\.embeddings\.(?:position_embedding_(?:res|ori)\.weight|mask[12])", None, ""),
    (r"logit_scale_.*", None, ""),
    (r"dense_feature_head\.probe", "visual.trunk.attn_pool.latent", ""),
    (r"dense_feature_head\.attention\.in_proj_(weight|bias)", r"visual.trunk.attn_pool.in_proj_\1", ""),
    (r"dense_feature_head\.attention\.out_proj\.(.*)", r"visual.trunk.attn_pool.proj.\1", ""),
    (r"dense_feature_head\.layernorm\.(.*)", r"visual.trunk.attn_pool.norm.\1", ""),
    (r"dense_feature_head\.mlp\.(.*)", r"visual.trunk.attn_pool.mlp.\1", ""),
    (r"boxtext_head\.(.*)", r"text.text_projection.\1", ""),
)
"""FG-CLIP 2's pool trained for patches and words trained for boxes, which replace those for images."""
GEMMA = 256_000
"""Size of the vocabulary of SigLIP 2."""
TOKENIZERS = {32000: "timm/ViT-B-16-SigLIP", GEMMA: "timm/ViT-B-16-SigLIP2-256"}
"""SigLIP's tokenizers, by the size of the vocabulary."""


def of_transformers(state: State, path: Path, config: Mapping[str, Any] | None, pixels: Processor | None) -> Form:
    """Convert a model of transformers.

    Args:
        state: its tensors. config: config.json; None if there is only the file. pixels: settings of its processor.

    Raises:
        WeightsError: tensors are missing, or do not fit each other.
        ModelError: the kind is not supported.
    """
    if "vision_model.embeddings.patch_embedding.bias" in state:
        return _siglip(state, path, config, pixels)
    settings = config or {}
    vision, text = side(settings, "vision_config"), side(settings, "text_config")
    bert = any(key.startswith("text_model.embeddings.word_embeddings") for key in state)
    alt = any(key.startswith("text_model.roberta.") for key in state)
    if bert or alt:
        return _of_bert(state, path, config, vision, text, pixels, alt=alt)
    named = renamed(state, (*_VISION, *_TEXT), path)
    if not any(key.startswith("text_model.") for key in state):
        vision = vision or dict(settings)
        image = _image(named, path, config, vision)
        alone = {"embed_dim": _projected(named, path), "custom_text": True, "vision_cfg": image, "text_cfg": NO_TEXT}
        facts = _facts(config, vision, text, pixels, QUICK, (CLIP_MEAN, CLIP_STD), image["image_size"])
        return Form(
            "the image side of CLIP of transformers",
            named,
            alone,
            facts=facts,
            tower=True,
            guesses=unsure(config, alone),
        )
    words = {**text_sizes(named, path, heads(text, 8 if config else None)), **_eps(text)}
    if config is not None:
        words |= end(text, legacy=settings.get("model_type") != "metaclip_2")
    own: dict[str, Any] = {
        "embed_dim": _projected(named, path),
        "vision_cfg": _image(named, path, config, vision),
        "text_cfg": {**words, **_tokenizer(words["vocab_size"])},
    }
    facts = _facts(config, vision, text, pixels, QUICK, (CLIP_MEAN, CLIP_STD), own["vision_cfg"]["image_size"])
    return Form("CLIP of transformers", named, own, facts=facts, guesses=unsure(config, own))


def _of_bert(
    state: State,
    path: Path,
    config: Mapping[str, Any] | None,
    vision: dict[str, Any],
    text: dict[str, Any],
    pixels: Processor | None,
    *,
    alt: bool,
) -> Form:
    """Chinese-CLIP, whose text side is a BERT, and AltCLIP, whose text side is an XLM-R with another head."""
    if config is None:
        raise bad_file(path, f"holds a text side whose sizes are in {CONFIG}: name the folder of both")
    start = r"text_model\.roberta\." if alt else r"text_model\."
    rules: list[Rule] = [
        *_VISION,
        (rf"{start}pooler\..*", None, ""),
        (r"text_model\.pooler\..*", None, ""),
        (r"text_model\.pre_LN\.(.*)", r"text.proj.0.\1", ""),
        (rf"{start}encoder\.layers?\.(.*)", r"text.transformer.encoder.layer.\1", ""),
        (rf"{start}(embeddings\..*)", r"text.transformer.\1", ""),
    ]
    if not alt:
        rules.append((r"text_projection\.weight", "text.proj.weight", ""))
    named = renamed(state, rules, path)
    if alt:
        try:  # two layers with nothing between them are one
            one, two = named.pop("text_model.transformation.weight"), named.pop("text_projection.weight")
            bias = named.pop("text_model.transformation.bias")
        except KeyError as error:
            raise bad_file(path, f"is not a whole AltCLIP: {error} is missing; download it again") from error
        named["text.proj.1.weight"] = two.float() @ one.float()
        named["text.proj.1.bias"] = two.float() @ bias.float()
    heads(text, None), epsilon(text, 1e-5)  # checked, because transformers takes them unchecked
    kind = {"model_type": "xlm-roberta" if alt else "bert"}
    keep = {
        key: value for key, value in text.items() if key not in ("model_type", "architectures", "transformers_version")
    }
    defaults = _ALT_TEXT if alt else {}
    words = named.get("text.transformer.embeddings.word_embeddings.weight")
    places, padding = named.get("text.transformer.embeddings.position_embeddings.weight"), 2 if alt else 0
    usual = 77 if alt else 52
    words_side = {
        "config": {**defaults, **keep, **kind},
        "pooler": "cls_last_hidden_state_pooler",
        "head": "norm" if alt else "linear",
        "context": usual if places is None else min(usual, len(places) - padding),
        "vocabulary": len(words) if words is not None else 0,
    }
    own: dict[str, Any] = {
        "embed_dim": _projected(named, path),
        "custom_text": True,
        "vision_cfg": _image(named, path, config, vision),
        "text_cfg": {"context_length": words_side["context"], "vocab_size": 16, "width": 8, "heads": 1, "layers": 1},
    }
    facts = _facts(config, vision, text, pixels, QUICK, (CLIP_MEAN, CLIP_STD), own["vision_cfg"]["image_size"])
    facts["text_activation"] = Fact(None, "the text side's own")
    return Form(
        "AltCLIP" if alt else "Chinese-CLIP of transformers", named, own, text=words_side, facts=facts, decides=True
    )


_ALT_TEXT = {
    "vocab_size": 250002,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
"""AltCLIP's text settings if its config leaves them out."""


def _siglip(state: State, path: Path, config: Mapping[str, Any] | None, pixels: Processor | None) -> Form:
    """SigLIP, SigLIP 2 of one resolution or of any, and FG-CLIP 2, which is one with a pool for patches and words."""
    fine = _BOX_WORDS in state
    kernel = state[KERNEL]
    settings = config or {}
    vision, text = side(settings, "vision_config"), side(settings, "text_config")
    named = renamed(state, (*_FINE, *_SIGLIP) if fine else _SIGLIP, path)
    any_size = kernel.ndim == 2
    if any_size:  # rows, columns, colours
        edge = math.isqrt(max(kernel.shape[1] // 3, 1))
        if kernel.shape[1] != 3 * edge**2:
            raise bad_file(path, f"has patches of {kernel.shape[1]} numbers, which is not a square of colours")
        kernel = kernel.unflatten(1, (edge, edge, 3)).permute(0, 3, 1, 2).contiguous()
        named["visual.trunk.patch_embed.proj.weight"] = kernel
    width, patch = kernel.shape[0], kernel.shape[-1]
    try:
        places = named["visual.trunk.pos_embed"]
        named["visual.trunk.pos_embed"] = places[None] if places.ndim == 2 else places
        for kind in ("weight", "bias"):
            joint = named.pop(f"visual.trunk.attn_pool.in_proj_{kind}")
            named[f"visual.trunk.attn_pool.q.{kind}"], named[f"visual.trunk.attn_pool.kv.{kind}"] = joint.split(
                [width, 2 * width]
            )
        hidden = named["visual.trunk.blocks.0.mlp.fc1.weight"].shape[0]
        grid = round(len(places.reshape(-1, width)) ** 0.5)
        alone = not any(key.startswith("text.") for key in named)
        embed = width if alone else named["text.text_projection.weight"].shape[0]
        words = dict(NO_TEXT) if alone else text_sizes(named, path, heads(text, 12 if config else None), "text.")
    except (KeyError, RuntimeError) as error:
        raise bad_file(
            path, f"is not a whole SigLIP: {' '.join(str(error).split())[:80]}; download it again"
        ) from error
    size = input_size(vision, grid, patch)
    own = {
        "embed_dim": embed,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {
            "image_size": size,
            "timm_model_name": f"vit_{_SIGLIP_WIDTHS.get(width, 'base')}_patch16_siglip_256",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": words if alone else siglip_text(words, settings, text, lower=any_size),
    }
    trunk = {
        "img_size": size,
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth(named, "visual.trunk.blocks."),
        "num_heads": divided(width, heads(vision, 12 if config else None), SIGLIP_HEADS)[0],
        "mlp_ratio": hidden / width,
        "norm_eps": epsilon(vision, 1e-6),
    }
    facts = _facts(config, vision, text, pixels, TANH, (HALF, HALF), size)
    if any_size:
        facts |= {"positions": Fact("bilinear_antialias", "the model's own code")}
    return Form(
        "FG-CLIP 2" if fine else "SigLIP 2 of any resolution" if any_size else "SigLIP of transformers",
        named,
        own,
        trunk=trunk,
        head={"kind": "pool", "embed": embed, "rule": "bilinear_antialias"} if fine else None,
        facts=facts,
        decides=True,
        tower=alone,
        guesses=unsure(config, own, trunk),
    )


def siglip_side(named: State, path: Path) -> dict[str, Any]:
    """The text side of a SigLIP as parts of open_clip's model_cfg, in open_clip's names."""
    last = named.get("text.text_projection.weight")
    if last is None:
        raise bad_file(path, "is beside words that are not a SigLIP's; name the SigLIP 2 that it was trained for")
    return {
        "embed_dim": len(last),
        "init_logit_bias": -10,
        "text_cfg": siglip_text(text_sizes(named, path, None, "text."), {}, {}),
    }


def siglip_text(
    words: Mapping[str, Any], config: Mapping[str, Any], text: Mapping[str, Any], *, lower: bool = False
) -> dict[str, Any]:
    """open_clip's text_cfg of a SigLIP.

    Args:
        words: its sizes. config, text: config.json, and its part for the text side. lower: keep punctuation, as always
            with Gemma's words.
    """
    return {
        **words,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": epsilon(text, 1e-6)},
        "hf_tokenizer_name": config.get("_name_or_path") or TOKENIZERS.get(words["vocab_size"], TOKENIZERS[32000]),
        "tokenizer_kwargs": {"clean": "lower" if lower or words["vocab_size"] == GEMMA else "canonicalize"},
    }


def _projected(named: Mapping[str, torch.Tensor], path: Path) -> int:
    proj = named.get("visual.proj")
    if proj is None or proj.ndim != 2:
        raise bad_file(path, "has no visual_projection, so images do not reach the words; give the whole model's file")
    return int(proj.shape[1])


def _tokenizer(words: int) -> dict[str, Any]:
    return {} if words == 49408 else {"hf_tokenizer_name": "folder"}


def _eps(config: Mapping[str, Any]) -> dict[str, Any]:
    eps = epsilon(config, 1e-5)
    return {} if eps == 1e-5 else {"norm_kwargs": {"eps": eps}}


def _image(
    named: Mapping[str, torch.Tensor], path: Path, config: Mapping[str, Any] | None, vision: Mapping[str, Any]
) -> dict[str, Any]:
    """open_clip's vision_cfg of a ViT of CLIP."""
    sizes = vision_sizes(named, path, heads(vision, 12 if config else None))
    grid = sizes["image_size"] // sizes["patch_size"]
    return {**sizes, **_eps(vision), "image_size": input_size(vision, grid, sizes["patch_size"])}


def _facts(
    config: Mapping[str, Any] | None,
    vision: Mapping[str, Any],
    text: Mapping[str, Any],
    pixels: Processor | None,
    usual: str,
    colours: tuple[tuple[float, ...], tuple[float, ...]],
    size: int,
) -> dict[str, Fact]:
    """Activations and pixels of a type of transformers; without its config they are the type's defaults, a guess."""
    source, guessed = (f"{CONFIG}'s model type", False) if config is not None else ("the usual of its type", True)
    facts = {}
    for tower, own in (("image", vision), ("text", text)):
        kind = activation(own, usual)
        facts[f"{tower}_activation"] = Fact(kind, CONFIG if config is not None else source, guessed)
    squash = colours == (HALF, HALF) or str((config or {}).get("model_type")).startswith("siglip")
    values = {"mean": colours[0], "std": colours[1], "interpolation": "bicubic"}
    values["resize_mode"] = "squash" if squash else "shortest"
    return facts | followed({name: Fact(value, source, guessed) for name, value in values.items()}, pixels, size)
