"""Runs that are stopped and go on, and folders that hold files of somebody else."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from case import Case, Ran, cases, run
from PIL import Image

from densevl import LabelSet
from densevl.files import Hold
from densevl.vocabulary.text_classifier import TextClassifier

DEMO = Path(__file__).parents[2] / "demo"
SCENE, TILE = DEMO / "scenes/wood.png", DEMO / "surfaces/tiles_sound.png"
FAST = ("--model", "mini")


def _photos(folder: Path) -> Path:
    (folder / "photos").mkdir()
    for name in ("a", "b"):
        shutil.copy(SCENE, folder / f"photos/{name}.png")
    return folder / "photos"


def _kept(folder: Path, *commands: tuple[object, ...]) -> tuple[Ran, bool]:
    """The last command's run, and whether every file that lay there before it is as it was."""
    *before, last = commands
    for command in before:
        assert run(*command).code == 0
    lay = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = run(*last)
    return done, all(path.read_bytes() == content for path, content in lay.items())


def _refused_and_kept(pattern: str, code: int = 4):
    return lambda got: got[0].code == code and pattern in " ".join(got[0].warnings) and got[1]


def _cups(folder: Path) -> Path:
    """A folder of two pictures with truth, for `eval run folder`."""
    for name, content in (("images", np.full((48, 48, 3), 90)), ("labels", np.arange(48)[:, None].repeat(48, 1) // 24)):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(content.astype(np.uint8)).save(folder / name / f"{number}.png")
    (folder / "names.txt").write_text("penguin\npizza\n")
    return folder


def _resumed_with_another_recipe(folder: Path) -> Ran:
    root, out = _cups(folder / "cups"), folder / "out"
    command = ("eval", "run", "folder", "--root", root, "--model", "mini", "--out", out)
    assert run(*command, "--limit", 1).code == 0
    return run(*command, "--limit", 1, "--recipe", "naclip")


def _while_another_writes(folder: Path, *command: object, place: str = "") -> Ran:
    with Hold(folder / "out" / place) as hold:
        hold.take()
        return run(*command, "--out", folder / "out")


TABLE = (
    Case(
        "two runs on one folder at once",
        "the same command in two terminals",
        lambda folder: _while_another_writes(folder, "segment", SCENE, "--labels", "penguin", *FAST),
        right=lambda done: done.code == 4 and "another run is writing to" in done.warnings[-1],
    ),
    Case(
        "two evaluations on one folder at once",
        "the same command in two terminals",
        lambda folder: _while_another_writes(
            folder, "eval", "run", "folder", "--root", _cups(folder / "cups"), *FAST, place="state"
        ),
        right=lambda done: done.code == 4 and "another run is writing to" in done.warnings[-1],
    ),
    Case(
        "one figure for two methods",
        "a run that is started again with another setting",
        _resumed_with_another_recipe,
        right=lambda done: done.code == 2 and "counts of another experiment: recipe" in done.warnings[-1],
    ),
    Case(
        "a photo replaced by its overlay",
        "results into the folder of the photos",
        lambda folder: _kept(
            folder, ("segment", _photos(folder) / "a.png", "--labels", "penguin", *FAST, "--out", folder / "photos")
        ),
        right=lambda got: got[1],
    ),
    Case(
        "a folder of photos taken for a place of results",
        "results into the folder that is read",
        lambda folder: _kept(
            folder, ("segment", _photos(folder), "--labels", "penguin", *FAST, "--out", folder / "photos")
        ),
        right=_refused_and_kept("would be taken for its images", 4),
    ),
    Case(
        "files of another command replaced",
        "two commands into one folder",
        lambda folder: _kept(
            folder,
            ("segment", SCENE, "--labels", "penguin", *FAST, "--out", folder / "out"),
            ("classify", SCENE, "--labels", "penguin,pizza", *FAST, "--out", folder / "out"),
        ),
        right=_refused_and_kept("", 4),
    ),
    Case(
        "files of the user replaced that have the name of a result",
        "results into a folder of one's own",
        lambda folder: _kept(
            folder,
            ("segment", _own(folder), "--labels", "penguin", *FAST, "--out", folder / "own"),
        ),
        right=_refused_and_kept("", 4),
    ),
)


def _own(folder: Path) -> Path:
    (folder / "own").mkdir()
    (folder / "own/a.json").write_text(json.dumps("mine"))
    return _photos(folder) / "a.png"


@cases(*TABLE)
def test_nothing_is_mixed_or_lost(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)


@pytest.mark.parametrize("damage", ["a flipped bit", "zeros", "another vector"])
def test_a_damaged_text_cache_is_encoded_anew(damage: str, tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DENSEVL_CACHE", str(tmp_path))
    labels = LabelSet.parse("cat,dog,bird")
    want = TextClassifier(tiny, "photo").encode(labels).vectors
    with sqlite3.connect(tmp_path / "text.sqlite") as cache:
        rows = cache.execute("SELECT key, vector FROM embedding").fetchall()
        for (key, vector), (_, other) in zip(rows, rows[1:] + rows[:1], strict=True):
            bad = bytearray(vector)
            bad[7] ^= 64  # in the exponent of the second number
            new = {"a flipped bit": bytes(bad), "zeros": bytes(len(vector)), "another vector": other}[damage]
            cache.execute("UPDATE embedding SET vector = ? WHERE key = ?", (new, key))
    assert torch.equal(TextClassifier(tiny, "photo").encode(labels).vectors, want)
