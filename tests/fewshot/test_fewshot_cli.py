"""`densevl classify` and `densevl fewshot fit`, from examples in folders to files."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from conftest import PHOTOS
from densevl.cli import app
from densevl.fewshot.result import Classification

SCENE = PHOTOS.parent / "scenes" / "wood.png"
THINGS = {"penguin": (18, 122, 75, 184), "mushroom": (105, 101, 159, 157), "aeroplane": (30, 8, 72, 50)}


def call(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [*map(str, words)])
    return done.exit_code, " ".join(done.stdout.split()), " ".join(done.stderr.split())


@pytest.fixture
def folder(tmp_path):
    """One folder a class, with its thing cut out three ways."""
    with Image.open(SCENE) as scene:
        for name, box in THINGS.items():
            (tmp_path / "classes" / name).mkdir(parents=True)
            for number in range(3):
                part = scene.crop((box[0] - number, box[1], box[2], box[3] - number))
                part.save(tmp_path / "classes" / name / f"{number}.png")
    return tmp_path / "classes"


def test_words_alone_name_whole_images(folder, tmp_path) -> None:
    out = tmp_path / "out"
    code, said, _ = call(
        "classify", folder, "--labels", "penguin,mushroom,aeroplane", "--model", "mini", "--out", out, "--sheet"
    )
    assert code == 0
    assert said.count("penguin") >= 3
    assert (out / "contact_sheet.png").is_file()
    for name in THINGS:
        for number in range(3):
            result = Classification.load(out / name / f"{number}.json")
            assert result.name == name
            assert "seconds" not in result.meta
            assert (out / name / f"{number}_overlay.png").is_file()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert call("classify", folder, "--labels", "penguin,mushroom,aeroplane", "--model", "mini", "--out", out)[0] == 0
    assert {path: path.read_bytes() for path in before} == before, "a second run does nothing"


def test_what_was_learned_from_folders_names_others(folder, tmp_path) -> None:
    head = tmp_path / "things"
    given = ("--model", "mini", "--head", "exemplars", "--calibrate", "0.3", "--out", head)
    code, said, _ = call("fewshot", "fit", folder, *given)
    assert (code, "3 classes" in said) == (0, True)
    code, said, _ = call("classify", folder / "penguin", "--head", head, "--out", tmp_path / "out", "--json")
    assert code == 0
    *rows, last = [
        json.loads(line)
        for line in CliRunner()
        .invoke(
            app, ["classify", str(folder / "penguin"), "--head", str(head), "--out", str(tmp_path / "out"), "--json"]
        )
        .stdout.splitlines()
    ]
    assert [row["name"] for row in rows] == ["penguin"] * 3
    assert last["summary"]["classes"] == {"penguin": {"images": 3}}
    assert all("penguin" in row["plausible"] for row in rows)
    code, _, told = call("fewshot", "fit", folder, *given[:2], "--calibrate", "0.1", "--out", tmp_path / "gda")
    assert (code, "take 'exemplars'" in told) == (2, True)
    code, _, _ = call(
        "fewshot", "fit", folder, *given[:2], "--calibrate", "0.3", "--held-out", folder, "--out", tmp_path / "gda"
    )
    assert code == 0


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--head", "x", "--labels", "cat"], "leave --labels"),
        ([], "no labels"),
        (["--labels", "cat,dog", "--model", "photo"], "is no CLIP"),
    ],
)
def test_what_does_not_go_together_is_one_line(words, match) -> None:
    code, _, told = call("classify", SCENE, *words)
    assert code == 2
    assert match in told
    code, _, told = call("fewshot", "fit", PHOTOS, "--held-out", PHOTOS)
    assert (code, "give --calibrate too" in told) == (2, True)
