"""CLIP-DINOiser's heads trained in seconds, on a tiny random tower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from conftest import random_clip, wrap
from densevl import Segmenter
from densevl.backbones.proxies import DinoiserHeads
from tools.dinoiser import Batch, affinity_loss, guessed_objects, losses, main, new_heads, objectness_loss, train


class Halves:
    """A teacher to which patches of one brightness are alike, on a grid of its own; picture by picture."""

    def from_clip(self, pixels: torch.Tensor, mean: object, std: object, kind: str) -> torch.Tensor:
        assert kind == "v"
        small = torch.nn.functional.adaptive_avg_pool2d(pixels.mean(dim=1, keepdim=True), 8)
        return torch.cat([small > 0, small <= 0], dim=1).float()


def batch(seed: int = 0) -> Batch:
    """Pictures of two shades, the lighter being the object; the border lies somewhere else in each."""
    rng = np.random.default_rng(seed)
    lighter = torch.zeros(4, 64, 64, dtype=torch.bool)
    for own in lighter:
        own[:, : 8 * int(rng.integers(2, 7))] = True
    noise = torch.from_numpy(rng.normal(0, 0.1, (4, 3, 64, 64))).float()
    return Batch(noise + (2.0 * lighter[:, None] - 1), lighter)


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


def test_the_affinity_loss_is_the_entropy_of_cosines_over_pairs() -> None:
    own, taught = torch.randn(2, 5, 2, 3), torch.randn(2, 4, 2, 3)
    terms = []
    for one, other in zip(own.double().flatten(2).numpy(), taught.double().flatten(2).numpy(), strict=True):
        for i in range(6):
            for j in range(6):
                cosine, wanted = (
                    row[:, i] @ row[:, j] / np.linalg.norm(row[:, i]) / np.linalg.norm(row[:, j])
                    for row in (one, other)
                )
                p = sigmoid(max(cosine, 0))
                terms.append(-np.log(p if wanted >= 0.1 else 1 - p))
    assert float(affinity_loss(own, taught, 0.1)) == pytest.approx(np.mean(terms), abs=1e-6)


def test_the_objectness_loss_counts_patches_of_which_half_is_object() -> None:
    logits, objects = torch.randn(1, 2, 2), torch.zeros(1, 4, 4, dtype=torch.bool)
    objects[0, :2, :1] = True  # half of the first patch
    objects[0, 2, 2] = True  # a quarter of the last
    wanted = [1, 0, 0, 0]
    terms = [-np.log(sigmoid(x if y else -x)) for x, y in zip(logits.flatten().tolist(), wanted, strict=True)]
    assert float(objectness_loss(logits, objects)) == pytest.approx(np.mean(terms), abs=1e-6)


def test_what_is_unlike_most_is_guessed_to_be_the_object() -> None:
    taught = torch.tensor([[1.0, 0.0]]).T[..., None].expand(2, 4, 4).clone()
    taught[:, 1, 1:3] = torch.tensor([0.1, 1.0])[:, None]
    found = guessed_objects(taught[None])[0]
    assert found.sum() == 2
    assert found[1, 1:3].all()


def test_both_losses_fall_and_the_file_is_one_that_the_recipe_takes(tmp_path: Path) -> None:
    model = wrap(random_clip())
    before = DinoiserHeads({key: value.detach() for key, value in new_heads(32, 0).items()})
    found = train(model, Halves(), batch, steps=30, rates={"obj_proj": 3e-3, "bkg_decoder": 0.1}, say=lambda line: None)
    file = tmp_path / "heads.safetensors"
    save_file(found, file)
    trained = DinoiserHeads.load(file)
    first, last = (losses(heads, model, Halves(), batch(1000)) for heads in (before, trained))
    assert all(float(new) < 0.95 * float(old) for old, new in zip(first, last, strict=True))
    settings = {"protocol": {"short_side": None, "crop": None}, "templates": "photo", "use_cache": False}
    segment = Segmenter(model, "dinoiser", proxy=str(file), background="foreground", **settings)
    photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    assert segment(photo, ["cat", "dog"]).labels.shape == (64, 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(2):
        picture = np.random.default_rng(number).integers(0, 255, (40, 48, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    return tmp_path


def test_the_command_trains_on_pictures_without_outlines(folder: Path, capsys) -> None:
    out = folder / "heads.safetensors"
    given = ["train", "--images", str(folder), "--out", str(out), "--steps", "2", "--batch", "2", "--side", "48"]
    assert main(given) == 0
    assert '"step": 2' in capsys.readouterr().out
    assert DinoiserHeads.found_in(out) is not None
    assert load_file(out)["bkg_decoder.weight"].shape[2:] == (1, 1)
    assert main(given) == 2  # it is there already


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--out", "x.pt"], "new .safetensors file"),
        (["--steps", "0"], "at least 1"),
        (["--floor", "2"], "at least -1 and at most 1"),
        (["--affinity-rate", "nan"], "above 0"),
        (["--proxy", "efficientnet-lite0"], "efficientnet-lite0"),
        (["--side", "50"], "the model's patch"),
        (["--seed", "900000"], "belongs to the benchmark"),
        (["--model", "absent"], "absent"),
        (["--proxy", "absent"], "absent"),
    ],
)
def test_mistakes_are_told_in_a_line(more: list[str], said: str, tmp_path: Path, capsys) -> None:
    assert main(["train", "--out", str(tmp_path / "heads.safetensors"), *more]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_heads_to_evaluate_that_are_none_are_a_mistake(tmp_path: Path, capsys) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert main(["evaluate", str(tmp_path / "x.safetensors")]) == 2
    assert "heads lack obj_proj.weight" in capsys.readouterr().err
    heads = tmp_path / "heads.safetensors"
    save_file({key: value.detach() for key, value in new_heads(128, 0).items()}, heads)
    for more, said in ((["--images", "0"], "at least 2"), (["--proxy", "efficientnet-lite0"], "efficientnet-lite0")):
        assert main(["evaluate", str(heads), *more]) == 2
        assert said in capsys.readouterr().err
