"""R7: killed at any change of a file, and started again, a run leaves the files of one that was never stopped.

The kills here are in this process; `python -m tools.kills` does it with SIGKILL.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from densevl import RegionClassifier, load_backbone, load_proxy
from densevl.errors import OutputError
from densevl.evaluation import Experiment, run
from densevl.evaluation.predictors import Clock, Prediction
from densevl.files import Hold, atomic_write, atomic_write_all
from densevl.fitted import save as save_fitted
from densevl.images import find_images, read_image
from densevl.pipelines.folder.each import one_by_one
from densevl.pipelines.folder.gathered import Export, Sheet
from densevl.pipelines.folder.loop import to_files
from densevl.pipelines.folder.tasks import SEGMENT, Task
from densevl.pipelines.regions.banking import BankBuilder
from densevl.pipelines.regions.search import RegionSearch
from densevl.proposals import Proposals
from densevl.results import SegmentationResult
from tests.attacks.interfering import changes, killed_at

NAMES = ("cat", "dog")
GROWING = ("errors.jsonl", "densevl.json", "bank.json")
"""Lists that say something else at each moment; each is JSON whenever it is read."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Three pictures and one that is cut."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(4):
        path = folder / ("deep" if number == 3 else "") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    (folder / "2.png").write_bytes((folder / "1.png").read_bytes()[:50])
    return folder


def _segment(image: str) -> SegmentationResult:
    rgb = read_image(image)
    labels = (rgb[..., 0] % 2).astype(np.int16)
    return SegmentationResult(labels, NAMES, np.ones(labels.shape, np.float32), rgb, {"densevl": "1"})


def _folder(photos: Path, out: Path) -> None:
    task = Task(SEGMENT, one_by_one(_segment), {"model": "none"}, None)
    to_files(task, find_images(photos), out, together=[Sheet(SEGMENT.picture), Export("coco", NAMES)])


def _packed(photos: Path, out: Path) -> None:
    task = Task(SEGMENT, one_by_one(_segment), {"model": "none"}, None)
    to_files(task, find_images(photos), out / "results.tar")


def _index(photos: Path, out: Path) -> None:
    RegionSearch(_classifier(), out / "index.npz").build(photos)


def _bank(photos: Path, out: Path) -> None:
    BankBuilder(out, _classifier(), _proxy()).build(photos)


def _fitted(photos: Path, out: Path) -> None:
    save_fitted(out / "head", "densevl-test-1", {"means": torch.arange(6.0)}, {"names": NAMES})


@cache
def _mini() -> Any:
    return load_backbone("mini")


@cache
def _proxy() -> Any:
    return load_proxy("mini-sam")


def _classifier() -> RegionClassifier:
    return RegionClassifier(_mini(), "pool", proposals=_halves)


def _halves(rgb: np.ndarray) -> Proposals:
    return Proposals.from_boxes([[0, 0, 16, 32], [16, 0, 32, 32]], rgb.shape[:2])


class _Brightness:
    """Predicts from the pixels alone."""

    def __init__(self) -> None:
        self.clock, self.count = Clock(), 0

    def facts(self) -> dict[str, str]:
        return {"model": "dummy", "recipe": "none"}

    def __call__(self, rgb: np.ndarray) -> Prediction:
        self.count += 1
        return Prediction((rgb[..., 0] % 2).astype(np.int16), rgb[..., 1].astype(np.float32) / 255)


def _evaluation(photos: Path, out: Path) -> None:
    root = out.parent / "set"
    if not root.exists():
        for kind in ("images", "labels"):
            (root / kind).mkdir(parents=True)
        (root / "names.txt").write_text("\n".join(NAMES))
        for number in range(3):
            picture = np.random.default_rng(number).integers(0, 255, (12, 16, 3), np.uint8)
            Image.fromarray(picture).save(root / f"images/{number}.png")
            Image.fromarray(picture[..., 0] // 128).save(root / f"labels/{number}.png")
    predictor = _Brightness()
    found = run(
        Experiment(dataset="folder", root=str(root), measures=("iou",)),
        out,
        predictor=predictor,
        save_every=0,
        dump=out / "predictions",
    )
    counts = {name: array.tolist() for name, array in found.counts.items()}
    atomic_write(out / "counts.json", json.dumps([found.resumed + found.images, counts]).encode())
    assert predictor.count == found.images


@dataclass(frozen=True)
class Kind:
    """A kind of run, and names of files that are its own at each start."""

    work: Callable[[Path, Path], None]
    own: str = "."


RUNS = {
    "a folder": Kind(_folder),
    "an archive": Kind(_packed),
    "an index": Kind(_index),
    "a bank": Kind(_bank),
    "a fitted head": Kind(_fitted),
    "an evaluation": Kind(_evaluation, "state/"),
}


def _content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", RUNS.values(), ids=RUNS)
def test_a_kill_at_any_moment_leaves_no_trace(kind: Kind, photos, tmp_path) -> None:
    def work(name: str) -> Callable[[], None]:
        return lambda: kind.work(photos, tmp_path / name)

    moments = changes(tmp_path / "whole", work("whole"))
    whole = {name: data for name, data in _content(tmp_path / "whole").items() if not name.startswith(kind.own)}
    assert moments > 1
    for moment in range(moments):
        out = tmp_path / str(moment)
        killed_at(moment, out, work(str(moment)))
        for name, data in _content(out).items():
            if Path(name).name.startswith(".densevl-"):
                continue
            if name.endswith(GROWING):
                [json.loads(row) for row in (data.splitlines() if name.endswith("l") else [data])]
            elif name.endswith(".npz"):
                assert np.load(io.BytesIO(data)).files
            else:
                assert data == whole.get(name, data), (moment, name)
        work(str(moment))()
        end = _content(out)
        assert [name for name in end if Path(name).name.startswith(".densevl-")] == [], moment
        assert {name: data for name, data in end.items() if not name.startswith(kind.own)} == whole, moment


# Two at once ---------------------------------------------------------------------------------------------------------


def test_files_of_two_writers_are_one_or_the_other(tmp_path) -> None:
    other = b"b" * 50_000

    def pieces():
        yield b"a" * 10_000
        atomic_write(tmp_path / "cached", other)  # another process, meanwhile
        assert (tmp_path / "cached").read_bytes() == other
        yield b"a" * 10_000

    atomic_write(tmp_path / "cached", pieces())
    assert _content(tmp_path) == {"cached": b"a" * 20_000}


def test_what_was_left_of_a_file_is_taken_over_and_links_are_not_followed(tmp_path) -> None:
    places = {tmp_path / "x.png": b"new", tmp_path / "x.json": b"{}"}
    killed_at(0, tmp_path, lambda: atomic_write_all(places))
    killed_at(1, tmp_path, lambda: atomic_write_all(places))
    left = set(_content(tmp_path))
    assert left
    atomic_write_all(places)
    assert _content(tmp_path) == {"x.png": b"new", "x.json": b"{}"}
    (tmp_path / "theirs").write_bytes(b"theirs")
    for name in left:
        (tmp_path / name).symlink_to(tmp_path / "theirs")
    atomic_write_all(places)
    assert (tmp_path / "theirs").read_bytes() == b"theirs"


def test_two_builds_of_one_bank_are_refused_and_a_later_one_knows_of_the_other(photos, tmp_path) -> None:
    early = BankBuilder(tmp_path / "bank", _classifier(), _proxy())
    _bank(photos / "deep", tmp_path / "bank")
    late = BankBuilder(tmp_path / "bank", _classifier(), _proxy())
    _bank(photos / "0.png", tmp_path / "bank")
    with Hold(tmp_path / "bank") as other:
        other.take()
        for builder in (early, late):
            with pytest.raises(OutputError, match="another run is writing"):
                builder.build(photos / "1.png")
    assert len(late.build(photos / "1.png").added) == 1
    assert late.bank is not None
    assert len(late.bank.photos) == 3
