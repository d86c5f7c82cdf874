"""Models as the publishing libraries save them, loaded by densevl: features equal to the library's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from densevl import load_backbone
from densevl.backbones.managing import convert

transformers = pytest.importorskip("transformers", reason="the publishing library")

VISION = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 49408,
    "max_position_embeddings": 16,
}
EOS = 49407


def _clip(act: str = "quick_gelu", text_act: str | None = None) -> Any:
    config = transformers.CLIPConfig(
        vision_config={**VISION, "hidden_act": act},
        text_config={**TEXT, "hidden_act": text_act or act, "eos_token_id": EOS},
        projection_dim=24,
    )
    return transformers.CLIPModel(config)


def _metaclip() -> Any:
    text = {**TEXT, "vocab_size": 200, "eos_token_id": 2, "pad_token_id": 1}
    return transformers.MetaClip2Model(
        transformers.MetaClip2Config(
            vision_config={**VISION, "hidden_act": "gelu"}, text_config=text, projection_dim=24
        )
    )


def _siglip() -> Any:
    text = {**TEXT, "vocab_size": 200, "projection_size": 64}
    return transformers.SiglipModel(transformers.SiglipConfig(vision_config=VISION, text_config=text))


def _chinese() -> Any:
    text = {**TEXT, "vocab_size": 200, "max_position_embeddings": 60}
    return transformers.ChineseCLIPModel(
        transformers.ChineseCLIPConfig(vision_config=VISION, text_config=text, projection_dim=24)
    )


def _alt() -> Any:
    text = {**TEXT, "vocab_size": 200, "max_position_embeddings": 90, "project_dim": 24}
    return transformers.AltCLIPModel(
        transformers.AltCLIPConfig(vision_config=VISION, text_config=text, projection_dim=24)
    )


def _tokens(model: Any, count: int, length: int) -> torch.Tensor:
    """Rows of words that end and are padded as the model's own tokenizer does."""
    kind = model.config.model_type
    end, pad = {"clip": (EOS, 0), "metaclip_2": (2, 1), "siglip": (1, 1), "chinese_clip": (102, 0), "altclip": (2, 1)}[
        kind
    ]
    rows = torch.full((count, length), pad)
    for index, row in enumerate(rows):
        used = 3 + index
        row[:used] = torch.randint(5, 100, (used,))
        row[used] = end
    return rows


MODELS: dict[str, Callable[[], Any]] = {
    "CLIP": _clip,
    "CLIP with GELU": lambda: _clip("gelu"),
    "CLIP of two activations": lambda: _clip("gelu", "quick_gelu"),
    "MetaCLIP 2": _metaclip,
    "SigLIP": _siglip,
    "Chinese-CLIP": _chinese,
    "AltCLIP": _alt,
}


@pytest.fixture
def no_tokenizer(monkeypatch) -> None:
    """Words come as numbers here; the tokenizers of the publishers are not in a package."""
    monkeypatch.setattr("densevl.backbones.build._tokenizer", lambda text, form, folder: lambda texts: None)


@torch.no_grad()
def _scaled(model: Any) -> Any:
    """Weights with which features are of size one: the usual ones hide a wrong activation."""
    for name, value in model.named_parameters():
        if value.ndim > 1:
            value.normal_(0, 1.5 / value.shape[-1] ** 0.5)
        elif name.endswith("bias"):
            value.normal_(0, 0.2)
    return model.eval()


@torch.no_grad()
def _compare(model: Any, backbone: Any) -> tuple[float, float]:
    pixels = torch.randn(2, 3, 32, 32)
    length = TEXT["max_position_embeddings"] if model.config.model_type == "siglip" else 16
    tokens = _tokens(model, 3, length)
    masked = (
        {} if model.config.model_type in ("clip", "siglip") else {"attention_mask": (tokens != tokens[0, -1]).long()}
    )
    image, text = model.get_image_features(pixel_values=pixels), model.get_text_features(input_ids=tokens, **masked)
    image, text = (getattr(found, "pooler_output", found) for found in (image, text))
    own = backbone.model
    return (
        float((backbone.encode_image(pixels) - image).abs().max()),
        float((own.encode_text(tokens, normalize=False) - text).abs().max()),
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("saved", ["one file", "shards", "pickle"])
def test_a_folder_of_transformers_gives_the_features_of_transformers(tmp_path: Path, no_tokenizer, name, saved) -> None:
    model = _scaled(MODELS[name]())
    model.save_pretrained(tmp_path, max_shard_size="100KB" if saved == "shards" else "5GB")
    if saved == "pickle":
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    backbone = load_backbone(str(tmp_path), device="cpu")
    assert max(_compare(model, backbone)) < 1e-5
    assert backbone.reading["image_activation"][1] == "config.json"
    assert backbone.guesses == ()
    convert(backbone, tmp_path / "out")
    again = load_backbone(f"local-dir:{tmp_path / 'out'}", device="cpu")
    assert max(_compare(model, again)) < 1e-5
    assert (again.mean, again.guesses) == (backbone.mean, ())
    dense = backbone.encode_dense(torch.randn(1, 3, 32, 48), "vanilla")
    assert dense.features.shape == (1, backbone.embed_dim, 4, 6)


# Programs that are in no package: their names are written here from what they publish --------------------------------


def _own(config: dict[str, Any] | None = None) -> tuple[Any, dict[str, torch.Tensor]]:
    """A random model of open_clip, and its tensors; what another program's file has to give."""
    import open_clip

    model = _scaled(open_clip.CLIP(**(config or OWN)))
    return model, dict(model.state_dict())


OWN: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 64},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
OPENAI = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16), "vocab_size": torch.tensor(49408)}


@torch.no_grad()
def _differences(model: Any, backbone: Any) -> float:
    pixels, tokens = torch.randn(2, 3, 32, 32), torch.randint(0, 100, (3, 16))
    image = (backbone.encode_image(pixels) - model.encode_image(pixels)).abs().max()
    text = (backbone.model.encode_text(tokens) - model.encode_text(tokens)).abs().max()
    return float(torch.maximum(image, text))


class _Program(torch.nn.Module):
    """What OpenAI's files are: a scripted model with three numbers beside its weights."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for key, value in state.items():
            part: torch.nn.Module = self
            *above, last = key.split(".")
            for name in above:
                if not hasattr(part, name):
                    part.add_module(name, torch.nn.Module())
                part = getattr(part, name)
            part.register_buffer(last, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_the_file_of_openai_needs_no_name_and_says_its_activation(tmp_path: Path) -> None:
    model, state = _own({**OWN, "quick_gelu": True})
    torch.jit.save(torch.jit.script(_Program({**state, **OPENAI})), str(tmp_path / "x.pt"))
    backbone = load_backbone("auto", tmp_path / "x.pt", device="cpu")
    assert _differences(model, backbone) < 1e-5
    assert backbone.reading["image_activation"] == ["quick_gelu", "OpenAI's own file"]
    assert backbone.guesses == ()


@pytest.mark.parametrize("wrap", ["module.", "_orig_mod.module.", "model.", ""])
def test_a_training_checkpoint_is_its_model_and_says_that_it_guesses(tmp_path: Path, wrap) -> None:
    from argparse import Namespace

    model, state = _own()
    content = {
        "epoch": 3,
        "args": Namespace(lr=1e-3),
        "state_dict": {f"{wrap}{key}": x.half() for key, x in state.items()},
    }
    torch.save(content, tmp_path / "x.pt")
    backbone = load_backbone("auto", tmp_path / "x.pt", device="cpu")
    assert backbone.encode_image(torch.randn(1, 3, 32, 32)).dtype == torch.float32
    model.load_state_dict({key: x.half().float() for key, x in state.items()})
    assert _differences(model, backbone) < 1e-5
    assert "does not say its activation" in backbone.guesses[0]


def test_slip_is_a_vit_that_every_recipe_rewires(tmp_path: Path) -> None:
    import timm

    vision = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=1, num_classes=0, global_pool="token"
    )
    vision, (model, state) = _scaled(vision), _own({**OWN, "quick_gelu": True})
    projection = torch.randn(64, 24) / 8
    slip = {f"visual.{key}": value for key, value in vision.state_dict().items()} | {"image_projection": projection}
    slip |= {key: value for key, value in state.items() if not key.startswith("visual.")}
    slip |= {"image_mlp.layer1.weight": torch.ones(3)}
    torch.save({"state_dict": {f"module.{key}": value for key, value in slip.items()}, "epoch": 1}, tmp_path / "x.pt")
    backbone = load_backbone("auto", tmp_path / "x.pt", device="cpu")
    pixels, tokens = torch.randn(2, 3, 32, 32), torch.randint(0, 100, (3, 16))
    with torch.no_grad():
        assert float((backbone.encode_image(pixels) - vision(pixels) @ projection).abs().max()) < 1e-5
        assert float((backbone.model.encode_text(tokens) - model.encode_text(tokens)).abs().max()) < 1e-5
    assert backbone.mean == pytest.approx((0.485, 0.456, 0.406))
    assert backbone.encode_dense(pixels, "sclip").features.shape == (2, 24, 4, 4)


def test_eva_in_its_own_names(tmp_path: Path, monkeypatch) -> None:
    """Written backwards from timm's names, for the smallest EVA that timm has."""
    import re

    import open_clip
    import timm

    small = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 4}
    make = timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, **how: make(name, **({**how, **small} if name.startswith("eva02_base") else how)),
    )
    config = {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {
            "timm_model_name": "eva02_base_patch16_clip_224",
            "timm_pool": "token",
            "timm_proj": None,
            "image_size": 32,
        },
        "text_cfg": OWN["text_cfg"],
    }
    model = _scaled(open_clip.CustomTextCLIP(**{key: value for key, value in config.items() if key != "custom_text"}))
    theirs = {}
    for key, value in model.state_dict().items():
        name = re.sub(r"^visual\.trunk\.", "visual.", key)
        if name.startswith("visual."):
            name = re.sub(r"attn\.norm\.", "attn.inner_attn_ln.", name)
            name = re.sub(r"mlp\.norm\.", "mlp.ffn_ln.", name)
            name = re.sub(r"attn\.([qv])_proj\.bias", r"attn.\1_bias", name)
            for old, new in (("fc1_g", "w1"), ("fc1_x", "w2"), ("fc2", "w3")):
                name = name.replace(f"mlp.{old}.", f"mlp.{new}.")
        theirs[name] = value
    theirs |= {"visual.rope.freqs_cos": torch.ones(4, 12), "visual.blocks.0.attn.rope.freqs_sin": torch.ones(4, 12)}
    torch.save(theirs, tmp_path / "x.pt")
    (tmp_path / "eva.json").write_text(json.dumps(config))
    backbone = load_backbone(str(tmp_path / "eva.json"), tmp_path / "x.pt", device="cpu")
    assert backbone.reading["form"] == "EVA-CLIP"
    assert _differences(model, backbone) < 1e-5


def test_a_tower_that_computes_with_its_weights_while_it_is_made_is_built_too(tmp_path: Path, monkeypatch) -> None:
    """MobileCLIP-B's, which cannot be made without memory."""
    import open_clip
    import timm
    from safetensors.torch import save_file

    small, make = {"img_size": 64, "depth": 1}, timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **how: make(name, **{**how, **small}))
    vision = {"timm_model_name": "vit_base_mci_224", "timm_pool": "token", "timm_proj": None, "image_size": 64}
    config = {"embed_dim": 768, "vision_cfg": vision, "text_cfg": OWN["text_cfg"]}
    model = _scaled(open_clip.CustomTextCLIP(**config))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "x.safetensors")
    (tmp_path / "b.json").write_text(json.dumps({**config, "custom_text": True}))
    backbone = load_backbone(str(tmp_path / "b.json"), tmp_path / "x.safetensors", device="cpu")
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone.encode_image(pixels), model.encode_image(pixels))


def test_chinese_clip_of_its_authors_program(tmp_path: Path, no_tokenizer) -> None:
    model = _scaled(
        transformers.ChineseCLIPModel(
            transformers.ChineseCLIPConfig(
                vision_config={**VISION, "num_attention_heads": 1},
                text_config={**TEXT, "vocab_size": 200, "max_position_embeddings": 60, "num_attention_heads": 1},
                projection_dim=24,
            )
        )
    )
    model.save_pretrained(tmp_path / "hf")
    same = load_backbone(str(tmp_path / "hf"), device="cpu").model.state_dict()
    theirs = {}
    for key, value in same.items():
        if key.startswith("text.transformer."):
            theirs[f"bert.{key.removeprefix('text.transformer.')}"] = value
        else:
            theirs["text_projection" if key == "text.proj.weight" else key] = (
                value.T if key == "text.proj.weight" else value
            )
    theirs["bert.pooler.dense.weight"] = torch.ones(32, 32)
    torch.save({"state_dict": {f"module.{key}": value for key, value in theirs.items()}}, tmp_path / "x.pt")
    backbone = load_backbone("auto", tmp_path / "x.pt", device="cpu")
    assert max(_compare(model, backbone)) < 1e-5


def test_an_image_tower_takes_the_text_of_the_model_it_was_trained_from(tmp_path: Path, monkeypatch) -> None:
    from safetensors.torch import save_file

    _, base = _own({**OWN, "quick_gelu": True})
    model, state = _own({**OWN, "quick_gelu": True})
    (tmp_path / "base").mkdir()
    save_file(base, tmp_path / "base" / "x.safetensors")
    monkeypatch.setattr("densevl.backbones.load.hub.fetch", lambda hub_id, name: tmp_path / "base" / "x.safetensors")
    monkeypatch.setattr("densevl.backbones.load._architecture", lambda arch: OWN)
    tower = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    torch.save(tower, tmp_path / "fare.pt")
    backbone = load_backbone("ViT-L-14/openai", tmp_path / "fare.pt", device="cpu")
    model.load_state_dict({**base, **{key: x for key, x in state.items() if key.startswith("visual.")}})
    assert _differences(model, backbone) < 1e-5
    assert backbone.reading["image_activation"] == ["quick_gelu", "open_clip's table, ViT-L-14/openai"]


@pytest.mark.parametrize(
    ("arch", "taken", "warned"),
    [
        ("ViT-L-14-336", "quick_gelu", ""),
        ("ViT-H-14-378", "quick_gelu", ""),
        ("RN50", "quick_gelu", ""),
        ("ViT-B-32", "gelu", "QuickGELU for openai, .* name it beside the file: ViT-B-32/openai"),
        ("ViT-B-32/openai", "quick_gelu", ""),
        ("ViT-B-32/laion2b_e16", "gelu", ""),
        ("ViT-L-14", "gelu", "0.5 for laion2b_s32b_b82k"),
        ("ViT-H-14", "gelu", "squash for dfn5b"),
    ],
)
def test_the_activation_is_that_of_the_published_weights_or_a_warned_guess(
    tmp_path: Path, monkeypatch, arch, taken, warned
) -> None:
    import re

    from safetensors.torch import save_file

    _, state = _own()
    save_file(state, tmp_path / "x.safetensors")
    monkeypatch.setattr("densevl.backbones.load._architecture", lambda name: {**OWN, "quick_gelu": False})
    backbone = load_backbone(arch, tmp_path / "x.safetensors", device="cpu")
    assert backbone.reading["image_activation"][0] == taken
    told = " ".join(backbone.guesses)
    assert bool(told) == bool(warned)
    assert re.search(warned, told)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("visual.blocks.0.attn.lambda_q1", "DiffCLIP"),
        ("prompt_learner.ctx", "learned prompts"),
        ("base.lora_A.weight", "LoRA"),
        ("visual.conv1_alpha.weight", "Alpha-CLIP"),
        ("fusion_module.x", "PMC-CLIP"),
        ("visual_encoder.cls_token", "BLIP"),
        ("vision_model.blocks.0.x", "jina-clip"),
    ],
)
def test_what_is_no_model_is_told_by_its_name(tmp_path: Path, key, reason) -> None:
    from densevl.errors import WeightsError

    torch.save({key: torch.ones(1), "other": torch.ones(1)}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=reason):
        load_backbone("ViT-B-32", tmp_path / "x.pt", device="cpu")
