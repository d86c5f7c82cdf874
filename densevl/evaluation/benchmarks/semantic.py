"""The segmentation benchmarks as data: where each lies, how its labels are read, its classes and its size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import DatasetError
from densevl.evaluation.benchmarks.base import SEMANTIC, Benchmark, Dataset, Item, label_file, same_size
from densevl.evaluation.benchmarks.class_lists import ClassList, class_list
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
from densevl.evaluation.benchmarks.own import EXIF, RULES, Own, Said, read_json, read_own
from densevl.files import shown
from densevl.images import read_image, read_labels

Rule = Callable[[int], Table]
"""From the number of classes to the table of stored numbers."""
Rules = Mapping[str, Rule]
"""Rules by the ending of label files, "" for any."""
WIDE_IGNORE = 65535
WAY_OUT = "dataset.json may give the classes' own numbers (ids), and numbers to ignore (--ignore)"


@dataclass(frozen=True)
class SingleClassItem(Item):
    """Attributes: shows: index of the only class in the image; its mask says only where."""

    shows: int = 0


@dataclass(frozen=True, eq=False)
class SemanticDataset(Dataset):
    """Images with label maps.

    Attributes:
        table: int32 (65536,), the class index of each stored number; see `label_rules`.
        own: the user's rules, if it is a folder of the user's own.
    """

    table: Table = field(kw_only=True, repr=False)
    own: Own | None = field(kw_only=True, default=None, repr=False)

    def truth(self, item: Any, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.int16]:
        """The label map by the benchmark's rule: int16 (H, W), class index, -1 where not scored.

        Raises:
            DatasetError: the label map is missing, has another size, or holds numbers outside the rule.
            ImageError: the label map cannot be read.
        """
        label = label_file(item)
        stored = self.stored(label)
        truth = self.decided(label, stored)
        same_size(label, truth, image)
        return np.where(truth > 0, np.int16(item.shows), truth) if isinstance(item, SingleClassItem) else truth

    def stored(self, label: Path) -> npt.NDArray[np.int32]:
        """Read a label file, int32 (H, W): numbers, or colours as R * 65536 + G * 256 + B.

        Raises:
            ImageError: it cannot be read, or is a colour picture and there are no colours in the rules.
        """
        if self.own is not None and self.own.colours is not None:
            rgb = read_image(label).astype(np.int32)
            return np.asarray(rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2])
        return read_labels(label)

    def decided(self, label: Path, stored: npt.NDArray[np.int32]) -> npt.NDArray[np.int16]:
        """Class indices of a label file's content.

        Raises:
            DatasetError: it holds numbers or colours outside the rule.
        """
        if self.own is not None and self.own.colours is not None:
            return self._of_colours(label, stored, self.own.colours)
        if stored.min() < 0 or stored.max() >= SIZE:
            raise DatasetError(f"{shown(label)} holds {stored.min()} to {stored.max()}: label ids are 0 to {SIZE - 1}")
        big = stored.size > SIZE
        truth = self.table.astype(np.int16).take(stored) if big else self.table.take(stored).astype(np.int16)
        if truth.min() == ILLEGAL:  # the smallest number
            wrong = truth == ILLEGAL
            known = np.flatnonzero(self.table >= 0)
            hint = f"; {WAY_OUT}" if self.own is not None else ""
            has = f"{len(self.names)} classes, stored as {known.min()} to {known.max()}"
            if len(self.names) == 1:  # perhaps a list on one line
                has = f"one class, {shown(self.names[0])}, stored as {known.min()}"
            raise DatasetError(
                f"{shown(label)} holds label {stored[wrong][0]} at {int(wrong.sum())} pixels: '{self.name}' has "
                f"{has}{hint}"
            )
        return truth

    def _of_colours(
        self, label: Path, stored: npt.NDArray[np.int32], colours: Mapping[int, int]
    ) -> npt.NDArray[np.int16]:
        known, places = np.unique(stored, return_inverse=True)
        odd = [int(colour) for colour in known if int(colour) not in colours]
        if odd:
            raise DatasetError(
                f"{shown(label)} holds the colour '#{odd[0]:06x}' at {int((stored == odd[0]).sum())} pixels, which is "
                f"none of the {len(colours)} that are known; colours that are not scored are given as null"
            )
        table = np.array([colours[int(colour)] for colour in known], np.int16)
        return table[places].reshape(stored.shape)


def _benchmark(
    name: str,
    folder: str,
    layout: Layout,
    expected: int | None,
    rules: Rules,
    *,
    classes: Callable[[Path], ClassList] | None = None,
    items: Callable[[Path], list[Item]] | None = None,
    variants: Mapping[str, Rules] | None = None,
    note: str = "",
) -> Benchmark:
    """A benchmark of label maps.

    Args:
        rules: how label files are read.
        classes: makes the class list from the root; None takes the shipped one.
        items: makes the images and label files, if a listing of the dataset says more than the layout.
        variants: rules by which others score it.
    """

    def opens(benchmark: Benchmark, root: Path, variant: str, said: Said) -> Dataset:
        known = classes(root) if classes is not None else class_list(name)
        files = tuple((items or layout.items)(root))
        chosen = (variants or {})[variant] if variant else rules
        rule = chosen[""] if "" in chosen else chosen[layout.label_end(root)]
        table = rule(len(known.all_names))
        return SemanticDataset(benchmark, root, known, files, variant, table=table, exif=said.get("exif", EXIF[0]))

    marks = (layout.images,)
    more = tuple(variants or {})
    return Benchmark(name, SEMANTIC, folder, layout.files, marks, opens, expected, note, more, ("exif",))


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
    """A benchmark with more than 255 classes: 16-bit labels, 65535 for none."""
    rules = {"": partial(identity, ignore=(WIDE_IGNORE,))}
    variants = {"mmseg-default255": {"": mmseg_default255}}
    return _benchmark(name, folder, layout, expected, rules, variants=variants, note="labels of 65535 are not scored")


def _own(name: str, folder: str, layout: Layout, expected: int | None, note: str) -> Benchmark:
    """A folder with images/, labels/ and a list of classes; see `own`."""

    def opens(benchmark: Benchmark, root: Path, variant: str, rules: Said) -> Dataset:
        own = read_own(root, rules)
        files = tuple(layout.items(root))
        lonely = layout.lonely(root, files)
        more = [
            f"labels without an image that can be read: {len(lonely)}, the first is {shown(path)}" for path in lonely
        ]
        return SemanticDataset(
            benchmark,
            root,
            own.classes,
            files,
            table=own.table,
            own=own,
            exif=own.exif,
            warnings=(*own.warnings, *more[:1]),
        )

    marks = (layout.images,)
    return Benchmark(name, SEMANTIC, folder, layout.files, marks, opens, expected, note, rules=RULES)


def _ovcamo_classes(root: Path) -> ClassList:
    data = read_json(root / "class_info.json")
    return ClassList("ovcamo", tuple(entry["name"] for entry in data if entry["split"] == "test"), True)


def _ovcamo_items(root: Path) -> list[Item]:
    """Images with classes of the test split; the listing gives an image's class, the mask its place."""
    names = _ovcamo_classes(root).all_names
    items: list[Item] = []
    for entry in read_json(root / "sample_info.json"):
        kind = entry["base_class"]
        if kind in names[1:]:
            image, mask = (
                root / "test" / part / (entry["unique_id"] + Path(entry[part]).suffix) for part in ("image", "mask")
            )
            items.append(SingleClassItem(f"{kind}/{entry['unique_id']}", image, mask, names.index(kind)))
    return sorted(items, key=lambda item: item.key)


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
        "",
    ),
)
