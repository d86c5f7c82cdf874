"""Instance and panoptic benchmarks: miniatures in the real layouts through the readers of the real ones, and faults."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from densevl.evaluation import BENCHMARKS, DatasetError, check, open_dataset
from tests.evaluation.region_miniatures import SIDE, make_instances, make_panoptic, write

MAKE = {"instance": make_instances, "panoptic": make_panoptic}


@pytest.mark.parametrize(("name", "task"), [key for key in BENCHMARKS if key[1] in MAKE])
def test_a_miniature_in_the_real_layout_is_read(name, task, tmp_path) -> None:
    MAKE[task](name, tmp_path)
    dataset = open_dataset(name, tmp_path, task=task)
    assert len(dataset) == 3
    assert [item.entry["id"] for item in dataset.items] == [1, 8, 15]
    assert len({item.key for item in dataset.items}) == 3
    sample = dataset[0]
    assert sample.image.shape == (*SIDE, 3)
    if task == "instance":
        assert dataset.names == ("cat", "traffic light")
        assert sample.truth.labels.tolist() == [0, 1]
        assert sample.truth.crowd.tolist() == [False, True]
        assert [int(coco_mask.area(mask)) for mask in sample.truth.masks] == [64, 48]
        assert dataset[2].truth.masks == ()
        assert len(dataset.as_coco()["annotations"]) == 4
    else:
        assert dataset.names == (
            ("cat", "traffic light", "sky") if name == "coco" else ("background", "cat", "traffic light")
        )
        assert dataset.things == ((True, True, False) if name == "coco" else (False, True, True))
        assert {segment.id for segment in sample.truth.segments} == {2, 300, 70000}
        assert (sample.truth.ids == 0).sum() == 2 * SIDE[0]
    faults = check(name, tmp_path, task=task).faults
    assert all("published split" in fault for fault in faults), faults  # only that three images are few


def test_lvis_finds_images_by_their_address_and_has_synonyms(tmp_path) -> None:
    make_instances("lvis", tmp_path)
    dataset = open_dataset("lvis", tmp_path)
    assert [item.image.parent.name for item in dataset.items] == ["val2017", "train2017", "val2017"]
    # a word that two classes claim stays with the first
    assert dataset.classes.labels("synonyms").synonyms == (("cat", "thing"), ("traffic light",))


def test_every_benchmark_can_be_checked_wherever_it_is_not(tmp_path) -> None:
    for name, task in BENCHMARKS:
        found = check(name, tmp_path / "nowhere", task=task)
        assert found.root is None
        assert "expected: " in str(found)
        assert "looked in" in str(found)
    with pytest.raises(DatasetError, match="closest: lvis"):
        check("lviss")
    with pytest.raises(DatasetError, match="'lvis' is not a dataset for task panoptic"):
        check("lvis", task="panoptic")


def _change(path: Path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    write(path, data)


def _lose_an_image(root: Path) -> None:
    (root / "images/000000000001.jpg").unlink()


def _resize_an_image(root: Path) -> None:
    Image.new("RGB", (9, 9)).save(root / "images/000000000001.jpg")


def _foreign_category(root: Path) -> None:
    _change(root / "instances.json", lambda data: data["annotations"][0].update(category_id=99))
    _change(root / "panoptic.json", lambda data: data["annotations"][-1]["segments_info"][0].update(category_id=99))


def _no_mask(root: Path) -> None:
    _change(
        root / "instances.json",
        lambda data: data["annotations"][0].update(segmentation={"size": [3, 3], "counts": [9]}),
    )


def _endless_run(root: Path) -> None:
    _change(
        root / "instances.json",
        lambda data: data["annotations"][0].update(segmentation={"size": [24, 32], "counts": [10**12, 5]}),
    )


def _endless_polygon(root: Path) -> None:
    _change(
        root / "instances.json",
        lambda data: data["annotations"][0].update(segmentation=[[1e18, 1e18, -1e18, 5, 7, 1e18]]),
    )


def _lose_a_map(root: Path) -> None:
    (root / "panoptic/000000000001.png").unlink()


def _undescribed(root: Path) -> None:
    _change(root / "panoptic.json", lambda data: data["annotations"][-1]["segments_info"].pop())


@pytest.mark.parametrize(
    ("task", "spoil", "message"),
    [
        ("instance", _lose_an_image, "the image '000000000001' is missing"),
        ("instance", _resize_an_image, "is 9x9 and .*instances.json' says 32x24: masks are never resized"),
        ("instance", _foreign_category, "has category 99 in image 1: it lists 2 categories, 5 to 11"),
        ("instance", _no_mask, "has no usable mask in image '000000000001'"),
        ("instance", _endless_run, "has no usable mask in image '000000000001'"),
        ("instance", _endless_polygon, "a polygon far outside"),
        ("panoptic", _lose_an_image, "the image '000000000001' is missing"),
        ("panoptic", _lose_a_map, "the labels of .* are missing: '.*panoptic/000000000001.png'"),
        ("panoptic", _resize_an_image, "is 32x24 and its image 9x9: labels are never resized"),
        ("panoptic", _foreign_category, "has category 99"),
        ("panoptic", _undescribed, "segment 70000 is in the PNG or the JSON, not both"),
    ],
)
def test_a_fault_is_one_clear_line(task, spoil, message, tmp_path) -> None:
    make_instances("folder", tmp_path)
    make_panoptic("folder", tmp_path)
    spoil(tmp_path)
    with pytest.raises(DatasetError, match=message) as caught:
        open_dataset("folder", tmp_path, task=task)[0]
    assert "\n" not in str(caught.value)
    assert check("folder", tmp_path, task=task).faults


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        (
            '{"images": [{"id": "1", "width": 3, "height": 3}], "annotations": [], '
            '"categories": [{"id": 1, "name": "a"}]}',
            "an entry of images whose id is not a whole number",
        ),
        ("[]", "is not a COCO file"),
        ('{"images": [], "annotations": [], "categories": []}', "has no categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}', "the split is empty"),
        (
            '{"images": [{"id": 1, "width": 3}], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}',
            "has an entry of images without height",
        ),
        (
            '{"images": [{"id": 1, "width": 3, "height": 3, "file_name": "../a.png"}], "annotations": [], '
            '"categories": [{"id": 1, "name": "cat"}]}',
            "leads out of the folder",
        ),
    ],
)
def test_a_damaged_or_empty_listing_is_named(content, message, tmp_path) -> None:
    (tmp_path / "instances.json").write_text(content)
    with pytest.raises(DatasetError, match=message):
        open_dataset("folder", tmp_path, task="instance")
    assert check("folder", tmp_path, task="instance").faults


def test_a_limit_is_spread_and_an_absent_area_is_counted(tmp_path) -> None:
    make_instances("folder", tmp_path)
    _change(tmp_path / "instances.json", lambda data: [entry.pop("area") for entry in data["annotations"]])
    dataset = open_dataset("folder", tmp_path, task="instance")
    assert [item.entry["id"] for item in dataset.subset(2).items] == [1, 8]
    assert [entry["area"] for entry in dataset.as_coco()["annotations"]] == [64, 48, 64, 81]
    np.testing.assert_array_equal(dataset[1].truth.labels, dataset.subset(2)[1].truth.labels)
