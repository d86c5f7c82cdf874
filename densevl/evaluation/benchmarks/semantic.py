"""The segmentation benchmarks: layout, label rule, class list and size of each, as data."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from densevl.errors import DatasetError, suggest
from densevl.evaluation.benchmarks import label_rules
from densevl.evaluation.benchmarks.class_lists import ClassList, class_list
from densevl.evaluation.benchmarks.layouts import ANY_IMAGE, Item, Layout
from densevl.files import shown
from densevl.vocabulary import LabelSet

Rules = Mapping[str, label_rules.Table]
WIDE_IGNORE = 65535


@dataclass(frozen=True, eq=False)
class Spec:
    """A benchmark.

    Attributes:
        name: as `densevl eval` takes it; folder: where it usually lies below a data folder.
        layout: files below the root; expected: images of the evaluation split, None where it varies.
        classes: the class list at a root (most do not look there).
        rules: from a label file's ending to its rule, "" for any ending; it gets the number of classes.
        pairs: the images and label files, where a listing of the dataset says more than the layout.
        note: what a reader of results should know.
    """

    name: str
    folder: str
    layout: Layout
    expected: int | None
    classes: Callable[[Path], ClassList]
    rules: Callable[[int], Rules]
    pairs: Callable[[Path], list[Item]] | None = None
    note: str = ""
    variants: Mapping[str, Callable[[int], Rules]] = field(default_factory=dict)


def _shipped(name: str) -> Callable[[Path], ClassList]:
    return lambda root: class_list(name)


def _voc(name: str, rule: Callable[[int], label_rules.Table]) -> Spec:
    layout = Layout("JPEGImages", "SegmentationClass", listing="ImageSets/Segmentation/val.txt")
    return Spec(name, "VOCdevkit/VOC2012", layout, 1449, _shipped(name), lambda count: {"": rule(count)})


def _context(name: str, rule: Callable[[int], label_rules.Table]) -> Spec:
    layout = Layout("JPEGImages", "SegmentationClassContext", listing="ImageSets/SegmentationContext/val.txt")
    return Spec(name, "VOCdevkit/VOC2010", layout, None, _shipped(name), lambda count: {"": rule(count)})


def _coco(
    name: str, end: str, raw: label_rules.Table, variants: Mapping[str, Callable[[int], Rules]] | None = None
) -> Spec:
    layout = Layout("images/val2017", "annotations/val2017", label_ends=(end, ".png"))
    return Spec(
        name,
        "coco_stuff164k",
        layout,
        5000,
        _shipped(name),
        lambda count: {end: label_rules.identity(count), ".png": raw},
        variants=variants or {},
    )


def _wide(name: str, folder: str, layout: Layout, expected: int | None) -> Spec:
    """Benchmarks of more than 255 classes, 16-bit labels with 65535 for none."""
    return Spec(
        name,
        folder,
        layout,
        expected,
        _shipped(name),
        lambda count: {"": label_rules.identity(count, (WIDE_IGNORE,))},
        note="labels of 65535 are not scored",
        variants={"mmseg-default255": lambda count: {"": label_rules.mmseg_default255(count)}},
    )


def _json(path: Path) -> Any:
    """Raises:
    DatasetError: missing, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{shown(path)} cannot be read as JSON: {error}") from error


def _names_file(root: Path) -> ClassList:
    """Classes of a folder of the user's own: names.txt, a class a line, or names.json, a list or the renderer's.

    Raises:
        DatasetError: there is none.
    """
    for path in (root / "names.txt", root / "names.json", root.parent / "names.json"):
        if path.exists():
            break
    else:
        raise DatasetError(f"{shown(root / 'names.txt')} is missing: write a class a line, in the order of label ids")
    if path.suffix == ".txt":
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        data = _json(path)
        names = data["nouns"] if isinstance(data, dict) else data
    background = names[0] == "background"
    asked = LabelSet.parse(names[background:])  # "car | truck" are two strings for one class
    strings = {"own@1": {name: list(words) for name, words in zip(asked.names, asked.synonyms, strict=True)}}
    return ClassList("folder", asked.names, background, strings, source=str(path.name))


def _ovcamo_classes(root: Path) -> ClassList:
    data = _json(root / "class_info.json")
    return ClassList("ovcamo", tuple(entry["name"] for entry in data if entry["split"] == "test"), True)


def _ovcamo_items(root: Path) -> list[Item]:
    """Images of the classes of the test split; the key's first part is the class, which the mask does not say."""
    names = set(_ovcamo_classes(root).names)
    items = []
    for entry in _json(root / "sample_info.json"):
        if entry["base_class"] in names:
            image, mask = (root / "test" / kind / entry["unique_id"] for kind in ("image", "mask"))
            ends = (Path(entry[kind]).suffix for kind in ("image", "mask"))
            pair = [path.with_name(path.name + end) for path, end in zip((image, mask), ends, strict=True)]
            items.append(Item(f"{entry['base_class']}/{entry['unique_id']}", *pair))
    return sorted(items, key=lambda item: item.key)


_OWN = Layout("images", "labels", ANY_IMAGE, (".png", ".tif", ".tiff"))
_SPECS = [
    _voc("voc20", label_rules.shifted),
    _voc("voc21", label_rules.identity),
    _context("context59", label_rules.shifted),
    _context("context60", label_rules.identity),
    _coco(
        "coco-object",
        "_instanceTrainIds.png",
        label_rules.COCO_OBJECT_RAW,
        {
            "keep-ignore": lambda count: {
                "_instanceTrainIds.png": label_rules.identity(count),
                ".png": label_rules.COCO_OBJECT_KEEP_IGNORE,
            }
        },
    ),
    _coco("coco-stuff", "_labelTrainIds.png", label_rules.COCO_STUFF_RAW),
    Spec(
        "cityscapes",
        "cityscapes",
        Layout(
            "leftImg8bit/val",
            "gtFine/val",
            ("_leftImg8bit.png",),
            ("_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"),
        ),
        500,
        _shipped("cityscapes"),
        lambda count: {
            "_gtFine_labelTrainIds.png": label_rules.identity(count),
            "_gtFine_labelIds.png": label_rules.CITYSCAPES_RAW,
        },
    ),
    Spec(
        "ade150",
        "ade/ADEChallengeData2016",
        Layout("images/validation", "annotations/validation"),
        2000,
        _shipped("ade150"),
        lambda count: {"": label_rules.shifted(count)},
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
    Spec(
        "ovcamo",
        "ovcamo",
        Layout("test/image", "test/mask"),
        None,
        _ovcamo_classes,
        lambda count: {"": label_rules.mapped({value: int(value > 0) for value in range(256)}, ())},
        _ovcamo_items,
        note="mean IoU with background over the classes of the test split; measures 'structure' are its paper's, for "
        "which the class with most pixels is the answer",
    ),
    Spec(
        "rendered",
        "benchmark/scenes",
        Layout("images", "labels", (".png",)),
        200,
        _names_file,
        lambda count: {"": label_rules.identity(count)},
        note="flat drawings: a regression check of methods, no evidence about photographs; made by "
        "python -m tools.render benchmark --out data/benchmark",
    ),
    Spec(
        "rendered2x",
        "benchmark/scenes2x",
        Layout("images", "labels", (".png",)),
        200,
        _names_file,
        lambda count: {"": label_rules.identity(count)},
        note="flat drawings of twice the side",
    ),
    Spec(
        "folder",
        ".",
        _OWN,
        None,
        _names_file,
        lambda count: {"": label_rules.identity(count, (255, WIDE_IGNORE) if count <= 255 else (WIDE_IGNORE,))},
    ),
]
SPECS = {spec.name: spec for spec in _SPECS}


def spec(name: str) -> Spec:
    """The benchmark of that name.

    Raises:
        DatasetError: there is none.
    """
    if name not in SPECS:
        raise DatasetError(f"no dataset '{name}'{suggest(name, SPECS)}; there are {', '.join(SPECS)}")
    return SPECS[name]
