"""What files beside the weights say: followed to the numbers of transformers' own, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from densevl import load_backbone
from densevl.errors import ModelError
from tests.conftest import close
from tools import forms

transformers = pytest.importorskip("transformers", reason="the publishing library")
SIDE = forms.SIDE
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)).resize((112, 80))


def save(model: Any, folder: Path) -> Any:
    forms.scaled(model).save_pretrained(folder)
    forms.tokenizer(folder)
    return model


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# The image processor --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True], ids=["preprocessor_config", "processor_config"])
@pytest.mark.parametrize(
    "settings",
    [
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "image_mean": [123.0, 116.0, 103.0], "image_std": [58.0, 57.0, 56.0]},
        {"rescale_factor": 1 / 127.5},
        {"resample": 0},
        {"resample": 2},
        {"size": {"shortest_edge": 40}},
        {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_every_setting_of_a_processor_that_changes_pixels_is_followed(tmp_path: Path, settings, whole) -> None:
    save(forms.clip_of(transformers), tmp_path)
    usual = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    processor = transformers.CLIPImageProcessor(**{**usual, **settings})
    processor.save_pretrained(tmp_path)
    if whole:
        path = tmp_path / "preprocessor_config.json"
        content = {"image_processor": json.loads(path.read_text()), "processor_class": "CLIPProcessor"}
        (tmp_path / "processor_config.json").write_text(json.dumps(content))
        edit(path, lambda told: told.update(image_mean=[0.9, 0.9, 0.9]))  # which transformers does not read then
    backbone = load_backbone(str(tmp_path), device="cpu")
    want = processor(PICTURE, return_tensors="pt")["pixel_values"][0]
    got = backbone.preprocess(PICTURE)
    step = 2.01 / 255 / min(backbone.std)  # two libraries' resampling of bytes
    assert (got - want).abs().max() < step
    assert (got - want).abs().mean() < step / 5
    assert backbone.reading["mean"][1] == ("processor_config.json" if whole else "preprocessor_config.json")
    assert backbone.guesses == ()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"image_mean": [123.0, 116.0, 103.0]}, "mean is 123, 116, 103 for pixels of 0 to 1"),
        ({"image_std": [0, 0, 0]}, "std is 0, 0, 0"),
        ({"image_mean": "x"}, "'x' for image_mean, which is three numbers"),
        ({"image_mean": [0.5, 0.5]}, "three numbers"),
        ({"resample": [3]}, "Pillow's number"),
        ({"resample": 9}, "Pillow's number"),
        ({"rescale_factor": 0}, "rescale_factor"),
        ({"do_normalize": "no"}, "'no' for do_normalize"),
        ({"do_pad": True}, "do_pad, which densevl does not do"),
        ({"do_resize": False}, "do_resize false"),
        ({"size": {"shortest_edge": SIDE}, "do_center_crop": False}, "without do_center_crop"),
        ({"size": {"longest_edge": 64}}, "for size, which is"),
        ({"size": "x"}, "for size, which is"),
        ({"crop_size": 64}, "64 for crop_size, and the model takes 32"),
        ({"size": {"height": 64, "width": 32}}, "resizes to 64x32"),
        ([1], "image processor .* cannot be read"),
        ("<html>", "image processor .* cannot be read"),
    ],
)
def test_a_processor_that_cannot_be_followed_is_refused_by_name(tmp_path: Path, content, reason) -> None:
    save(forms.clip_of(transformers), tmp_path)
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ModelError, match=reason) as raised:
        load_backbone(str(tmp_path), device="cpu")
    assert "\n" not in str(raised.value)


# Files without a config -----------------------------------------------------------------------------------------------


def test_what_is_guessed_of_a_file_is_the_usual_of_its_form_and_each_guess_is_named(tmp_path: Path) -> None:
    model = forms.scaled(forms.clip_of(transformers))
    torch.save(model.state_dict(), tmp_path / "x.pt")
    pixels = torch.randn(1, 3, SIDE, SIDE)
    backbone = load_backbone("auto", tmp_path / "x.pt", device="cpu")
    assert backbone.reading["image_activation"][0] == "quick_gelu"
    assert "config.json" not in str(backbone.reading["interpolation"])
    told = "; ".join(backbone.guesses)
    assert len(backbone.guesses) == 4
    assert all(f"does not say {what}" in told for what in ("its activation", "its pixel", "how many attention heads"))
    given = load_backbone("auto", tmp_path / "x.pt", activation="gelu", device="cpu")
    assert len(given.guesses) == 3
    assert "does not say its pixel statistics: taken CLIP's own" in given.guesses[0]
    assert (given.encode_image(pixels) - backbone.encode_image(pixels)).abs().max() > 1e-4


# The network ----------------------------------------------------------------------------------------------------------


def clip(vision: dict[str, Any], text: dict[str, Any]) -> Any:
    text = {**forms.TEXT, "eos_token_id": 49407, **text}
    return transformers.CLIPModel(
        transformers.CLIPConfig(vision_config={**forms.VISION, **vision}, text_config=text, projection_dim=forms.EMBED)
    )


def siglip(vision: dict[str, Any], text: dict[str, Any]) -> Any:
    text = {**forms.TEXT, "vocab_size": forms.VOCABULARY, "projection_size": 64, **text}
    return transformers.SiglipModel(
        transformers.SiglipConfig(vision_config={**forms.VISION, **vision}, text_config=text)
    )


def tips(vision: dict[str, Any], text: dict[str, Any]) -> Any:
    made = forms.tips(transformers).config.to_dict()
    made["vision_config"] |= vision
    made["text_config"] |= text
    return transformers.Tipsv2Model(transformers.Tipsv2Config.from_dict(made))


@torch.no_grad()
def differences(model: Any, folder: Path, tokens: torch.Tensor, size: int = SIDE, **load: Any) -> tuple[Any, float]:
    backbone: Any = load_backbone(str(folder), **load, device="cpu")
    pixels = torch.randn(2, 3, size, size)
    image = backbone.encode_image(pixels) - forms.pooled(model.get_image_features(pixel_values=pixels))
    mask = {"attention_mask": (tokens != 0).long()} if model.config.model_type == "tipsv2" else {}
    words = backbone.model.encode_text(tokens) - forms.pooled(model.get_text_features(input_ids=tokens, **mask))
    return backbone, float(max(image.abs().max(), words.abs().max()))


@pytest.mark.parametrize("setting", [{"layer_norm_eps": 1e-2}, {"hidden_act": "gelu"}, {"hidden_act": "quick_gelu"}])
@pytest.mark.parametrize("side", ["vision", "text"])
@pytest.mark.parametrize("make", [clip, siglip, tips])
def test_epsilon_and_activation_of_each_side_are_those_of_its_config(tmp_path: Path, make, side, setting) -> None:
    model = save(make(setting if side == "vision" else {}, setting if side == "text" else {}), tmp_path)
    assert differences(model, tmp_path, forms.rows(49407 if make is clip else 1, 0))[1] < 2e-5


@pytest.mark.parametrize(("end", "vocabulary"), [(2, 49408), (49407, 49410), (3, 200), (49407, 49408)])
def test_a_text_of_clip_is_read_from_the_end_token_of_its_config(tmp_path: Path, end, vocabulary) -> None:
    model = save(clip({}, {"eos_token_id": end, "vocab_size": vocabulary}), tmp_path)
    tokens = forms.rows(min(end, vocabulary - 1), 0)
    tokens[:, 1] = vocabulary - 1  # a token of a higher number than the end
    assert differences(model, tmp_path, tokens)[1] < 2e-5


@pytest.mark.parametrize("make", [clip, siglip])
def test_an_input_that_is_no_whole_number_of_patches_is_taken_as_it_is(tmp_path: Path, make) -> None:
    model = save(make({"image_size": 36}, {}), tmp_path)
    backbone, difference = differences(model, tmp_path, forms.rows(49407 if make is clip else 1, 0), 36)
    assert difference < 2e-5
    assert backbone.preprocess(PICTURE).shape == (3, 36, 36)


@pytest.mark.parametrize("name", ["siglip", "tipsv2", "clip"])
def test_an_activation_that_is_given_reaches_any_image_tower(tmp_path: Path, name) -> None:
    made = {"siglip": siglip, "tipsv2": tips, "clip": clip}[name]({"hidden_act": "quick_gelu"}, {})
    model = save(made, tmp_path)
    pixels = torch.randn(1, 3, SIDE, SIDE)
    edit(tmp_path / "config.json", lambda told: told["vision_config"].update(hidden_act="gelu"))
    backbone = load_backbone(str(tmp_path), activation="quick_gelu", device="cpu")
    close(backbone.encode_image(pixels), forms.pooled(model.get_image_features(pixel_values=pixels)).detach())
    assert backbone.reading["image_activation"] == ["quick_gelu", "given by the caller"]
    assert backbone.reading["text_activation"][0] == (None if name == "tipsv2" else "quick_gelu")


def test_an_activation_is_refused_where_the_image_tower_has_none_of_its_kind(tmp_path: Path) -> None:
    load = forms.ROWS["eva"].make(tmp_path).load
    assert load_backbone(**load, device="cpu").reading["image_activation"] == [None, "the tower's own"]
    with pytest.raises(ModelError, match="has no GELU"):
        load_backbone(**{**load, "activation": "quick_gelu"}, device="cpu")


@pytest.mark.parametrize(("width", "head", "guessed"), [(1280, 80, False), (1664, 104, False), (384, 64, True)])
@pytest.mark.parametrize("alone", [False, True])
def test_heads_of_a_file_are_those_of_the_published_width_or_a_named_guess(tmp_path, width, head, guessed, alone):
    vision = {**forms.OWN["vision_cfg"], "width": width, "layers": 1, "head_width": head}
    text = {**forms.WORDS, "width": 256, "heads": 4, "layers": 1}
    model, state = forms.own({**forms.OWN, "vision_cfg": vision, "text_cfg": text})
    torch.save(model.visual.state_dict() if alone else state, tmp_path / "x.pt")
    load = {"words": {"cat": torch.ones(forms.EMBED)}} if alone else {}
    given = {"activation": "gelu", "mean": (0.5,) * 3, "std": (0.5,) * 3, "device": "cpu"}
    backbone = load_backbone("auto", tmp_path / "x.pt", **given, **load)
    pixels = torch.randn(1, 3, SIDE, SIDE)
    close(backbone.encode_image(pixels), model.encode_image(pixels).detach())
    assert ["heads the image tower has" in text for text in backbone.guesses] == [True] * guessed


@pytest.mark.parametrize(
    ("make", "key", "value", "reason"),
    [
        (make, key, value, reason)
        for make in ("clip", "siglip", "tipsv2", "chinese", "alt")
        for key, value, reason in [
            ("layer_norm_eps", "x", "layer_norm_eps is 'x'"),
            ("layer_norm_eps", None, "layer_norm_eps is 'None'"),
            ("num_attention_heads", "q", "num_attention_heads is 'q'"),
            ("num_attention_heads", 0, "num_attention_heads is '0'"),
            ("num_attention_heads", 5, "5 attention heads of its config do not divide"),
            ("hidden_act", ["gelu"], "the activation"),
            ("", [1], r"vision_config is \[1\]"),
            ("", None, "12 attention heads of its config do not divide"),
        ]
    ],
)
def test_a_fault_of_the_config_is_told_as_one(tmp_path: Path, make, key, value, reason) -> None:
    forms.ROWS[make].make(tmp_path)

    def change(told: Any) -> None:
        told["vision_config"] = {**told["vision_config"], key: value} if key else value

    edit(tmp_path / "config.json", change)
    with pytest.raises(ModelError, match=reason) as raised:
        load_backbone(str(tmp_path), device="cpu")
    assert "download it again" not in str(raised.value).split("config")[0]


def words_of(folder: Path, size: int) -> Any:
    """A tokenizer of whole words, whose end token is the last of `size`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    listed = ["[PAD]", "[UNK]", "cat", "dog", "Cat", "."]
    words = {word: index for index, word in enumerate([*listed, *(f"x{i}" for i in range(size - 7)), "[SEP]"])}
    made = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("$A [SEP]", special_tokens=[("[SEP]", size - 1)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    return fast


@pytest.mark.parametrize(("make", "size"), [(clip, 49408), (siglip, forms.VOCABULARY)])
@torch.no_grad()
def test_the_tokenizer_of_a_folder_is_taken_as_it_is(tmp_path: Path, make, size) -> None:
    model = save(make({}, {}), tmp_path)
    tokenizer, labels = words_of(tmp_path, size), ["cat", "Cat.", "dog Cat"]
    tokens = tokenizer(labels, padding="max_length", max_length=forms.LENGTH, truncation=True, return_tensors="pt")
    backbone: Any = load_backbone(str(tmp_path), device="cpu")
    assert torch.equal(backbone.tokenizer(labels), tokens["input_ids"])
    want = forms.pooled(model.get_text_features(input_ids=tokens["input_ids"]))
    close(backbone.model.encode_text(backbone.tokenizer(labels)), want)
