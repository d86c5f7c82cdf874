"""Labelling many images, on one machine or on a Ray cluster, by the same command.

Images are cut into shards. A shard is done when its table is written, whole or not at all, so a run that is started
again does only what is missing; a bad file is a row of the table and stops nothing. Nothing but paths travels between
machines, which all see the same folders.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from densevl import digest
from densevl.errors import EvaluationError, ImageError, MissingExtraError
from densevl.files import atomic_write, shown, unique_stems
from densevl.images import EXTENSIONS
from densevl.pipelines.segmentation.segmenter import Segmenter

SHARD = 64
TABLES, SETTINGS, ROWS, ERRORS = "shards", "labelling.json", "labels.csv", "errors.csv"
COLUMNS = ("image", "labels", "error")
Segment = Callable[..., Any]
Row = dict[str, str]


@dataclass(frozen=True)
class Labelling:
    """How images are labelled; plain data that travels to other machines.

    Attributes:
        labels: as `LabelSet.parse` takes strings; out: folder of results, on a disk that all machines see.
        model, weights, recipe, background: as `Segmenter` takes them. threads: torch threads of each worker.
    """

    labels: tuple[str, ...]
    out: str
    model: str = "auto"
    weights: str | None = None
    recipe: str | None = None
    background: str = "auto"
    threads: int | None = None

    def segmenter(self) -> Segmenter:
        """Load the model."""
        if self.threads:
            torch.set_num_threads(self.threads)
        return Segmenter(self.model, self.recipe, weights=self.weights, background=self.background)

    @property
    def fingerprint(self) -> str:
        """Changes with what decides the labels."""
        facts = {key: value for key, value in asdict(self).items() if key not in {"out", "threads"}}
        return digest.of_text(json.dumps(facts, sort_keys=True))[:16]


@dataclass(frozen=True)
class Shard:
    """Attributes: number; pairs of image and the label PNG it becomes, relative to the out folder."""

    number: int
    pairs: tuple[tuple[str, str], ...]


def find_images(source: str | Path) -> list[tuple[str, str]]:
    """Images and the names of their label maps.

    Args:
        source: a folder, taken with all below it, its tree mirrored; or a text file with a path a line.

    Raises:
        ImageError: nothing there.
    """
    place = Path(source)
    if place.is_dir():
        paths = sorted(p for p in place.rglob("*") if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))
        stems = [path.relative_to(place).with_suffix("").as_posix() for path in paths]
        times = Counter(stems)  # a.jpg and a.png in one folder keep their endings
        pairs = zip(paths, stems, strict=True)
        names = [stem if times[stem] == 1 else path.relative_to(place).as_posix() for path, stem in pairs]
    elif place.is_file():
        paths = [Path(line.strip()) for line in place.read_text(encoding="utf-8").splitlines() if line.strip()]
        names = unique_stems(paths)
    else:
        raise ImageError(f"{shown(place)} is neither a folder of images nor a list of paths")
    if not paths:
        raise ImageError(f"no images in {shown(place)}: files must end in {' '.join(sorted(EXTENSIONS))}")
    return [(str(path), f"{name}.png") for path, name in zip(paths, names, strict=True)]


def shards(pairs: Sequence[tuple[str, str]], size: int = SHARD) -> list[Shard]:
    """Cut into shards of `size` images, in order.

    Raises:
        EvaluationError: a size under 1.
    """
    if size < 1:
        raise EvaluationError(f"shards of {size} images: give 1 or more")
    return [Shard(first // size, tuple(pairs[first : first + size])) for first in range(0, len(pairs), size)]


def label_shard(segment: Segment, work: Labelling, shard: Shard) -> list[Row]:
    """Label the images of a shard, write its maps and, last, its table.

    Raises:
        DensevlError: what is wrong with the whole run; a bad image is a row.
    """
    rows = []
    for image, name in shard.pairs:
        try:
            segment(image, list(work.labels)).save(Path(work.out) / name, overlay=False)
            rows.append({"image": image, "labels": name, "error": ""})
        except ImageError as error:
            rows.append({"image": image, "labels": "", "error": str(error)})
    atomic_write(_table(work, shard.number), (json.dumps(rows) + "\n").encode())
    return rows


def label(
    work: Labelling,
    source: str | Path,
    *,
    size: int = SHARD,
    ray: str | None = None,
    workers: int = 1,
    show: Callable[[int, int], None] | None = None,
    segment: Segment | None = None,
) -> tuple[int, int]:
    """Label every image of a source that is not labelled yet.

    Args:
        work: how; source: as `find_images` takes it; size: images a shard.
        ray: None works in this process; "local" starts Ray here; else the address of a cluster, such as "auto".
        workers: Ray workers, each with the model loaded once.
        show: told images done and images in all.
        segment: a loaded segmenter, for work in this process.

    Returns:
        How many images are labelled, and how many could not be; labels.csv and errors.csv list them.

    Raises:
        ImageError: no images. EvaluationError: the folder holds another labelling. MissingExtraError: Ray is not there.
    """
    if Path(source).is_dir() and Path(work.out).resolve().is_relative_to(Path(source).resolve()):
        raise EvaluationError(f"{shown(work.out)} lies inside {shown(source)}: results would be taken for images")
    pairs = find_images(source)
    parts = shards(pairs, size)
    _claim(work, parts)
    waiting = [part for part in parts if not _table(work, part.number).exists()]
    done = len(pairs) - sum(len(part.pairs) for part in waiting)
    if waiting:
        reports = _here(work, waiting, segment) if ray is None else _on_ray(work, waiting, ray, workers)
        for count in reports:
            done += count
            if show is not None:
                show(done, len(pairs))
    rows = [row for part in parts for row in json.loads(_table(work, part.number).read_text(encoding="utf-8"))]
    bad = [row for row in rows if row["error"]]
    atomic_write(Path(work.out) / ROWS, _csv(row for row in rows if not row["error"]))
    atomic_write(Path(work.out) / ERRORS, _csv(bad))
    return len(rows) - len(bad), len(bad)


def _here(work: Labelling, waiting: Sequence[Shard], segment: Segment | None) -> Iterator[int]:
    segment = segment or work.segmenter()
    for shard in waiting:
        yield len(label_shard(segment, work, shard))


class _Worker:
    """An actor of Ray Data: loads the model once; a row in is a shard, a row out its number of images."""

    def __init__(self, work: Labelling) -> None:
        self.work, self.segment = work, work.segmenter()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        pairs = tuple((image, name) for image, name in json.loads(row["pairs"]))
        return {"images": len(label_shard(self.segment, self.work, Shard(int(row["number"]), pairs)))}


def _on_ray(work: Labelling, waiting: Sequence[Shard], address: str, workers: int) -> Iterator[int]:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError("ray", "ray", "labelling on several machines") from error
    if not ray.is_initialized():
        ray.init(None if address == "local" else address, log_to_driver=False)
    rows = [{"number": shard.number, "pairs": json.dumps(shard.pairs)} for shard in waiting]
    # One shard is one block: shards are handed out as workers become free, and only paths are held in memory.
    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    worker: Any = _Worker
    done = data.map(worker, fn_constructor_args=(work,), compute=ray.data.ActorPoolStrategy(size=workers))
    for row in done.iter_rows():
        yield int(row["images"])


def _claim(work: Labelling, parts: Sequence[Shard]) -> None:
    """Write what is labelled and how, or check that it is the same.

    Raises:
        EvaluationError: the folder was labelled otherwise.
    """
    text = json.dumps([[part.number, part.pairs] for part in parts])
    images = digest.of_text(text)[:16]
    path = Path(work.out) / SETTINGS
    facts = {**asdict(work), "labels": list(work.labels), "fingerprint": work.fingerprint, "images": images}
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            same = (before["fingerprint"], before["images"]) == (work.fingerprint, images)
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{shown(path)} is damaged; remove the folder or name another") from error
        if not same:
            raise EvaluationError(
                f"{shown(work.out)} holds another labelling (images, labels, model or shard size differ); "
                "name a new folder"
            )
    atomic_write(path, (json.dumps(facts, indent=1) + "\n").encode())


def _table(work: Labelling, number: int) -> Path:
    return Path(work.out) / TABLES / f"{number:06d}.json"


def _csv(rows: Iterable[Row]) -> bytes:
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()
