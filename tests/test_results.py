"""A result says exactly what its label map says, in every form it leaves in."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask

from densevl.drawing import contact_sheet, encode_sheet, palette
from densevl.errors import DensevlError, MissingExtraError, OutputError
from densevl.images import read_labels
from densevl.results import SegmentationResult
from densevl.rle import class_runs, coco_segmentation

NAMES = ("road", "car", "sky")


def result(labels: Any = None, names: tuple[str, ...] = NAMES, **fields: Any) -> SegmentationResult:
    labels = np.array([[0, 0, 1, -1], [2, 2, 1, -1]] if labels is None else labels, np.int16)
    given = {
        "confidence": np.full(labels.shape, 0.5, np.float32),
        "image": np.full((*labels.shape, 3), 100, np.uint8),
        **fields,
    }
    return SegmentationResult(labels=labels, names=names, **given)


def large(classes: int = 150) -> SegmentationResult:
    """6 megapixels in 216 rectangles."""
    cells = np.random.default_rng(0).integers(-1, classes, (12, 18))
    labels = cells.repeat(167, 0).repeat(167, 1)[:2000, :3000]
    return result(labels, tuple(f"class {index}" for index in range(classes)))


# The type ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"labels": np.zeros((2, 4), np.int64)}, "labels is int64 (2, 4)"),
        ({"labels": np.zeros((2, 4, 1), np.int16)}, "labels"),
        ({"labels": np.zeros((0, 4), np.int16)}, "not empty"),
        ({"labels": [[0]]}, "labels is list"),
        ({"labels": np.full((2, 4), 3, np.int16)}, "span 3 to 3"),
        ({"labels": np.full((2, 4), -2, np.int16)}, "span -2 to -2"),
        ({"confidence": np.zeros((2, 4))}, "confidence is float64"),
        ({"confidence": np.zeros((4, 2), np.float32)}, "confidence"),
        ({"confidence": np.full((2, 4), np.nan, np.float32)}, "probability"),
        ({"confidence": np.full((2, 4), 1.5, np.float32)}, "probability"),
        ({"image": np.zeros((2, 4), np.uint8)}, "image"),
        ({"image": np.zeros((2, 4, 3), np.float32)}, "image is float32"),
        ({"names": ()}, "0 names"),
        ({"names": ("a", "b", "a")}, "'a' is given to two"),
        ({"names": ("a", 2, "c")}, "strings"),
    ],
)
def test_a_result_that_contradicts_itself_is_refused(fields: dict[str, Any], says: str) -> None:
    whole = result()
    same = {"labels": whole.labels, "names": NAMES, "confidence": whole.confidence, "image": whole.image}
    with pytest.raises(DensevlError) as error:
        SegmentationResult(**{**same, **fields})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_shares_count_every_pixel_once() -> None:
    assert result().fractions() == {"road": 0.25, "car": 0.25, "sky": 0.25, "nothing": 0.25}
    assert result().area("car") == 2
    assert result().mask("car").tolist() == [[False, False, True, False], [False, False, True, False]]
    assert result().mask("nothing").sum() == 2
    assert sum(large().fractions().values()) == pytest.approx(1)


def test_a_class_named_nothing_shares_its_name_with_the_unlabelled() -> None:
    named = result(names=("road", "nothing", "sky"))
    assert named.fractions() == {"road": 0.25, "nothing": 0.5, "sky": 0.25}
    assert named.mask("nothing").sum() == named.area("nothing") == 4


def test_an_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(DensevlError, match=r"no class 'raod'.*road"):
        result().mask("raod")


def test_scores_are_computed_once_and_only_when_asked() -> None:
    calls = []

    def scores() -> np.ndarray:
        calls.append(1)
        return np.zeros((3, 2, 4), np.float64)

    lazy = result(scores_fn=scores)
    assert not calls
    assert lazy.scores.dtype == np.float32
    assert lazy.scores is lazy.scores
    assert len(calls) == 1


def test_scores_that_cannot_be_had_are_an_error() -> None:
    with pytest.raises(DensevlError, match="no scores"):
        _ = result().scores
    with pytest.raises(DensevlError, match="scores is float32"):
        _ = result(scores_fn=lambda: np.zeros((2, 2, 4), np.float32)).scores


def test_printing_a_result_says_what_was_found() -> None:
    assert "2x4, 3 classes: road 25.0%" in repr(result())
    assert len(repr(large())) < 200


# Pictures ------------------------------------------------------------------------------------------------------------


def test_a_class_keeps_its_colour_however_many_there_are() -> None:
    np.testing.assert_array_equal(palette(500)[:7], palette(7))
    assert palette(0).shape == (0, 3)
    assert len(np.unique(palette(500), axis=0)) == 500


def test_the_first_colours_are_well_apart() -> None:
    first = palette(12).astype(float)
    distance = np.linalg.norm(first[:, None] - first[None], axis=-1) + 1e3 * np.eye(12)
    assert distance.min() > 60


def test_unlabelled_pixels_stay_the_plain_photo_and_labels_take_their_colour() -> None:
    labels = np.full((60, 80), -1)
    labels[10:50, 10:50] = 1
    drawn = result(labels).overlay(0.5, captions=False)[:60, 60:140]  # an 80 px photo is centred over a 200 px legend
    assert (drawn[labels == -1] == 100).all()
    blend = (palette(2)[1].astype(float) + 100) / 2
    assert np.abs(drawn[15:45, 15:45] - blend).max() <= 1
    assert (drawn[10, 20] == palette(2)[1]).all()  # the border, at full strength
    assert (result(labels).overlay(0, captions=False)[20:40, 80:100] == 100).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (64, 48), (480, 640)])
@pytest.mark.parametrize(
    "names",
    [
        ("plain",),
        ("Straße 東京 🚗",),
        ("line\nbreak\ttab \ud800",),
        ("long " * 300,),
        ("",),
        tuple(f"class {index}" for index in range(150)),
    ],
    ids=["plain", "unicode", "control", "long", "empty", "many"],
)
def test_every_size_and_name_can_be_drawn(size: tuple[int, int], names: tuple[str, ...]) -> None:
    labels = np.arange(size[0] * size[1]).reshape(size) % (len(names) + 1) - 1
    drawn = result(labels, names).overlay()
    assert drawn.dtype == np.uint8
    assert drawn.shape[0] > size[0]
    assert drawn.shape[1] == max(size[1], 200)
    assert drawn.shape[0] - size[0] < 800  # the legend is capped


def test_overlay_refuses_a_strength_outside_its_range() -> None:
    with pytest.raises(DensevlError, match="alpha"):
        result().overlay(2)


def test_a_contact_sheet_holds_every_picture() -> None:
    pictures = [np.full((50 * k, 80, 3), 40 * k, np.uint8) for k in (1, 2, 3)]
    sheet = contact_sheet(pictures, ["one", "two", "three " * 50], columns=2, width=400)
    assert sheet.shape[1] == 400
    assert all((sheet == 40 * k).all(axis=-1).sum() > 1000 for k in (1, 2, 3))
    assert contact_sheet(pictures[:1], columns=4, width=100).shape[1] == 100


@pytest.mark.parametrize("count", [1, 2, 11])
def test_cells_of_a_sheet_are_equal_and_pictures_whole(count) -> None:
    sides = [(300, 40), (40, 300), (80, 80), (2, 3)]
    pictures = [np.full((*sides[k % 4], 3), (200, 20 * k, 0), np.uint8) for k in range(count)]
    sheet = contact_sheet(pictures, columns=4, width=640)
    middles = []
    for picture in pictures:
        down, across = np.nonzero((sheet == picture[0, 0]).all(axis=-1))
        height, width = np.ptp(down) + 1, np.ptp(across) + 1
        assert abs(height * picture.shape[1] - width * picture.shape[0]) <= max(picture.shape), "whole, in its shape"
        middles.append(((down.min() + down.max()) / 2, (across.min() + across.max()) / 2))
    for first, second in itertools.combinations(range(count), 2):
        (top, left), (below, right) = middles[first], middles[second]
        rows, columns = second // 4 - first // 4, second % 4 - first % 4
        step = (640 - 10) / min(count, 4)  # gaps of 640 / 64
        assert abs(right - left - columns * step) <= 4
        assert abs(below - top - rows * step) <= 4, "the median shape is a square"


def test_a_key_names_what_fits_and_counts_the_rest() -> None:
    pictures = [np.full((60, 90, 3), 90, np.uint8)] * 2
    names = [(f"label number {k}", (10, 20 * k, 30)) for k in range(9)]
    sheet = contact_sheet(pictures, ["a", "b"], width=640, keys=[names, names[:1]])
    shown = [bool((sheet == colour).all(axis=-1).any()) for _, colour in names]
    assert shown.index(False) >= 2
    assert not any(shown[shown.index(False) :])
    assert sheet.shape[0] > contact_sheet(pictures, ["a", "b"], width=640).shape[0]


def test_the_file_of_a_sheet_has_a_limit() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), np.uint8)
    data = encode_sheet(noise, most=30_000)
    assert len(data) <= 30_000
    assert Image.open(io.BytesIO(data)).format == "JPEG"


@pytest.mark.parametrize(
    "options", [{"columns": 0}, {"width": 20}, {"titles": ["one"]}, {"keys": [[]]}, {"images": []}]
)
def test_a_contact_sheet_that_cannot_be_laid_out_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DensevlError):
        contact_sheet(**{"images": [np.zeros((5, 5, 3), np.uint8)] * 2, **options})


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "nothing"), [(1, 255), (255, 255), (256, 65535), (1000, 65535)])
def test_saved_label_maps_read_back_exactly(tmp_path: Path, classes: int, nothing: int) -> None:
    labels = np.array([[-1, 0], [classes - 1, classes // 2]])
    made = result(labels, tuple(f"class {index}" for index in range(classes)))
    written = made.save(tmp_path / "new" / "street.png")
    assert [path.name for path in written] == [
        "street.png",
        "street.json",
        "street_confidence.png",
        "street_overlay.png",
    ]
    key = json.loads(written[1].read_text(encoding="utf-8"))
    assert key["nothing"] == nothing
    read = read_labels(written[0])
    np.testing.assert_array_equal(np.where(read == nothing, -1, read), labels)


def test_the_key_holds_what_is_needed_to_use_the_map(tmp_path: Path) -> None:
    meta = {"path": Path("a/ü.jpg"), "seconds": np.float32(1.5), "sizes": np.arange(2), "odd name": "x\udcff"}
    made = result(meta=meta, warnings=("low contrast",))
    path = made.save(tmp_path / "a.png", overlay=False)[1]
    key = json.loads(path.read_text(encoding="utf-8"))
    assert key["size"] == {"height": 2, "width": 4}
    assert key["names"] == list(NAMES)
    assert key["colours"] == palette(3).tolist()
    assert key["fractions"] == made.fractions()
    assert key["warnings"] == ["low contrast"]
    assert key["meta"] == {"path": "a/ü.jpg", "sizes": [0, 1], "odd name": "x\udcff"}, "no seconds: they differ"
    assert not (tmp_path / "a_overlay.png").exists()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.getpalette()[:9] == palette(3).ravel().tolist()


@pytest.mark.parametrize("name", ["a.jpg", "a", "a.json"])
def test_an_ending_other_than_png_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"\.png"):
        result().save(tmp_path / name)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_meta_that_is_no_json_writes_nothing(tmp_path: Path, value: object) -> None:
    with pytest.raises(OutputError, match="meta"):
        result(meta={"odd": value}).save(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_no_partial_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        result().save(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


# COCO and supervision ------------------------------------------------------------------------------------------------

label_maps = hnp.arrays(np.int16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(-1, 4))


@settings(max_examples=200, deadline=None)
@given(label_maps)
def test_run_lengths_decode_to_the_masks_and_boxes_of_pycocotools(labels: np.ndarray) -> None:
    found = class_runs(labels)
    assert list(found) == [index for index in np.unique(labels) if index >= 0]
    for index, runs in found.items():
        plain = coco_segmentation(runs.counts, *labels.shape, compressed=False)
        packed = coco_segmentation(runs.counts, *labels.shape, compressed=True)
        assert sum(plain["counts"]) == labels.size
        expected = coco_mask.encode(np.asfortranarray(labels == index, dtype=np.uint8))
        assert packed["counts"].encode() == expected["counts"]
        np.testing.assert_array_equal(coco_mask.decode(packed), labels == index)
        assert runs.area == coco_mask.area(expected)
        assert list(runs.box) == coco_mask.toBbox(expected).tolist()


def test_coco_annotations_are_json_and_say_what_the_masks_say() -> None:
    annotations = json.loads(json.dumps(result().to_coco(image_id=7)))
    assert [a["category_name"] for a in annotations] == list(NAMES)
    assert [a["category_id"] for a in annotations] == [1, 2, 3]
    for annotation in annotations:
        mask = result().mask(annotation["category_name"])
        np.testing.assert_array_equal(coco_mask.decode(annotation["segmentation"]), mask)
        assert annotation["image_id"] == 7
        assert annotation["area"] == mask.sum()
        assert annotation["score"] == pytest.approx(0.5)
        assert annotation["iscrowd"] == 0
    assert annotations[1]["bbox"] == [2, 0, 1, 2]
    assert isinstance(result().to_coco(compressed=False)[0]["segmentation"]["counts"], list)
    assert result(np.full((2, 2), -1)).to_coco() == []


def test_150_classes_on_6_megapixels_become_coco_in_under_a_second() -> None:
    made = large()
    start = time.perf_counter()
    annotations = made.to_coco()
    assert time.perf_counter() - start < 1
    assert sum(annotation["area"] for annotation in annotations) == (made.labels >= 0).sum()


def test_supervision_gets_one_mask_a_class() -> None:
    pytest.importorskip("supervision", exc_type=ImportError)
    detections = result().to_supervision()
    assert detections.data["class_name"].tolist() == list(NAMES)
    assert detections.class_id.tolist() == [0, 1, 2]
    assert detections.xyxy.tolist() == [[0, 0, 2, 1], [2, 0, 3, 2], [0, 1, 2, 2]]
    np.testing.assert_array_equal(detections.mask[1], result().mask("car"))
    np.testing.assert_allclose(detections.confidence, 0.5)
    assert len(result(np.full((2, 2), -1)).to_supervision()) == 0


def test_missing_supervision_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingExtraError, match=r"densevl\[viz\]"):
        result().to_supervision()
