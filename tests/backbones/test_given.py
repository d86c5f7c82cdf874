"""What a caller says of a model's weights: from the command line to results, run states and fitted files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from conftest import TINY, random_clip
from densevl import AnomalyDetector, load_backbone
from densevl.cli import app
from densevl.errors import OptionError, WeightsError
from densevl.fitted import fingerprint
from densevl.weights.facts import CALLER
from densevl.weights.given import given_in, loaded_as

SAID = ("--activation", "gelu", "--mean", "0.5", "--std", "0.25,0.5,0.75")


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder whose config says QuickGELU and CLIP's own pixels."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(dict(random_clip().state_dict()), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    return str(folder)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    Image.new("RGB", (40, 40), "red").save(tmp_path / "x.png")
    return str(tmp_path / "x.png")


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def _commands(command: Any) -> list[Any]:
    inner = getattr(command, "commands", None)
    return [command] if inner is None else [found for own in inner.values() for found in _commands(own)]


def test_every_command_that_loads_a_model_can_be_told() -> None:
    for command in _commands(typer.main.get_command(app)):
        flags = {flag for parameter in command.params for flag in parameter.opts}
        if flags & {"--model", "--weights"}:
            assert flags >= {"--activation", "--mean", "--std"}, command.name


def test_what_is_said_is_in_the_result_and_a_run_goes_on_with_the_same_only(model, photo, tmp_path) -> None:
    words = ["segment", photo, "--labels", "a,b", "--model", model, "--out", str(tmp_path / "out"), "--json"]
    assert run(*words, *SAID).exit_code == 0
    meta = json.loads((tmp_path / "out" / "x.json").read_text())
    reading = meta.get("reading") or meta["meta"]["reading"]
    assert reading["image_activation"] == reading["text_activation"] == ["gelu", CALLER]
    assert reading["mean"] == [[0.5, 0.5, 0.5], CALLER]
    assert reading["std"] == [[0.25, 0.5, 0.75], CALLER]
    other = run(*words)
    assert other.exit_code == 4  # that folder cannot be written to
    assert "reading.image_activation" in other.stderr
    assert other.stderr.strip().count("\n") == 0
    assert run(*words, *SAID).exit_code == 0


def test_within_a_block_all_models_are_loaded_so_and_after_it_none(model) -> None:
    plain = load_backbone(model)
    with loaded_as("gelu"), loaded_as(mean=[0.5] * 3):
        said = load_backbone(model)
        assert load_backbone(model, mean=[0.25] * 3).mean == (0.25,) * 3
    assert said.reading["image_activation"][0] == "gelu"
    assert said.mean == (0.5,) * 3
    assert load_backbone(model).reading == plain.reading
    assert given_in(plain.reading) == {}
    with loaded_as(**given_in(said.reading)):  # as a worker on another machine does
        assert load_backbone(model).reading == said.reading
    with pytest.raises(OptionError), loaded_as("relu"):
        pass


def test_what_was_fitted_with_another_activation_or_pixels_is_refused(model, photo, tmp_path) -> None:
    prints = {fingerprint(load_backbone(model, **said)) for said in ({}, {"activation": "gelu"}, {"mean": [0.5] * 3})}
    assert len(prints) == 3
    AnomalyDetector(load_backbone(model, activation="gelu"), "patchcore").fit([photo]).save(tmp_path / "fit")
    with pytest.raises(WeightsError, match="another activation, mean or std"):
        AnomalyDetector.load(tmp_path / "fit", load_backbone(model))
    with loaded_as("gelu"):
        AnomalyDetector.load(tmp_path / "fit", load_backbone(model))


def test_models_of_their_own_facts_say_so(photo, tmp_path) -> None:
    done = run("segment", photo, "--labels", "a", "--model", "mini", "--out", str(tmp_path / "o"), "--mean", "0.5")
    assert done.exit_code == 2
    assert "leave them out" in done.stderr
