"""A TOML file of defaults: what it may say, and that what it may not say is one line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from densevl.cli import app
from densevl.results import SegmentationResult

SCENE = str(Path(__file__).parents[1] / "demo" / "scenes" / "wood.png")


@pytest.fixture
def told(tmp_path):
    def run(text: str | bytes, *args: str):
        path = tmp_path / "c.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return CliRunner().invoke(app, ["--config", str(path), *args])

    return run


def test_options_come_from_the_file_and_the_command_line_wins(told, tmp_path) -> None:
    words = 'model = "mini"\nlabels = ["penguin", "家"]\nshort-side = 96\nsheet = true\n'
    text = f'[segment]\n{words}out = "{tmp_path / "o"}"\n'
    assert told(text, "segment", SCENE).exit_code == 0
    assert (tmp_path / "o" / "contact_sheet.jpg").exists()
    found = SegmentationResult.load(tmp_path / "o" / "wood.json")
    assert found.names == ("penguin", "家")
    assert found.meta["protocol"]["short_side"] == 96
    assert told(text, "segment", SCENE, "--labels", "cactus", "--out", str(tmp_path / "p")).exit_code == 0
    assert SegmentationResult.load(tmp_path / "p" / "wood.json").names == ("cactus",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[segment]\nrecepe = "x"', r"no option 'recepe' \(closest: recipe"),
        ("[segment]\nimages = 1", "no option 'images'"),
        ("[segment]\nhelp = true", "no option 'help'"),
        ("[segmnt]", r"no command 'segmnt' \(closest: segment\)"),
        ('model = "mini"', r"'model' is an option outside .* put it under \[segment\], "),
        ('model_nosuch = "mini"', "no command 'model_nosuch'"),
        ("segment = 1", "'segment' is a command"),
        ("[segment]\nsheet = 1", "it must be true or false"),
        ("[segment]\nmodel = true", "it must be a string or a number"),
        ("[segment]\nmodel = 2026-01-01", "it must be a string or a number"),
        ("[segment]\nlabels = []", "it must be a string or a number"),
        ('[segment]\nlabels = [["a"]]', "it must be a string or a number"),
        ('[segment]\nlabels = " "', "it is empty"),
        ("[segment]\nshort_side = [1, 2]", "it takes one value"),
        ('[segment]\nshort_side = "x"', "short-side.*the file of --config"),
        ("[segment]\nshort_side = 0", "short-side.*the file of --config"),
        ("x = [[", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
    ],
)
def test_what_a_file_must_not_say_is_one_line(told, text, said) -> None:
    done = told(text, "segment", SCENE, *([] if "labels" in str(text) else ["--labels", "penguin"]))
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert re.search(said, done.stderr), done.stderr


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        (
            '[classify]\nmodel = "mini"',
            ["segment", "absent.png", "--labels", "dog"],
            "note: .*c.toml' has no \\[segment\\]$",
        ),
        (
            '[classify]\nlabels = "cat"',
            ["classify", SCENE, "--head", "x"],
            r"leave --labels out \(it is set in .*c.toml'\)",
        ),
        (
            '[segment]\nlabels = "cat"',
            ["segment", SCENE, "--head", "x"],
            r"leave --labels out \(it is set in .*c.toml'\)",
        ),
        ("[segment]\nsheet = true", ["segment", SCENE, "--head", "x", "--labels", "cat"], "leave --labels out$"),
    ],
)
def test_what_a_file_lacks_or_says_against_an_option_names_the_file(told, text, words, said) -> None:
    done = told(text, *words)
    assert done.exit_code == 2
    assert re.search(said, done.stderr, re.MULTILINE), done.stderr
    assert "has no" in done.stderr or len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("path", ["absent.toml", ".", "", "\0"])
def test_a_file_that_cannot_be_read_is_one_line(path) -> None:
    done = CliRunner().invoke(app, ["--config", path, "models"])
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)


def test_a_file_in_the_folder_that_nobody_named_decides_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("densevl.toml", ".densevl.toml", "config.toml"):
        Path(name).write_text("[nonsense]")
    assert CliRunner().invoke(app, ["models"]).exit_code == 0
