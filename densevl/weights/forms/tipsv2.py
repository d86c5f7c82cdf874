"""TIPSv2 (google-deepmind/tips, CVPR 2026) in open_clip's names.

Its patches speak: the joint space is the tower's own width, without a projection.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from densevl.weights.facts import GELU, Fact, Form, said
from densevl.weights.forms.naming import Rule, renamed
from densevl.weights.forms.pixels import Processor, followed
from densevl.weights.forms.settings import CONFIG, activation, epsilon, heads, length, side
from densevl.weights.forms.sizes import NO_TEXT, TEXT_HEADS, depth, divided
from densevl.weights.reading import State, bad_file

TIPS = "vision_encoder.patch_embed.proj.weight"
TEMPERATURE = 0.005065968260169029
"""The temperature of logits if a file has none."""
_BLOCK, _INTO = r"vision_encoder\.blocks\.(\d+)\.", r"visual.trunk.blocks.\1."
_LAYER, _WORDS = r"text_encoder\.transformer\.resblocks\.(\d+)\.", r"text.transformer.encoder.layers.\1."
_RULES: tuple[Rule, ...] = (
    (r"vision_encoder\.mask_token", None, ""),
    (r"vision_encoder\.register_tokens", "visual.trunk.reg_token", ""),
    (rf"{_BLOCK}mlp\.(?:c_fc|w12)\.(.*)", rf"{_INTO}mlp.fc1.\2", ""),
    (rf"{_BLOCK}mlp\.(?:c_proj|w3)\.(.*)", rf"{_INTO}mlp.fc2.\2", ""),
    (r"vision_encoder\.(.*)", r"visual.trunk.\1", ""),
    (r"text_encoder\.token_embedding\.(.*)", r"text.transformer.embeddings.token_embedding.\1", ""),
    (r"text_encoder\.ln_final\.(.*)", r"text.transformer.final_layer_norm.\1", ""),
    (rf"{_LAYER}ln_([12])\.(.*)", rf"{_WORDS}layer_norm\2.\3", ""),
    (rf"{_LAYER}mlp\.c_fc\.(.*)", rf"{_WORDS}mlp.fc1.\2", ""),
    (rf"{_LAYER}mlp\.c_proj\.(.*)", rf"{_WORDS}mlp.fc2.\2", ""),
    (rf"{_LAYER}attn\.(.*)", rf"{_WORDS}self_attn.\2", ""),
)


def tipsv2(state: State, path: Path, config: Mapping[str, Any] | None, pixels: Processor | None = None) -> Form:
    """Convert a TIPSv2.

    Args:
        config: config.json; None takes the published sizes of heads. pixels: settings of its processor.

    Raises:
        WeightsError: tensors are missing, or do not fit each other.
    """
    settings = config or {}
    vision, text = side(settings, "vision_config"), side(settings, "text_config")
    named = renamed(state, _RULES, path)
    temperature = named.pop("temperature", torch.tensor(TEMPERATURE))
    try:
        named["logit_scale"] = -temperature.float().log().reshape(())
        places = named["visual.trunk.pos_embed"]
        named["visual.trunk.cls_token"] = named["visual.trunk.cls_token"] + places[:, :1]
        named["visual.trunk.pos_embed"] = places[:, 1:].contiguous()
        kernel = named["visual.trunk.patch_embed.proj.weight"]
        words = named["text.transformer.embeddings.token_embedding.weight"]
        for index in range(depth(named, "text.transformer.encoder.layers.")):
            layer = f"text.transformer.encoder.layers.{index}.self_attn."
            for kind in ("weight", "bias"):
                parts = named.pop(f"{layer}in_proj_{kind}").chunk(3)
                named |= {f"{layer}{letter}_proj.{kind}": part for letter, part in zip("qkv", parts, strict=True)}
        gated = "vision_encoder.blocks.0.mlp.w12.weight" in state
        hidden = len(named["visual.trunk.blocks.0.mlp.fc1.weight"])
        inner = len(named["text.transformer.encoder.layers.0.mlp.fc1.weight"])
        registers = named["visual.trunk.reg_token"].shape[1]
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise bad_file(
            path, f"is not a whole TIPSv2: {' '.join(str(error).split())[:80]}; download it again"
        ) from error
    if registers != 1:
        raise bad_file(path, f"is a TIPSv2 with {registers} registers, and densevl reads those with one")
    width, patch = kernel.shape[0], kernel.shape[-1]
    size = math.isqrt(named["visual.trunk.pos_embed"].shape[1]) * patch
    usual = None if config is None else 12
    words_side: dict[str, Any] = {
        "config": {
            "model_type": "tipsv2_text_model",
            "vocab_size": len(words),
            "hidden_size": words.shape[1],
            "intermediate_size": inner,
            "num_hidden_layers": depth(named, "text.transformer.encoder.layers."),
            "num_attention_heads": divided(words.shape[1], heads(text, usual), TEXT_HEADS)[0],
            "max_position_embeddings": length(text, 64),
            "hidden_act": text.get("hidden_act", "relu"),
            "layer_norm_eps": epsilon(text, 1e-5),
            "pad_token_id": 0,
        },
        "pooler": "cls_pooler",  # takes the model's own pooling: the mean over words
        "head": "none",
        "context": length(text, 64),
        "vocabulary": len(words),
    }
    own = {
        "embed_dim": width,
        "custom_text": True,
        "vision_cfg": {
            "image_size": size,
            "timm_model_name": f"vit_{'giant' if gated else 'base'}_patch14_reg1_tipsv2",
            "timm_pool": "token",
            "timm_proj": None,
        },
        "text_cfg": {**NO_TEXT, "context_length": words_side["context"]},
    }
    trunk = {
        "img_size": size,
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth(named, "visual.trunk.blocks."),
        "num_heads": divided(width, heads(vision, usual), {1152: 72})[0],
        "mlp_ratio": hidden / width,
        "norm_eps": epsilon(vision, 1e-6),
    }
    source = "TIPSv2's code"
    facts = said(source, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bilinear", resize_mode="squash")
    facts = followed(facts, pixels, size) | said(source, positions="bilinear_antialias")
    own_act = Fact(None, "the tower's own")
    image = own_act if gated or config is None else Fact(activation(vision, GELU), CONFIG)
    facts |= {"image_activation": image, "text_activation": Fact(None, "the text side's own")}
    return Form("TIPSv2", named, own, trunk=trunk, text=words_side, facts=facts, decides=True)
