"""R8: a disk that is full is exit code 4 and one line with path and bytes; what was there stays, and nothing half."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from densevl.cli import app
from densevl.errors import OutputError
from tests.attacks.interfering import acting, changes, files_of_at_most, full_from
from tests.attacks.long_work import GROWING, NAMES, RUNS, Kind, content, make_photos

CUT = r"cannot write '.*' \([\d,]+ bytes\): File too large"
SIZES = (0, 1, 100)
"""Bytes that a file may have; a write is cut there."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos"))


def _whole_or_absent(out: Path, whole: dict[str, bytes], kind: Kind) -> None:
    for name, data in content(out).items():
        assert not Path(name).name.startswith(".densevl-")
        if not name.endswith(GROWING) and not name.startswith(kind.own):
            assert data == whole[name], name


@pytest.mark.parametrize("kind", RUNS.values(), ids=RUNS)
def test_no_disk_that_fills_up_costs_more_than_what_did_not_fit(kind: Kind, photos, tmp_path) -> None:
    moments = changes(tmp_path / "whole", lambda: kind.work(photos, tmp_path / "whole"))
    whole, refused = content(tmp_path / "whole"), 0
    for moment in range(moments):
        out = tmp_path / str(moment)
        told = _refusal(moment, kind, photos, out)
        if told:
            assert re.search(r"cannot write '.*'( \([\d,]+ bytes\))?: No space left on device$", told)
            _whole_or_absent(out, whole, kind)
            kind.work(photos, out)
        lists = [{name for name in files if not name.startswith(kind.own)} for files in (content(out), whole)]
        assert lists[0] == lists[1]
        _whole_or_absent(out, whole, kind)
        refused += bool(told)
    assert refused > 1


def _refusal(moment: int, kind: Kind, photos: Path, out: Path) -> str:
    """What is said of a disk that is full from the n-th change on, "" where the work needs nothing of it then."""
    try:
        with full_from(moment, out):
            kind.work(photos, out)
    except OutputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", RUNS.values(), ids=RUNS)
def test_a_write_that_is_cut_leaves_no_part(kind: Kind, photos, tmp_path) -> None:
    kind.work(photos, tmp_path / "whole")
    whole = content(tmp_path / "whole")
    for size in SIZES:
        out = tmp_path / str(size)
        with (
            pytest.raises(OutputError, match=r"cannot write '.*' \([\d,]+ bytes\): File too large"),
            files_of_at_most(size),
        ):
            kind.work(photos, out)
        _whole_or_absent(out, whole, kind)


MODEL = "--model mini"
GRID = f"{MODEL} --proposals grid"
WORDS = f"--labels cat,dog {MODEL}"
COMMANDS = {
    "segment": f"segment photos {WORDS} --out out",
    "regions": f"regions photos {WORDS} --proposals grid --as coco,labelme,png,npz --out out",
    "classify": f"classify photos {WORDS} --out out",
    "features": f"features photos {MODEL} --out out",
    "anomaly score": f"anomaly score photos {MODEL} --out out",
    "anomaly fit": f"anomaly fit photos/0.png photos/1.png {MODEL} --out out/detector",
    "search": f"search photos --for dog {GRID} --out out",
    "bank build": f"bank build photos {GRID} --out out",
    "fewshot fit": f"fewshot fit classes {MODEL} --out out/head",
    "eval run": f"eval run folder --root set {MODEL} --out out",
    "video": f"video clip.mp4 {WORDS} --out out",
}


@pytest.fixture(scope="module")
def inputs(photos, tmp_path_factory) -> Path:
    """A folder with something for each command."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "photos").symlink_to(photos)
    for name in NAMES:
        (folder / "classes" / name).mkdir(parents=True)
        (folder / "classes" / name / "0.png").write_bytes((photos / f"{NAMES.index(name)}.png").read_bytes())
    RUNS["an evaluation"].work(photos, folder / "evaluated")  # makes its set
    return folder


def _movie(path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as movie:
        stream = movie.add_stream("libx264", rate=25)
        stream.width = stream.height = 32
        for shade in range(3):
            frame = np.full((32, 32, 3), 80 * shade, np.uint8)
            movie.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        movie.mux(stream.encode())


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_command_says_what_it_could_not_write(words: str, inputs, monkeypatch) -> None:
    monkeypatch.chdir(inputs)
    if "clip.mp4" in words:
        _movie(inputs / "clip.mp4")
    before = content(inputs)
    with files_of_at_most(16):
        done = CliRunner().invoke(app, words.split())
    said = done.stderr.splitlines()[-1]
    assert done.exit_code == 4, done.output
    assert re.match(r"error: cannot write '.*' \([\d,]+ bytes\): File too large", said), said
    assert {name: data for name, data in content(inputs).items() if not name.startswith("out/")} == before
    assert [name for name in content(inputs) if ".densevl-" in name] == []


STOPS = {
    "segment": ("segment photos {words} --out {out}", r"stopped; \d of 4 are done; the same command goes on from here"),
    "regions": (
        "regions photos {words} --proposals grid --out {out}",
        r"stopped; \d of 4 are done; the same command goes on from here",
    ),
    "anomaly score": (
        "anomaly score photos {model} --out {out}",
        r"stopped; \d of 4 are done; the same command goes on from here",
    ),
    "bank build": ("bank build photos {grid} --out {out}", "stopped; .*the same command goes on from here"),
    "search": (
        "search photos --for dog {grid} --out {out}",
        r"stopped; \d of 4 images are in it; the same command goes on from here",
    ),
    "eval run": (
        "eval run folder --root set {model} --out {out} --dump",
        r"stopped; \d of 3 images are counted; the same command goes on from here",
    ),
    "fewshot fit": ("fewshot fit classes {model} --out {out}/head", "stopped; the same command starts over"),
}


@pytest.mark.parametrize(("words", "told"), STOPS.values(), ids=STOPS)
def test_ctrl_c_says_what_is_done_and_how_to_go_on(words: str, told: str, inputs, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(inputs)
    words = words.format(words=WORDS, grid=GRID, model=MODEL, out=tmp_path / "out")
    pressed: list[str] = []

    def press(event: str, path: str) -> None:
        if event == "open" and not pressed and Path(path).name.startswith(".densevl-"):
            pressed.append(path)
            raise KeyboardInterrupt

    with acting(tmp_path, press):
        done = CliRunner().invoke(app, words.split())
    assert (done.exit_code, bool(pressed)) == (130, True), done.output
    assert re.search(told, done.stderr.splitlines()[-1]), done.stderr
    assert [name for name in content(tmp_path) if ".densevl-" in name] == []
    assert CliRunner().invoke(app, words.split()).exit_code in (0, 3)
