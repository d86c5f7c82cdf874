"""The segmentation benchmarks, Pascal VOC, Context, COCO, Cityscapes and ADE150 among them: where each lies, how its
labels are read, its classes and its size, as data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import DatasetError
from densevl.evaluation.benchmarks.base import SEMANTIC, Benchmark, Dataset, Item, label_file, same_size
from densevl.evaluation.benchmarks.class_lists import BACKGROUND, ClassList, class_list
from densevl.evaluation.benchmarks.label_rules import (
    CITYSCAPES_RAW,
    COCO_OBJECT_KEEP_IGNORE,
    COCO_OBJECT_RAW,
    COCO_STUFF_RAW,
    ILLEGAL,
    SIZE,
    Table,
    identity,
    mapped,
    mmseg_default255,
    shifted,
)
from densevl.evaluation.benchmarks.layouts import ANY_IMAGE, Layout
from densevl.files import shown
from densevl.images import read_labels
from densevl.vocabulary import LabelSet

Rule = Callable[[int], Table]
"""From the number of classes to the table of what stored numbers mean."""
Rules = Mapping[str, Rule]
"""Rules by the ending of label files, "" for any."""
WIDE_IGNORE = 65535


@dataclass(frozen=True)
class SingleClassItem(Item):
    """Attributes: shows: index of the one class that is in the image; its mask only says where."""

    shows: int = 0


@dataclass(frozen=True, eq=False)
class SemanticDataset(Dataset):
    """Images with label maps.

    Attributes:
        table: int32 (65536,), the class index of each stored number; see `label_rules`.
    """

    table: Table = field(kw_only=True, repr=False)

    def truth(self, item: Any, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
        """The label map by the benchmark's rule: int16 (H, W), class index, -1 where not scored.

        Raises:
            DatasetError: missing, of another size, or numbers outside the rule. ImageError: unreadable.
        """
        label = label_file(item)
        raw = read_labels(label)
        if raw.min() < 0 or raw.max() >= SIZE:
            raise DatasetError(f"{shown(label)} holds {raw.min()} to {raw.max()}: label ids are 0 to {SIZE - 1}")
        truth = self.table.astype(np.int16).take(raw) if raw.size > SIZE else self.table.take(raw).astype(np.int16)
        if truth.min() == ILLEGAL:  # the least number there is
            wrong = truth == ILLEGAL
            known = np.flatnonzero(self.table >= 0)
            raise DatasetError(
                f"{shown(label)} holds label {raw[wrong][0]} at {int(wrong.sum())} pixels: '{self.name}' has "
                f"{len(self.names)} classes, stored as {known.min()} to {known.max()}"
                + "; names.json may give other ids, and numbers to ignore"
                * self.classes.source.startswith("names.")
            )
        same_size(label, truth, image)
        return np.where(truth > 0, np.int16(item.shows), truth) if isinstance(item, SingleClassItem) else truth


def _benchmark(
    name: str,
    folder: str,
    layout: Layout,
    expected: int | None,
    rules: Rules | Callable[[Path], Rules],
    *,
    classes: Callable[[Path], ClassList] | None = None,
    items: Callable[[Path], list[Item]] | None = None,
    variants: Mapping[str, Rules] | None = None,
    note: str = "",
) -> Benchmark:
    """A benchmark of label maps.

    Args:
        rules: how label files are read, at a root where that decides.
        classes: the class list at a root; None is the shipped one.
        items: images and label files, where a listing of the dataset says more than the layout.
        variants: rules by which others score it.
    """

    def opens(benchmark: Benchmark, root: Path, variant: str) -> Dataset:
        known = classes(root) if classes is not None else class_list(name)
        files = tuple((items or layout.items)(root))
        usual = rules(root) if callable(rules) else rules
        chosen = (variants or {})[variant] if variant else usual
        rule = chosen[""] if "" in chosen else chosen[layout.label_end(root)]
        told = _lonely(layout, root, files) if classes is _own_classes else ()
        return SemanticDataset(benchmark, root, known, files, variant, table=rule(len(known.all_names)), warnings=told)

    marks = (layout.images,)
    return Benchmark(name, SEMANTIC, folder, layout.files, marks, opens, expected, note, tuple(variants or {}))


def _lonely(layout: Layout, root: Path, items: Sequence[Item]) -> tuple[str, ...]:
    """Of a folder of the user's own: that some labels have no image, which may be of a kind that is not read."""
    found = layout.lonely(root, items)
    more = f"labels without an image that can be read: {len(found)}, the first is {shown(found[0])}" if found else ""
    return (more,) if more else ()


def _table(table: Table) -> Rule:
    return lambda count: table


def _voc(name: str, rule: Rule) -> Benchmark:
    layout = Layout("JPEGImages", "SegmentationClass", listing="ImageSets/Segmentation/val.txt")
    return _benchmark(name, "VOCdevkit/VOC2012", layout, 1449, {"": rule})


def _context(name: str, rule: Rule) -> Benchmark:
    layout = Layout("JPEGImages", "SegmentationClassContext", listing="ImageSets/SegmentationContext/val.txt")
    return _benchmark(name, "VOCdevkit/VOC2010", layout, None, {"": rule})


def _coco(name: str, end: str, raw: Table, variants: Mapping[str, Table] | None = None) -> Benchmark:
    layout = Layout("images/val2017", "annotations/val2017", label_ends=(end, ".png"))
    others = {own: {end: identity, ".png": _table(table)} for own, table in (variants or {}).items()}
    return _benchmark(name, "coco_stuff164k", layout, 5000, {end: identity, ".png": _table(raw)}, variants=others)


def _wide(name: str, folder: str, layout: Layout, expected: int | None) -> Benchmark:
    """Benchmarks of more than 255 classes, 16-bit labels with 65535 for none."""
    rules = {"": partial(identity, ignore=(WIDE_IGNORE,))}
    variants = {"mmseg-default255": {"": mmseg_default255}}
    return _benchmark(name, folder, layout, expected, rules, variants=variants, note="labels of 65535 are not scored")


def _own(name: str, folder: str, layout: Layout, expected: int | None, note: str) -> Benchmark:
    """A folder with images/, labels/ and a list of names."""
    return _benchmark(name, folder, layout, expected, _own_rules, classes=_own_classes, note=note)


def _own_classes(root: Path) -> ClassList:
    """Classes of a folder of the user's own.

    Raises:
        DatasetError: there are none.
    """
    path, data = _names_file(root)
    names = data["names"]
    background = names[0] == BACKGROUND
    asked = LabelSet.parse(names[background:])  # "car | truck" are two strings for one class
    strings = {"own@1": {name: list(words) for name, words in zip(asked.names, asked.synonyms, strict=True)}}
    return ClassList("folder", asked.names, background, strings, source=path.name)


def _own_rules(root: Path) -> Rules:
    """What the numbers of a folder's labels mean: in order the classes, unless its names.json says which.

    Raises:
        DatasetError: numbers that cannot be.
    """
    path, data = _names_file(root)

    def rule(count: int) -> Table:
        stored, ignored = data.get("ids", list(range(count))), data.get("ignore", [])
        numbers = [*stored, *ignored] if isinstance(stored, list) and isinstance(ignored, list) else [None]
        valid = all(type(number) is int and 0 <= number < SIZE for number in numbers)
        if not valid or len(set(numbers)) < len(numbers):
            raise DatasetError(
                f"{shown(path)}: 'ids' and 'ignore' are lists of whole numbers from 0 to {SIZE - 1}, none of them twice"
            )
        if len(stored) != count:
            raise DatasetError(f"{shown(path)} has {count} classes and {len(stored)} ids; give each class its own")
        usual = {255, WIDE_IGNORE}.difference(stored)
        return mapped({number: index for index, number in enumerate(stored)}, usual.union(ignored))

    return {"": rule}


def _names_file(root: Path) -> tuple[Path, dict[str, Any]]:
    """names.txt, a class a line; or names.json: a list of classes, or "names" and what is stored for them, "ids", and
    for pixels that are not scored, "ignore"; or the renderer's.

    Raises:
        DatasetError: there is none, or it holds no classes.
    """
    for path in (root / "names.txt", root / "names.json", root.parent / "names.json"):
        if path.exists():
            break
    else:
        raise DatasetError(f"{shown(root / 'names.txt')} is missing: write a class a line, in the order of label ids")
    if path.suffix == ".txt":
        data: Any = _names_in(_text(path))
    else:
        data = _json(path)
        if isinstance(data, dict) and data and all(key.isdecimal() for key in data):  # such as id2label
            data = _by_id((int(key), name) for key, name in data.items())
        data = data if isinstance(data, dict) else {"names": data}
    names = data.get("names", data.get("nouns"))
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DatasetError(f"{shown(path)} lists no classes: write a class a line, in the order of label ids")
    return path, {**data, "names": names}


def _names_in(text: str) -> dict[str, Any]:
    """The classes of a text, a line each; where every line begins with a number, that is what labels store for it."""
    lines = [line for raw in text.splitlines() if (line := raw.strip()) and not line.startswith("#")]
    numbered = [re.fullmatch(r"(\d+)\s*[\s:,;=]\s*(\S.*)", line) for line in lines]
    if len(lines) > 2 and numbered[0] is None and all(numbered[1:]):  # a row of headings
        numbered = numbered[1:]
    found = [match for match in numbered if match is not None]
    if not found or len(found) < len(numbered):
        return {"names": lines}
    return _by_id((int(match[1]), match[2]) for match in found)


def _by_id(classes: Iterable[tuple[int, Any]]) -> dict[str, Any]:
    """Stored numbers and names, in the order of the numbers, so that a background of 0 comes first."""
    ordered = sorted(classes, key=lambda pair: pair[0])
    return {"names": [name for _, name in ordered], "ids": [number for number, _ in ordered]}


def _ovcamo_classes(root: Path) -> ClassList:
    data = _json(root / "class_info.json")
    return ClassList("ovcamo", tuple(entry["name"] for entry in data if entry["split"] == "test"), True)


def _ovcamo_items(root: Path) -> list[Item]:
    """Images of the classes of the test split: the listing says what is in an image, its mask says where."""
    names = _ovcamo_classes(root).all_names
    items: list[Item] = []
    for entry in _json(root / "sample_info.json"):
        kind = entry["base_class"]
        if kind in names[1:]:
            image, mask = (
                root / "test" / part / (entry["unique_id"] + Path(entry[part]).suffix) for part in ("image", "mask")
            )
            items.append(SingleClassItem(f"{kind}/{entry['unique_id']}", image, mask, names.index(kind)))
    return sorted(items, key=lambda item: item.key)


def _text(path: Path) -> str:
    """Raises:
    DatasetError: missing, or no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DatasetError(f"{shown(path)} cannot be read: {error}") from error


def _json(path: Path) -> Any:
    """Raises:
    DatasetError: missing, or no JSON.
    """
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{shown(path)} cannot be read as JSON: {error}") from error


_CITY_LABELS = ("_gtFine_labelTrainIds.png", "_gtFine_labelIds.png")
BENCHMARKS = (
    _voc("voc20", shifted),
    _voc("voc21", identity),
    _context("context59", shifted),
    _context("context60", identity),
    _coco("coco-object", "_instanceTrainIds.png", COCO_OBJECT_RAW, {"keep-ignore": COCO_OBJECT_KEEP_IGNORE}),
    _coco("coco-stuff", "_labelTrainIds.png", COCO_STUFF_RAW),
    _benchmark(
        "cityscapes",
        "cityscapes",
        Layout("leftImg8bit/val", "gtFine/val", ("_leftImg8bit.png",), _CITY_LABELS),
        500,
        {_CITY_LABELS[0]: identity, _CITY_LABELS[1]: _table(CITYSCAPES_RAW)},
    ),
    _benchmark(
        "ade150",
        "ade/ADEChallengeData2016",
        Layout("images/validation", "annotations/validation"),
        2000,
        {"": shifted},
    ),
    _wide(
        "ade847",
        "ADE20K_2021_17_01",
        Layout("images_detectron2/validation", "annotations_detectron2/validation", label_ends=(".tif",)),
        2000,
    ),
    _wide(
        "pc459",
        "VOCdevkit/VOC2010",
        Layout("JPEGImages", "annotations_detectron2/pc459_val", label_ends=(".tif",), by_labels=True),
        None,
    ),
    _benchmark(
        "ovcamo",
        "ovcamo",
        Layout("test/image", "test/mask"),
        None,
        {"": _table(mapped({value: int(value > 0) for value in range(256)}, ()))},
        classes=_ovcamo_classes,
        items=_ovcamo_items,
        note="mean IoU with background over the classes of the test split; measures 'structure' are its paper's, for "
        "which the class with most pixels is the answer",
    ),
    _own(
        "rendered",
        "benchmark/scenes",
        Layout("images", "labels", (".png",)),
        200,
        "flat drawings: a regression check of methods, no evidence about photographs; made by "
        "python -m tools.render benchmark --out data/benchmark",
    ),
    _own(
        "rendered2x",
        "benchmark/scenes2x",
        Layout("images", "labels", (".png",)),
        200,
        "flat drawings of twice the side",
    ),
    _own(
        "folder",
        ".",
        Layout("images", "labels", ANY_IMAGE, (".png", ".tif", ".tiff")),
        None,
        "labels of 255 and 65535 are not scored; names.json may give other ids of the classes, and numbers to ignore",
    ),
)
