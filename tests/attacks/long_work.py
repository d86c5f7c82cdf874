"""Long work in small: each kind of run that goes on where it stopped, without a model where it needs none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from densevl import RegionClassifier, load_backbone, load_proxy
from densevl.evaluation import Experiment, run
from densevl.evaluation.predictors import Clock, Prediction
from densevl.files import atomic_write, atomic_write_all
from densevl.fitted import save as save_fitted
from densevl.images import find_images, read_image
from densevl.pipelines.folder.each import one_by_one
from densevl.pipelines.folder.gathered import Gathered
from densevl.pipelines.folder.loop import to_files
from densevl.pipelines.folder.tasks import SEGMENT, Task
from densevl.pipelines.regions.banking import BankBuilder
from densevl.pipelines.regions.search import RegionSearch
from densevl.proposals import Proposals

NAMES = ("cat", "dog")
GROWING = ("errors.jsonl", "densevl.json", "bank.json")
"""Lists that say something else at each moment; each is JSON whenever it is read."""


def make_photos(folder: Path) -> Path:
    """Three pictures and one that is cut."""
    for number in range(4):
        path = folder / ("deep" if number == 3 else "") / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    (folder / "2.png").write_bytes((folder / "1.png").read_bytes()[:50])
    return folder


class _Parts:
    """The least result of four files: what is done in a folder of results does not depend on what they hold."""

    def __init__(self, image: str) -> None:
        self.mean = float(read_image(image).mean())

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        told = json.dumps({"densevl": "1", "mean": self.mean}).encode()
        atomic_write_all({path.with_name(f"{path.stem}{end}"): told for end in SEGMENT.endings})


class _All(Gathered):
    """A file of all images, in a folder of its own."""

    file = "all/means.txt"

    def write(self, results: Any, jobs: Any) -> list[str]:
        return [results.store.renew(self.file, b"".join(results.store.read(f"{job.name}.json") for job in jobs))]


def _folder(photos: Path, out: Path) -> None:
    task = Task(SEGMENT, one_by_one(_Parts), {"model": "none"}, None)
    to_files(task, find_images(photos), out, together=[_All()])


def _archive(photos: Path, out: Path) -> None:
    task = Task(SEGMENT, one_by_one(_Parts), {"model": "none"}, None)
    to_files(task, find_images(photos), out / "results.tar")


def _index(photos: Path, out: Path) -> None:
    RegionSearch(classifier(), out / "index.npz").build(photos)


def bank(photos: Path, out: Path) -> None:
    BankBuilder(out, classifier(), proxy()).build(photos)


def _fitted(photos: Path, out: Path) -> None:
    save_fitted(out / "head", "densevl-test-1", {"means": torch.arange(6.0)}, {"names": NAMES})


@cache
def _mini() -> Any:
    return load_backbone("mini")


@cache
def proxy() -> Any:
    return load_proxy("mini-sam")


def classifier() -> RegionClassifier:
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
    "an archive": Kind(_archive),
    "an index": Kind(_index),
    "a bank": Kind(bank),
    "a fitted head": Kind(_fitted),
    "an evaluation": Kind(_evaluation, "state/"),
}


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
