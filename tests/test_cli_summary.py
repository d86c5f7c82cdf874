"""The end of a run over many images: shares, failures by cause, the slowest; for people and for programs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from densevl.cli import app
from densevl.cli.images import Pace
from densevl.pipelines.folder import each
from densevl.pipelines.folder.loop import Folder
from densevl.pipelines.folder.summary import Summary
from densevl.pipelines.folder.tasks import SEGMENT, Segmenting, Task
from densevl.results import SegmentationResult

SCENES = Path(__file__).parents[1] / "demo" / "scenes"
runner = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two scenes and three files that are no pictures, for two reasons."""
    place = tmp_path_factory.mktemp("photos")
    for name in ("snow.png", "wood.png"):
        shutil.copy(SCENES / name, place)
    for name in ("bad.png", "it's bad.png"):
        (place / name).write_text("no picture")
    (place / "cut.png").write_bytes((SCENES / "wood.png").read_bytes()[:3000])
    return place


def segment(folder: Path, out: Path, *more: str, **env: str):
    command = ["segment", str(folder), "--labels", "penguin,dog", "--model", "mini", "--out", str(out), *more]
    return runner.invoke(app, command, env=env)


def test_the_last_line_of_json_is_the_summary(folder: Path, tmp_path: Path) -> None:
    done = segment(folder, tmp_path / "o", "--json")
    *rows, last = map(json.loads, done.stdout.splitlines())
    told = last["summary"]
    assert done.exit_code == 3
    assert len(rows) == 5
    assert (told["images"], told["done"], told["computed"], told["failed"]) == (5, 2, 2, 3)
    maps = [np.array(Image.open(tmp_path / "o" / name)) for name in ("snow.png", "wood.png")]
    for number, name in enumerate(("penguin", "dog")):
        shares = [float((labels == number).mean()) for labels in maps]
        row = told["classes"].get(name, {"images": 0, "share": 0.0})
        assert row["images"] == sum(share > 0 for share in shares)
        assert row["share"] == pytest.approx(np.mean(shares))
    assert [row["images"] for row in told["failures"]] == [2, 1]
    assert "bad" not in told["failures"][0]["cause"]
    assert Path(told["slowest"]["image"]).name in ("snow.png", "wood.png")
    assert told["results"] == [str(tmp_path / "o")]

    again = json.loads(segment(folder, tmp_path / "o", "--json").stdout.splitlines()[-1])["summary"]
    assert (again["done"], again["computed"], again["slowest"]) == (2, 0, None)
    assert again["classes"] == told["classes"]


def test_a_terminal_shows_the_table_and_a_pipe_does_not(folder: Path, tmp_path: Path) -> None:
    piped = segment(folder, tmp_path / "o", "--overwrite")
    assert "share of pixels" not in piped.output
    shown = segment(folder, tmp_path / "o", "--overwrite", FORCE_COLOR="1", NO_COLOR="1")
    assert "share of pixels" in shown.stderr
    assert "2 failed:" in shown.stderr
    assert "slowest: " in shown.stderr
    assert "share of pixels" not in shown.stdout
    quiet = segment(folder, tmp_path / "o", "--overwrite", "--quiet", FORCE_COLOR="1", NO_COLOR="1")
    assert "share of pixels" not in quiet.stderr


@pytest.mark.parametrize("more", [(), ("--strict",)])
def test_the_only_image_that_is_bad_is_said_once_and_told_to_programs(folder: Path, tmp_path: Path, more) -> None:
    done = segment(folder / "bad.png", tmp_path / "o", "--json", *more)
    row, last = map(json.loads, done.stdout.splitlines())
    assert done.exit_code == 2
    assert done.stderr.count("error:") == 1
    assert "not an image" in row["error"]
    assert last["summary"]["failed"] == 1


KINDS = {
    "label maps": (
        [{"fractions": {"dog": 0.5, "nothing": 0.5}}, {"fractions": {"dog": 0.0, "nothing": 1.0}}],
        {"dog": {"images": 1, "share": 0.25}, "nothing": {"images": 2, "share": 0.75}},
    ),
    "regions": (
        [{"regions": [{"category_name": "dog"}, {"category_name": "dog"}, {}]}, {"regions": []}],
        {"dog": {"images": 1, "regions": 2}},
    ),
    "anomalies": (
        [{"is_anomalous": True}, {"is_anomalous": False}, {"is_anomalous": None}, {"is_anomalous": True}],
        {"anomalous": {"images": 2}, "scored": {"images": 1}, "sound": {"images": 1}},
    ),
    "whole images": ([{"name": "dog"}, {"name": None}], {"dog": {"images": 1}}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_use_is_counted_by_what_it_finds(kind: str) -> None:
    contents, expected = KINDS[kind]
    summary = Summary()
    for number, content in enumerate(contents):
        summary.add(f"{number}.png", content, seconds=1 + number % 2)
    told = summary.facts(len(contents), len(contents), 2.5, ["out"])
    assert told["classes"] == expected
    assert told["slowest"] == {"image": "1.png", "seconds": 2}


def test_the_time_left_leaves_out_the_first_image_and_old_ones() -> None:
    now = [0.0]
    pace = Pace(clock=lambda: now[0])
    now[0] = 60.0  # the model warms up
    pace.tick()
    assert pace.text(9) == ""
    now[0] = 62.0
    pace.tick()
    assert pace.text(8) == "2.0 s/image  0:00:16 left"
    for _ in range(30):
        now[0] += 0.5
        pace.tick()
    assert pace.text(120) == "2.0 images/s  0:01:00 left"


@pytest.mark.parametrize("command", ["recipes", "recipes show sclip", "models", "doctor", "eval list"])
def test_lists_are_lines_of_json(command: str) -> None:
    done = runner.invoke(app, [*command.split(), "--json"])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == 0
    assert rows
    assert all(isinstance(row, dict) for row in rows)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    place = tmp_path / "photos"
    place.mkdir()
    for number in range(4):
        Image.new("RGB", (96, 96), (number * 60,) * 3).save(place / f"{number}.png")
    return place


def test_ctrl_c_tells_all_that_was_written_and_a_summary(photos: Path, tmp_path: Path, monkeypatch) -> None:
    whole = each.read_image

    def stops(image: str) -> SegmentationResult:
        if image.endswith("2.png"):
            raise KeyboardInterrupt
        return SegmentationResult(
            np.zeros((96, 96), np.int16), ("penguin", "dog"), np.ones((96, 96), np.float32), image=whole(image)
        )

    monkeypatch.setattr(
        Segmenting, "task", lambda *_: Task(SEGMENT, each.one_by_one(stops), {}, SimpleNamespace(backbone=None))
    )
    done = segment(photos, tmp_path / "o", "--json", "--quiet")
    *rows, last = map(json.loads, done.stdout.splitlines())
    assert done.exit_code == 130
    assert [Path(row["image"]).name for row in rows] == ["0.png", "1.png"]
    assert all(Path(output).exists() for row in rows for output in row["outputs"])
    assert last["summary"]["interrupted"] is True
    assert (last["summary"]["done"], last["summary"]["images"]) == (2, 4)


def test_a_folder_of_results_that_becomes_a_file_is_named(photos: Path, tmp_path: Path, monkeypatch) -> None:
    whole, out = Folder.content, tmp_path / "o"

    def replaced(self, job):
        if out.is_dir():
            out.rename(tmp_path / "before")
            out.touch()
        return whole(self, job)

    monkeypatch.setattr(Folder, "content", replaced)
    done = segment(photos, out, "--json")
    assert done.exit_code == 4
    assert f"'{out}' is a file, not a folder" in done.stderr


@pytest.mark.parametrize("at", ["typer", "densevl.cli.shared", "densevl.pipelines.folder.loop"])
def test_ctrl_c_during_imports_is_one_line(at: str, photos: Path, tmp_path: Path) -> None:
    code = f"""
import sys
class Stops:
    def find_spec(self, name, *more):
        if name == {at!r}:
            exec("raise KeyboardInterrupt")  # as dataclasses do, after which Python dies by the signal
sys.meta_path.insert(0, Stops())
sys.argv[1:] = ["segment", {str(photos)!r}, "--labels", "a", "--model", "mini", "--out", {str(tmp_path / "o")!r}]
from densevl.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr.count("\n")) == (130, 1)
    assert done.stderr.startswith("error: stopped")


@pytest.mark.parametrize("name", ["nope.png", "", "/dev/stdin"])
def test_the_only_image_is_looked_at_before_the_model_is_loaded(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Segmenting, "task", lambda *_: pytest.fail("the model is loaded"))
    command = ["segment", name, "--labels", "a", "--model", "mini", "--out", str(tmp_path / "o"), "--json"]
    done = runner.invoke(app, command)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "o").exists()
    if name:
        row, last = map(json.loads, done.stdout.splitlines())
        assert row["image"] == name
        assert row["error"] in done.stderr
        assert (last["summary"]["failed"], last["summary"]["done"]) == (1, 0)
