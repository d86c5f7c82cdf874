"""A first look at a dataset, before a model is loaded: contradictions are errors, oddities are warnings.

It reads the headers of up to `HEADERS` images and label files, and label maps until they add up to `PIXELS` pixels. The
random order is fixed, so a dataset looks the same every time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import DatasetError
from densevl.evaluation.benchmarks.anomaly import AnomalyDataset, mask_numbers
from densevl.evaluation.benchmarks.base import Dataset
from densevl.evaluation.benchmarks.coco import CocoDataset
from densevl.evaluation.benchmarks.label_rules import IGNORE, SIZE
from densevl.evaluation.benchmarks.own import USUAL
from densevl.evaluation.benchmarks.semantic import SemanticDataset, SingleClassItem
from densevl.files import shown
from densevl.images import header
from densevl.images.pixels import QUARTER_TURNS

HEADERS, PIXELS = 2000, 2**24
LISTED = 8
"""The most names in one sentence."""


@dataclass(frozen=True)
class Look:
    """The result of a first look.

    Attributes:
        text: what was read and what labels mean, in a sentence.
        warnings: oddities of the files; of_sample: of the labels that were read; a full run's counts replace these.
        facts: the same for results.json.
    """

    text: str
    warnings: tuple[str, ...] = ()
    of_sample: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def look(dataset: Dataset) -> Look:
    """Look at a dataset.

    Raises:
        DatasetError: files are missing or of other sizes, or labels cannot mean what the rules say.
        ImageError: a file cannot be read.
    """
    order = [dataset.items[index] for index in np.random.default_rng(0).permutation(len(dataset))]
    warnings = [*dataset.warnings, *_files(dataset, order[:HEADERS])]
    if isinstance(dataset, SemanticDataset):
        return _semantic(dataset, order, warnings)
    if isinstance(dataset, AnomalyDataset):
        return _anomaly(dataset, order, warnings)
    text = f"{_amount(len(dataset), 'image')}, {len(dataset.names)} classes from {_source(dataset)}"
    return Look(text, tuple(warnings), facts={"images": len(dataset)})


def _source(dataset: Dataset) -> str:
    return dataset.listing.name if isinstance(dataset, CocoDataset) else dataset.classes.source


def _files(dataset: Dataset, items: Sequence[Any]) -> list[str]:
    """Refuse missing files and differing sizes; report images turned by an EXIF tag."""
    images = [item for item in items if not item.image.exists()]
    if images:
        first = f"the first is {shown(images[0].image)}"
        raise DatasetError(f"{len(images)} of {_amount(len(items), 'image')} are missing, {first}")
    labelled = [item for item in items if item.label is not None]
    bare = [item for item in labelled if not item.label.exists()]
    if bare:
        raise DatasetError(
            f"{len(bare)} of {_amount(len(items), 'image')} have no labels, the first is {shown(bare[0].image)} "
            f"({shown(bare[0].label)} was looked for{_near(bare[0].label)}): add them, or move these images away"
        )
    turned, stored, odd = 0, 0, []
    for item in labelled:
        picture = header(item.image)
        turned += picture.turn != 1
        if isinstance(dataset, CocoDataset):
            listed_size = (int(item.entry["height"]), int(item.entry["width"]))
            size = picture.size[::-1] if picture.turn in QUARTER_TURNS else picture.size
            odd += [(item, listed_size, size)] if listed_size != size else []
            continue
        as_stored = picture.turn != 1 and dataset.labels_as_stored(item)
        stored += as_stored
        size = picture.size[::-1] if picture.turn in QUARTER_TURNS and not as_stored else picture.size
        if (own := header(item.label).size) != size:
            odd.append((item, own, size))
    if odd:
        item, own, size = odd[0]
        first = shown(item.label) if dataset.has_maps else f"that of '{item.key}'"
        kind = "label maps" if dataset.has_maps else "sizes of the listing"
        side = turned and own == size[::-1]
        hint = f" ({shown(item.image)} is turned by its EXIF tag; store it upright)" if side else ""
        raise DatasetError(
            f"{len(odd)} of {len(labelled)} {kind} differ from their image, the first is "
            f"{first}, {own[1]}x{own[0]} for {size[1]}x{size[0]}: labels are never resized, give them at the image's "
            f"size{hint}"
        )
    return [*_turned(dataset, turned, stored)]


def _near(label: Path) -> str:
    """A label map whose name begins like a missing one, such as x_mask.png."""
    stem = label.stem
    for mark in ("_leftImg8bit", "_sat", "_image", "_img"):
        stem = stem.removesuffix(mark)
    found = next(iter(sorted(label.parent.glob(f"{escape(stem)}[-_. ]*"))), None)
    return f"; {found.name} is there: label maps have the names of their images" if found else ""


def _turned(dataset: Dataset, turned: int, stored: int) -> list[str]:
    if not turned:
        return []
    beginning = f"{_amount(turned, 'image')} {'is' if turned == 1 else 'are'} turned by EXIF tags: "
    if not dataset.has_maps:
        return [beginning + "labels are taken to be those of the turned picture"]
    if stored == turned:
        why = "" if dataset.exif != "auto" else ", as their sizes say"
        return [f"{beginning}labels are those of the pixels as stored{why}, and are turned with them"]
    but = f"labels of {stored} are of the pixels as stored, and turned with them, those of others" * bool(stored)
    but = but or "labels"
    say = "" if dataset.exif != "auto" else "; if they are of the pixels as stored, say exif=stored"
    return [f"{beginning}{but} are taken to be of the turned picture{say}"]


def _until(items: Sequence[Any], read: Callable[[Any], npt.NDArray[Any]]) -> int:
    """Read label maps until they add up to `PIXELS` pixels; return how many were read."""
    pixels = 0
    for number, item in enumerate(items, start=1):
        pixels += read(item).size
        if pixels >= PIXELS:
            return number
    return len(items)


def _semantic(dataset: SemanticDataset, order: Sequence[Any], warnings: list[str]) -> Look:
    classes = np.zeros(len(dataset.names) + 2, np.int64)  # the last two: outside all classes, not scored
    numbers: npt.NDArray[np.int64] = np.zeros(SIZE, np.int64)
    constant: set[int | None] = set()
    colours = dataset.own is not None and dataset.own.colours is not None

    def read(item: Any) -> npt.NDArray[Any]:
        stored = dataset.stored(item.label)
        truth = dataset.decided(item.label, stored)
        if isinstance(item, SingleClassItem):
            truth = np.where(truth > 0, np.int16(item.shows), truth)
        if not colours:
            numbers[:] += np.bincount(stored.ravel(), minlength=SIZE)
        constant.add(int(stored[0, 0]) if (stored == stored[0, 0]).all() else None)
        found = np.bincount(truth.ravel().astype(np.int64) + 1, minlength=len(classes))
        classes[:] += np.roll(found, -1)
        return stored

    seen = _until(order, read)
    everything = seen == len(order)
    of = f"all {_amount(seen, 'label map')}" if everything else f"a sample of {seen} of {len(order)} label maps"
    ignored = classes[-1] / max(1, int(classes.sum()))
    absent = [name for name, pixels in zip(dataset.names, classes, strict=False) if not pixels]
    own = dataset.own
    if own is not None and not own.said and len(dataset.names) > 1:
        there = set(np.flatnonzero(numbers).tolist())
        if not colours and len(there) > 1 and there <= {0, *USUAL} and dataset.table[max(there)] == IGNORE:
            most = max(there)
            raise DatasetError(
                f"{of} hold only {' and '.join(map(str, sorted(there)))}, and {most} is not scored: nothing but "
                f"'{dataset.names[0]}' is left. If {most} is a class, give its number (\"ids\": [0, {most}] in "
                f"dataset.json); if it is not scored, say so (--ignore {most})"
            )
    if everything and not classes[:-1].any():
        raise DatasetError(f"every pixel of {of} of '{dataset.name}' is ignored: there is nothing to measure")
    oddities = odd_labels(dataset, ignored, absent, everything) if everything or ignored > 0.5 else []
    if everything and None not in constant and len(order) > 1 and len(constant) == 1 < len(dataset.names):
        oddities.append(f"each of {of} holds nothing but {constant.pop()}: are these label maps?")
    meaning = f"; {own.text}" if own is not None else ""
    facts = {
        "images": len(order),
        "label maps read": seen,
        "ignored": float(ignored),
        "classes that occur nowhere": absent,
        **({"labels": own.text} if own is not None else {}),
    }
    text = f"{_amount(len(order), 'image')}; {of} read, {ignored:.0%} of their pixels ignored{meaning}"
    return Look(text, tuple(warnings), tuple(oddities), facts)


def odd_labels(dataset: SemanticDataset, ignored: float, absent: Sequence[str], everything: bool) -> list[str]:
    """The oddities of the labels that were counted: a large ignored share, and classes that do not occur.

    Args:
        everything: whether all labels were counted.
    """
    own, names = dataset.own is not None, dataset.names
    rule = f"; {dataset.own.text}" if dataset.own is not None else f"; {dataset.note}" if dataset.note else ""
    stored = f"are labels stored as '{dataset.name}' has them{rule}?"
    if ignored and len(names) - len(absent) == 1 < len(names):
        only = next(name for name in names if name not in absent)
        return [f"all that the truth scores is '{only}', and {ignored:.0%} of its pixels are ignored: {stored}"]
    found = []
    if ignored > (0.5 if own else 0.9):
        found.append(f"{ignored:.0%} of the pixels of the truth are ignored: {stored}")
    if own and everything and absent and not dataset.cut:
        found.append(
            f"{len(absent)} of {len(names)} classes occur nowhere in the truth: {listed(absent)}; where one is found "
            "it counts as IoU 0, otherwise it is left out of means"
        )
    return found


def listed(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:LISTED]) + ", ..." * (len(names) > LISTED)


def _anomaly(dataset: AnomalyDataset, order: Sequence[Any], warnings: list[str]) -> Look:
    blank: list[Path] = []
    soft: list[Path] = []
    none: list[Path] = []
    damaged = [item for item in order if item.damaged and item.label is not None]

    def read(item: Any) -> npt.NDArray[Any]:
        numbers = mask_numbers(item)
        limit = item.above if numbers.max() > 1 else 0
        if not numbers.any():
            blank.append(item.label)
        elif not (numbers > limit).any():
            none.append(item.label)
        elif limit and len(np.unique(numbers)) > 2:
            soft.append(item.label)
        return numbers

    seen = _until(damaged, read)
    of = f"{_amount(seen, 'mask')} of damaged images read" if seen < len(damaged) else "all masks read"
    if none:
        raise DatasetError(
            f"{len(none)} masks hold nothing over the limit of {damaged[0].above} above which a pixel is damaged, the "
            f"first is {shown(none[0])}: write damage as 255, or as 1"
        )
    kinds = {name: {item.damaged for item in dataset.items if item.category == name} for name in dataset.names}
    one = [name for name, found in kinds.items() if len(found) == 1]
    if not (dataset.cut or any(True in found for found in kinds.values())):
        raise DatasetError(
            f"no test image of {listed(one)} is damaged, so nothing can be ranked: put damaged ones into "
            "CATEGORY/test/DEFECT, with masks in CATEGORY/ground_truth/DEFECT"
        )
    for name in one if not dataset.cut else ():
        lacks = "no flawless" if True in kinds[name] else "no damaged"
        warnings.append(f"'{name}' has {lacks} test image: its measures of images are n/a")
    for paths, what in (
        (blank, "masks of damaged images mark nothing, and these images count as flawless"),
        (soft, f"masks have soft values: those over {order[0].above or 127} count as damaged"),
    ):
        if paths:
            warnings.append(f"{len(paths)} {what}; the first is {shown(paths[0])}")
    if blank and len(blank) == len(damaged):
        raise DatasetError(f"no mask of a damaged image marks anything, {shown(blank[0])} first: there is no damage")
    amount = f"{_amount(len(order), 'test image')}, {len(damaged)} of them damaged; {of}"
    return Look(amount, tuple(warnings), facts={"images": len(order), "damaged": len(damaged), "masks read": seen})


def _amount(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
