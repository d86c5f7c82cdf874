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


def test_pixel_statistics_of_a_config_of_open_clip_are_checked_too(tmp_path: Path) -> None:
    load = forms.ROWS["tower"].make(tmp_path).load
    for pixels in ({"std": [0, 0, 0]}, {"mean": 0.5, "std": "x"}, {"mean": [123, 116, 103]}):
        edit(tmp_path / "open_clip_config.json", lambda told, pixels=pixels: told.update(preprocess_cfg=pixels))
        with pytest.raises(ModelError, match="for pixels of 0 to 1"):
            load_backbone(**load, device="cpu")


# Files without a config -----------------------------------------------------------------------------------------------


def test_what_is_guessed_of_a_file_is_the_usual_of_its_form_and_each_guess_is_named(tmp_path: Path) -> None:
    model = forms.scaled(forms.clip_of(transformers))
    torch.save(model.state_dict(), tmp_path / "x.pt")
    pixels = torch.randn(1, 3, SIDE, SIDE)
    backbone = load_backbone("auto", tmp_path / "x.pt", device="cpu")
    assert backbone.reading["image_activation"][0] == "quick_gelu"
    assert "config.json" not in str(backbone.reading["interpolation"])
    assert [text.split(":")[0].split("its ")[1] for text in backbone.guesses] == ["activation", "pixel statistics"]
    given = load_backbone("auto", tmp_path / "x.pt", activation="gelu", device="cpu")
    assert len(given.guesses) == 1
    assert "does not say its pixel statistics: taken CLIP's own" in given.guesses[0]
    assert (given.encode_image(pixels) - backbone.encode_image(pixels)).abs().max() > 1e-4
