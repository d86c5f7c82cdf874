"""`densevl models`: what is checked says where facts come from, and what is converted is equal and sure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from conftest import random_clip
from densevl import load_backbone
from densevl.backbones.managing import convert, get, listed
from densevl.cli import app
from densevl.errors import DensevlError, ModelError, OptionError, OutputError
from densevl.weights import large

FACTS = {"activation": "quick_gelu", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["models", *words])


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of a plain ViT, which does not say its activation."""
    path = tmp_path / "own.safetensors"
    save_file({key: value.contiguous() for key, value in random_clip().state_dict().items()}, path)
    return path


def test_what_is_given_goes_before_a_guess_and_is_no_guess(weights: Path) -> None:
    guess = load_backbone("auto", weights, device="cpu")
    assert "does not say its activation" in guess.guesses[0]
    told = load_backbone("auto", weights, device="cpu", **FACTS)
    assert all("attention heads" in text for text in told.guesses)
    assert told.reading["image_activation"] == ["quick_gelu", "given by the caller"]
    assert (told.mean, told.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    pixels = torch.randn(1, 3, 32, 32)
    assert not torch.equal(told.encode_image(pixels), guess.encode_image(pixels))


@pytest.mark.parametrize(
    "wrong",
    [
        {"activation": "relu"},
        {"mean": [0.5]},
        {"mean": 0.5},
        {"mean": [0.5, 0.5, float("nan")]},
        {"mean": [123.7, 116.3, 103.5]},
        {"std": [0.0, 0.1, 0.1]},
        {"std": "abc"},
    ],
)
def test_no_activation_and_no_colours(weights: Path, wrong) -> None:
    with pytest.raises(OptionError, match=r"it is one of|it must be three numbers (of 0 to 1|above 0 and up to 1)"):
        load_backbone("auto", weights, device="cpu", **wrong)


def test_a_model_that_says_its_facts_takes_no_others() -> None:
    with pytest.raises(ModelError, match="has activation"):
        load_backbone("mini", device="cpu", activation="gelu")


def test_what_is_converted_reads_back_equal_and_without_a_guess(weights: Path, tmp_path: Path) -> None:
    told = load_backbone("auto", weights, device="cpu", **FACTS)
    written = convert(told, tmp_path / "out")
    assert {path.name for path in written} == {"open_clip_config.json", "open_clip_model.safetensors"}
    again = load_backbone(f"local-dir:{tmp_path / 'out'}", device="cpu")
    pixels = torch.randn(1, 3, 32, 32)
    assert torch.equal(again.encode_image(pixels), told.encode_image(pixels))
    assert torch.equal(again.encode_text(["a dog"]), told.encode_text(["a dog"]))
    assert (again.mean, again.std, again.guesses) == (told.mean, told.std, ())
    assert again.reading["image_activation"] == ["quick_gelu", "open_clip_config.json"]


def test_open_clip_reads_what_is_converted(weights: Path, tmp_path: Path) -> None:
    import open_clip

    told = load_backbone("auto", weights, device="cpu", **FACTS)
    convert(told, tmp_path / "out")
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'out'}")
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert float((model.encode_image(pixels) - told.encode_image(pixels)).abs().max()) < 1e-6
    assert model.visual.image_mean == pytest.approx((0.5, 0.4, 0.3))


def test_the_commands_check_and_convert(weights: Path, tmp_path: Path) -> None:
    guessed = run("check", str(weights))
    assert guessed.exit_code == 1
    assert "a guess" in guessed.output
    done = run("convert", str(weights), str(tmp_path / "out"), "--activation", "gelu", "--mean", "0.5", "--std", "0.5")
    assert done.exit_code == 0, done.output
    sure = run("check", str(tmp_path / "out"), "--json")
    assert sure.exit_code == 0, sure.output
    facts = json.loads(sure.stdout)
    assert facts["mean"] == [[0.5, 0.5, 0.5], "open_clip_config.json"]
    assert facts["image_parameters"] > 1000
    assert facts["warnings"] == []
    assert run("convert", str(weights), str(tmp_path / "out")).exit_code == 0  # over a result of its own
    (tmp_path / "out" / "vocab.txt").write_text("of another model")
    refused = run("convert", str(weights), str(tmp_path / "out")).output
    assert "was not written by densevl" in refused
    assert "name another folder" in refused
    assert run("convert", "mini", str(tmp_path / "new")).exit_code == 2
    assert not any((tmp_path / "new").iterdir())


def test_a_model_whose_numbers_overflow_is_told(weights: Path) -> None:
    state = {key: value * 1e30 for key, value in random_clip().state_dict().items()} | {"logit_scale": torch.ones(())}
    save_file(state, weights)
    checked = run("check", str(weights))
    assert checked.exit_code == 2
    assert "NaN or infinite" in checked.output


def test_the_list_has_every_published_weight() -> None:
    import open_clip

    assert len(listed()) == len(open_clip.list_pretrained()) + len(large.PUBLISHED)
    assert [row.name for row in listed("vit-b-16/o*")] == ["ViT-B-16/openai"]
    assert run("list", "ViT-H-14-378").output.count("\n") == 3
    assert run("list", "nothing").exit_code == 2
    assert run("list").output == run().output


def test_what_is_shown_is_what_warnings_say() -> None:
    told = json.loads(run("show", "mini", "--json").stdout)
    assert "penguin" in told["knows"]["name"]
    assert (told["half_knows"], told["does_not_know"], told["made_for"]) == ([], [], "drawings")
    printed = run("show", "mini")
    assert printed.exit_code == 0
    assert "penguin" in printed.stdout
    row = json.loads(run("show", "ViT-B-16/openai", "--json").stdout)
    assert (row["activation"], row["size"], "knows" in row) == ("quick_gelu", 224, False)
    assert "mini-sam" in run("show", "mini-sam").stdout
    assert "closest: mini" in run("show", "minni").stderr


@pytest.mark.parametrize("name", ["mini", "./here", "a/b/c", "ViT-B-16", ""])
def test_what_is_no_name_of_the_hub_is_not_got(name) -> None:
    with pytest.raises(ModelError, match="is not a hub name"):
        get(name)


def test_words_of_another_text_side_take_the_place_of_its_own() -> None:
    from densevl import Segmenter

    own = load_backbone("mini", device="cpu")
    rows = own.encode_text(["pizza", "penguin"])
    other = own.with_words({"pizza": rows[0].tolist(), "penguin": rows[1].numpy()})
    assert torch.equal(other.encode_text(["penguin", "pizza"]), rows.flip(0))
    assert other.text_fingerprint != own.text_fingerprint
    photo = np.zeros((96, 96, 3), np.uint8)
    given = Segmenter(other)(photo, "pizza,penguin", background="none")
    plain = Segmenter(own, templates="name")(photo, "pizza,penguin", background="none")
    assert np.array_equal(given.labels, plain.labels)
    with pytest.raises(ModelError, match=r"no text vector of 'pizzas' was given \(closest: pizza\)"):
        other.encode_text(["pizzas"])


def test_what_is_converted_leaves_nothing_of_another_model(weights: Path, tmp_path: Path) -> None:
    plain = load_backbone("auto", weights, device="cpu", **FACTS)
    convert(plain.with_words({"cat": [1.0] * plain.embed_dim}), tmp_path)
    (tmp_path / "vocab.txt").write_text("of another model")
    convert(plain, tmp_path, overwrite=True)
    again = load_backbone(f"local-dir:{tmp_path}", device="cpu")
    assert torch.equal(again.encode_text(["dog"]), plain.encode_text(["dog"]))
    assert not (tmp_path / "vocab.txt").exists()
    with pytest.raises(OutputError, match="is one of the inputs"):
        convert(again, tmp_path, overwrite=True)


@pytest.mark.parametrize("out", ["", "x.pt", "model.safetensors"])
def test_a_model_is_written_to_a_folder_with_a_name(weights: Path, out: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert run("convert", str(weights), out).exit_code == 2
    assert run("get", "mini", "--to", out).exit_code == 2
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("words", [["cat"], 3, {"cat": "x"}, {"cat": None}])
def test_text_vectors_of_other_types_are_refused(weights: Path, words) -> None:
    with pytest.raises(DensevlError, match=r"words is a|not numbers"):
        load_backbone("auto", weights, device="cpu", words=words)


@pytest.mark.parametrize(
    "pixels", [{"mean": 0.5}, {"std": "x"}, {"mean": 0.5, "std": "x"}, {"std": [0, 0, 0]}, {"mean": [123.6, 116, 103]}]
)
def test_a_config_with_colours_of_no_pixels(weights: Path, tmp_path: Path, pixels) -> None:
    convert(load_backbone("auto", weights, device="cpu", **FACTS), tmp_path / "out")
    path = tmp_path / "out" / "open_clip_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "preprocess_cfg": pixels}))
    with pytest.raises(DensevlError, match="it must be three numbers"):
        load_backbone(f"local-dir:{tmp_path / 'out'}", device="cpu")


@pytest.mark.parametrize("rows", [{}, {"a": [1.0, 2.0]}, {"a": [float("nan")] * 128}, {"a": [0.0] * 128}])
def test_no_text_vectors(rows) -> None:
    own = load_backbone("mini", device="cpu")
    sized = {text: row * (own.embed_dim // 128) if len(row) > 2 else row for text, row in rows.items()}
    with pytest.raises(ModelError, match="text vector"):
        own.with_words(sized)


def test_a_folder_of_given_words_is_served(weights: Path, tmp_path: Path) -> None:
    from densevl.serving.models import Models
    from densevl.serving.settings import Settings

    plain = load_backbone("auto", weights, device="cpu", **FACTS)
    convert(plain.with_words({"cat": [1.0] * plain.embed_dim}), tmp_path / "out")
    models = Models(Settings(models=(f"local-dir:{tmp_path / 'out'}",), proposals=()), "cpu")
    assert len(models.backbones) == 1


def test_vectors_that_keep_their_width_are_not_cut(weights: Path) -> None:
    plain = load_backbone("auto", weights, device="cpu", **FACTS)
    whole = load_backbone("auto", weights, device="cpu", truncate_dim=plain.embed_dim, **FACTS)
    assert whole.guesses == plain.guesses
