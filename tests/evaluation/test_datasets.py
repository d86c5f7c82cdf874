"""Miniatures of the benchmarks in their real layouts, through the readers of the real ones; faults are one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densevl.evaluation import BENCHMARKS, DatasetError, check, open_dataset
from densevl.evaluation.benchmarks.class_lists import class_list, listed

SIDE = (6, 8)


def _photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*SIDE, 3), 90, np.uint8)).save(path)


def _labels(path: Path, values: list[int], mode: str = "L") -> None:
    """Rows of the label map take the values in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.array(values)[np.arange(SIDE[0]) % len(values)][:, None].repeat(SIDE[1], 1)
    picture = Image.fromarray(array.astype(np.uint16 if mode == "16" else np.uint8))
    if mode == "P":
        picture.putpalette([7] * 768)  # a palette of one colour: whoever reads colours sees one class
    picture.save(path)


def _listing(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a\nb\n", encoding="utf-8")


def _voc(root: Path, folder: str, listing: str) -> None:
    _listing(root / listing)
    for stem in "ab":
        _photo(root / "JPEGImages" / f"{stem}.jpg")
        _labels(root / folder / f"{stem}.png", [0, 1, 5, 255], "P")


def _make(name: str, root: Path) -> None:
    """Write two images of a benchmark as its publishers lay them out."""
    if name in {"voc20", "voc21"}:
        _voc(root, "SegmentationClass", "ImageSets/Segmentation/val.txt")
    elif name in {"context59", "context60"}:
        _voc(root, "SegmentationClassContext", "ImageSets/SegmentationContext/val.txt")
    elif name in {"coco-object", "coco-stuff"}:
        for stem in ("000000000139", "000000000285"):
            _photo(root / "images/val2017" / f"{stem}.jpg")
            _labels(root / "annotations/val2017" / f"{stem}.png", [0, 89, 181, 255])
    elif name == "cityscapes":
        for stem in ("frankfurt/frankfurt_000000_000294", "lindau/lindau_000000_000019"):
            _photo(root / "leftImg8bit/val" / f"{stem}_leftImg8bit.png")
            _labels(root / "gtFine/val" / f"{stem}_gtFine_labelIds.png", [7, 33, 4, 0])
            _labels(root / "gtFine/val" / f"{stem}_gtFine_color.png", [1])
    elif name == "ade150":
        for stem in ("ADE_val_00000001", "ADE_val_00000002"):
            _photo(root / "images/validation" / f"{stem}.jpg")
            _labels(root / "annotations/validation" / f"{stem}.png", [0, 1, 150])
    elif name == "ade847":
        for stem in ("a", "b"):
            _photo(root / "images_detectron2/validation" / f"{stem}.jpg")
            _labels(root / "annotations_detectron2/validation" / f"{stem}.tif", [0, 255, 846, 65535], "16")
    elif name == "pc459":
        for stem in ("a", "b", "unlabelled"):
            _photo(root / "JPEGImages" / f"{stem}.jpg")
        for stem in ("a", "b"):
            _labels(root / "annotations_detectron2/pc459_val" / f"{stem}.tif", [0, 255, 458, 65535], "16")
    elif name == "ovcamo":
        classes = [
            {"name": "ant", "split": "train"},
            {"name": "crab", "split": "test"},
            {"name": "owl", "split": "test"},
        ]
        samples = [
            {"unique_id": stem, "base_class": kind, "image": "x.jpg", "mask": "x.png"}
            for stem, kind in (("a", "crab"), ("b", "owl"), ("c", "ant"))
        ]
        (root / "class_info.json").write_text(json.dumps(classes))
        (root / "sample_info.json").write_text(json.dumps(samples))
        for stem in "ab":
            _photo(root / "test/image" / f"{stem}.jpg")
            _labels(root / "test/mask" / f"{stem}.png", [0, 255])
    else:  # a folder, or the rendered benchmark
        for stem in ("0000", "0001"):
            _photo(root / "images" / f"{stem}.png")
            _labels(root / "labels" / f"{stem}.png", [0, 1, 2])
        (root / "names.json").write_text(json.dumps({"nouns": ["background", "dog", "car"]}))


EXPECTED = {  # class index in the rows of the first label map, -1 not scored
    "voc20": [-1, 0, 4, -1],
    "voc21": [0, 1, 5, -1],
    "context59": [-1, 0, 4, -1],
    "context60": [0, 1, 5, -1],
    "coco-object": [1, 80, 0, 0],
    "coco-stuff": [0, 79, 170, -1],
    "cityscapes": [0, 18, -1, -1],
    "ade150": [-1, 0, 149],
    "ade847": [0, 255, 846, -1],
    "pc459": [0, 255, 458, -1],
    "ovcamo": [0, 1],
    "rendered": [0, 1, 2],
    "rendered2x": [0, 1, 2],
    "folder": [0, 1, 2],
}


def test_every_reader_has_a_miniature() -> None:
    assert set(EXPECTED) == {name for name, task in BENCHMARKS if task == "semantic"}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_miniature_in_the_real_layout_gives_the_right_classes(name, tmp_path) -> None:
    _make(name, tmp_path)
    dataset = open_dataset(name, tmp_path)
    assert len(dataset) == 2
    truth = dataset[0].truth
    assert truth.dtype == np.int16
    assert truth.shape == SIDE
    wanted = np.array(EXPECTED[name])
    np.testing.assert_array_equal(truth[:, 0], wanted[np.arange(SIDE[0]) % len(wanted)])
    assert dataset[1].image.shape == (*SIDE, 3)
    assert len({item.key for item in dataset.items}) == 2
    faults = check(name, tmp_path).faults
    assert all("published split" in fault for fault in faults), faults  # only that two images are few


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("voc20", 20, "aeroplane", "tv monitor"),
        ("voc21", 20, "aeroplane", "tv monitor"),
        ("context59", 59, "aeroplane", "wood"),
        ("coco-object", 80, "person", "toothbrush"),
        ("coco-stuff", 171, "person", "wood"),
        ("cityscapes", 19, "road", "bicycle"),
        ("ade150", 150, "wall", "flag"),
        ("ade847", 847, "wall", "adding machine, totalizer, totaliser"),
        ("pc459", 459, "accordion", "wool"),
    ],
)
def test_class_lists_have_their_published_length_and_ends(name, count, first, last) -> None:
    classes = class_list(name)
    assert (len(classes.names), classes.names[0], classes.names[-1]) == (count, first, last)


@pytest.mark.parametrize("name", listed())
def test_every_variant_of_strings_can_be_asked_for(name) -> None:
    classes = class_list(name)
    for variant in classes.variants:
        assert classes.labels(variant).names == classes.names
    for variant, changed in classes.strings.items():
        assert set(changed) <= set(classes.names), variant
    with pytest.raises(Exception, match=f"'{name}' has no strings 'nope'"):
        classes.labels("nope")


def test_sclip_means_a_person_by_clothes_and_clearclip_does_not() -> None:
    classes = class_list("voc21")
    assert len(classes.labels("sclip@1").synonyms[classes.names.index("person")]) == 7
    assert classes.labels("proxyclip@1").synonyms[classes.names.index("boat")] == ("ship",)
    assert classes.labels("proxyclip@1").synonyms[classes.names.index("person")] == ("person",)


def test_label_rules_for_comparison_with_other_evaluations(tmp_path) -> None:
    _make("ade847", tmp_path / "ade")
    wrong = open_dataset("ade847", tmp_path / "ade", variant="mmseg-default255")
    assert wrong[0].truth[:4, 0].tolist() == [0, -1, 846, 847]  # class 255 lost, unlabelled a false positive
    _make("coco-object", tmp_path / "coco")
    assert open_dataset("coco-object", tmp_path / "coco", variant="keep-ignore")[0].truth[3, 0] == -1
    with pytest.raises(DatasetError, match="has no label rule 'keep-ignore'"):
        open_dataset("ade847", tmp_path / "ade", variant="keep-ignore")


def _lose_a_label(root: Path) -> None:
    (root / "labels/0001.png").unlink()


def _resize_a_label(root: Path) -> None:
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(root / "labels/0001.png")


def _overflow(root: Path) -> None:
    _labels(root / "labels/0001.png", [0, 9])


def _colour(root: Path) -> None:
    Image.new("RGB", SIDE[::-1], (90, 90, 91)).save(root / "labels/0001.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_lose_a_label, r"the labels of '.*0001.png' are missing: '.*labels/0001.png'"),
        (_resize_a_label, r"'.*0001.png' is 3x3 and its image 8x6: labels are never resized"),
        (
            _overflow,
            r"holds label 9 at 24 pixels: 'folder' has 3 classes, stored as 0 to 2; dataset.json may give",
        ),
        (_colour, r"'.*0001.png' is not a label map: it has colours"),
    ],
    ids=["missing", "other size", "out of range", "colours"],
)
def test_a_fault_is_one_clear_line(spoil, message, tmp_path) -> None:
    _make("folder", tmp_path)
    spoil(tmp_path)
    with pytest.raises(Exception, match=message) as caught:
        open_dataset("folder", tmp_path)[1]
    assert "\n" not in str(caught.value)
    report = check("folder", tmp_path)
    assert report.faults
    assert "not ready" in str(report)


def test_an_absent_dataset_says_where_it_was_looked_for(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DENSEVL_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match=r"'voc21' was not found; looked in .*nowhere/VOCdevkit/VOC2012.*expected"):
        open_dataset("voc21")
    text = str(check("voc21"))
    assert "not found" in text
    assert "looked in" in text
    with pytest.raises(DatasetError, match="closest: ade150"):
        open_dataset("ade15")


def test_an_empty_split_and_missing_names_are_named(tmp_path) -> None:
    _make("folder", tmp_path / "a")
    for path in (tmp_path / "a/images").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="the split is empty"):
        open_dataset("folder", tmp_path / "a")
    _make("folder", tmp_path / "b")
    (tmp_path / "b/names.json").unlink()
    with pytest.raises(DatasetError, match=r"names.txt' is missing: write one class per line"):
        open_dataset("folder", tmp_path / "b")


def test_a_listing_that_is_missing_or_no_json_is_named(tmp_path) -> None:
    _make("ovcamo", tmp_path)
    (tmp_path / "class_info.json").write_text("{")
    with pytest.raises(DatasetError, match=r"class_info.json' cannot be read as JSON"):
        open_dataset("ovcamo", tmp_path)
    (tmp_path / "class_info.json").unlink()
    assert "class_info.json" in check("ovcamo", tmp_path).faults[0]


def test_names_of_a_folder_may_have_synonyms(tmp_path) -> None:
    _make("folder", tmp_path)
    (tmp_path / "names.txt").write_text("background\ndog | puppy\ncar\n")
    dataset = open_dataset("folder", tmp_path)
    assert dataset.names == ("background", "dog", "car")
    assert dataset.classes.labels("own@1").synonyms[0] == ("dog", "puppy")


@pytest.mark.parametrize(
    ("tag", "exif", "shape", "turned"),
    [
        (6, "auto", (8, 6), False),
        (6, "auto", (6, 8), True),
        (3, "auto", (6, 8), False),
        (3, "stored", (6, 8), True),
        (1, "auto", (6, 8), False),
        (1, "stored", (6, 8), False),
    ],
)
def test_labels_of_a_picture_turned_by_its_tag_are_turned_with_it_if_they_lie_as_stored(
    tag, exif, shape, turned, tmp_path
) -> None:
    """Stored 8 wide and 6 high; tag 6 turns it by a quarter, tag 3 by a half."""
    _make("folder", tmp_path)
    (tmp_path / "images/0000.png").unlink()
    tags = Image.Exif()
    tags[0x0112] = tag
    Image.fromarray(np.full((6, 8, 3), 90, np.uint8)).save(tmp_path / "images/0000.jpg", exif=tags)
    stored = np.zeros(shape, np.uint8)
    stored[0] = 1
    Image.fromarray(stored).save(tmp_path / "labels/0000.png")
    sample = open_dataset("folder", tmp_path, rules={"exif": exif})[0]
    assert sample.truth.shape == sample.image.shape[:2]
    wanted = {(6, True): stored[::-1].T, (3, True): stored[::-1, ::-1]}.get((tag, turned), stored)
    assert (sample.truth == wanted).all()
    said = [text for text in check("folder", tmp_path).warnings if "turned by EXIF tags" in text]
    assert len(said) == (tag != 1)


def test_no_label_of_a_folder_is_left_out_in_silence(tmp_path) -> None:
    _make("folder", tmp_path)
    (tmp_path / "images/0001.png").rename(tmp_path / "images/0001.heix")
    dataset = open_dataset("folder", tmp_path)
    assert len(dataset) == 1
    told = "labels without an image that can be read: 1, the first is '.*labels/0001.png'"
    assert re.fullmatch(told, dataset.subset(1).warnings[0])
    assert any(re.fullmatch(told, warning) for warning in check("folder", tmp_path).warnings)


def test_a_folder_may_say_what_its_numbers_mean(tmp_path) -> None:
    _make("folder", tmp_path)
    _labels(tmp_path / "labels/0000.png", [0, 7, 255, 11])
    names = {"names": ["background", "dog", "car"], "ids": [0, 7, 255], "ignore": [11]}
    (tmp_path / "names.json").write_text(json.dumps(names))
    assert open_dataset("folder", tmp_path)[0].truth[:4, 0].tolist() == [0, 1, 2, -1]
    del names["ids"]
    (tmp_path / "names.json").write_text(json.dumps({**names, "ignore": [7, 11]}))
    assert open_dataset("folder", tmp_path)[0].truth[:4, 0].tolist() == [0, -1, -1, -1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "background\ndog\ncar\n"),
        ("names.txt", "\ufeffbackground\n# animals\ndog\n\ncar\n"),
        ("names.txt", "0 background\n1 dog\n2 car\n"),
        ("names.txt", "id,name\n0,background\n1,dog\n2,car\n"),
        ("names.txt", "1: dog\n2: car\n0: background\n"),
        ("names.json", '["background", "dog", "car"]'),
        ("names.json", '{"0": "background", "1": "dog", "2": "car"}'),
        ("names.json", '{"2": "car", "0": "background", "1": "dog"}'),
    ],
)
def test_numbers_headings_and_remarks_in_a_list_of_classes_are_no_names(name, text, tmp_path) -> None:
    _make("folder", tmp_path)
    (tmp_path / "names.json").unlink()
    (tmp_path / name).write_text(text, encoding="utf-8")
    dataset = open_dataset("folder", tmp_path)
    truth = dataset[0].truth[:3, 0]
    assert dataset.names == ("background", "dog", "car")
    assert truth.tolist() == [0, 1, 2]


def test_a_list_of_classes_that_is_no_text_is_one_line(tmp_path) -> None:
    _make("folder", tmp_path)
    (tmp_path / "names.txt").write_bytes(b"ba\xffck\nroad\n")
    with pytest.raises(DatasetError, match=r"names.txt' is not text in UTF-8"):
        open_dataset("folder", tmp_path)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("grass, sky, ball", r"holds label \d .*'folder' has one class, 'grass, sky, ball', stored as 0"),
        ("grass\nsky\ngrass", r"names\.txt': label 'grass' is given twice"),
    ],
)
def test_a_list_of_classes_that_is_none_is_named(lines, told, tmp_path) -> None:
    _make("folder", tmp_path)
    (tmp_path / "names.json").unlink()
    (tmp_path / "names.txt").write_text(lines)
    with pytest.raises(DatasetError, match=told):
        open_dataset("folder", tmp_path)[0].truth.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": [0, 1]}, "has 3 classes and 2 ids"),
        ({"ids": [0, 1, 1]}, "none of them twice"),
        ({"ids": [0, 1, 70000]}, "whole numbers from 0 to 65535"),
        ({"ids": [0, 1, True]}, "whole numbers from 0 to 65535"),
        ({"ids": "012"}, "whole numbers from 0 to 65535"),
        ({"ignore": [2]}, "is ignored, and the number of class"),
        ({"ignore": "11"}, "give the number that is stored"),
        ({"ignore": -1}, "whole numbers from 0 to 65535"),
        ({"names": "dog"}, "lists no classes"),
        ({"names": []}, "lists no classes"),
        ({"names": [1, 2]}, "lists no classes"),
    ],
)
def test_what_a_folder_cannot_say_of_its_numbers_is_one_line(change, message, tmp_path) -> None:
    _make("folder", tmp_path)
    (tmp_path / "names.json").write_text(json.dumps({"names": ["background", "dog", "car"], **change}))
    with pytest.raises(DatasetError, match=f"names.json'.*{message}"):
        open_dataset("folder", tmp_path)
    assert check("folder", tmp_path).faults


def test_a_limit_is_spread_over_the_dataset_and_never_empty(tmp_path) -> None:
    _make("folder", tmp_path)
    dataset = open_dataset("folder", tmp_path)
    assert [item.key for item in dataset.subset(1).items] == ["0000"]
    assert len(dataset.subset(99)) == 2
    with pytest.raises(DatasetError, match="limit of 0"):
        dataset.subset(0)
