"""Folders of tiny random concept models, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "cat", "dog", "puppy", "sky", "red", "car", "grass", "tree"]


def tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(folder)


def shaken(model: torch.nn.Module, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


TEXT = {"vocab_size": len(WORDS), "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip


def sam3(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "Sam3Model"):
        pytest.skip("this transformers has no SAM 3")
    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.Sam3Config(
        vision_config={
            "backbone_config": {**small, "num_hidden_layers": 2, "image_size": 56, "patch_size": 14, "window_size": 2,
                                "global_attn_indexes": [1], "pretrain_image_size": 56, "model_type": "sam3_vit_model"},
            "fpn_hidden_size": 32,
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        text_config={**TEXT, "hidden_size": 16, "intermediate_size": 32, "projection_dim": 8},
        geometry_encoder_config={**small, "num_layers": 1},
        detr_encoder_config={**small, "num_layers": 1},
        detr_decoder_config={**small, "num_layers": 2, "num_queries": 5},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )  # fmt: skip
    shaken(transformers.Sam3Model(config)).save_pretrained(folder)
    tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"size": {"height": 56, "width": 56}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    )
    return folder


def clipseg(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPSegConfig(
        text_config={**TEXT, "hidden_size": 16, "intermediate_size": 32},
        vision_config={"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32,
                       "image_size": 32, "patch_size": 8},
        projection_dim=12, reduce_dim=8, extract_layers=[1, 2, 3], decoder_num_attention_heads=2,
        decoder_intermediate_size=16, use_complex_transposed_convolution=False,
    )  # fmt: skip
    shaken(transformers.CLIPSegForImageSegmentation(config)).save_pretrained(folder)
    tokenizer(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"size": {"height": 48, "width": 48}, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}'
    )
    return folder


FOLDERS = {"sam3": sam3, "clipseg": clipseg}
