"""Data sets of results read back by those who read them: pycocotools, a panoptic decoder, LabelMe's polygons."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from densevl.errors import DensevlError, OptionError, OutputError
from densevl.evaluation.metrics.panoptic import Segment, coco_ids, panoptic_counts, panoptic_quality
from densevl.proposals import Proposals
from densevl.regions.exports.contents import coco_categories, panoptic_png
from densevl.regions.exports.kinds import open_export
from densevl.regions.result import RegionResult
from densevl.results import SegmentationResult

NAMES = ("cat", "sky", "dög")
SIZE = (40, 60)


def result_of(labels=(0, 1, 2, -1, 0)) -> RegionResult:
    """A ring, the upper half, a spot in the ring, a region that is nothing, and one in two parts."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    far = np.hypot(y - 24, x - 30)
    masks = np.stack([(far < 14) & (far > 7), y < 10, far < 4, x > 50, (y > 30) & ((x < 5) | ((x > 8) & (x < 13)))])
    labels = np.array(labels)
    probs = np.zeros((5, 3), np.float32)
    probs[np.arange(5), np.maximum(labels, 0)] = [0.9, 0.8, 0.7, 0.2, 0.6]
    nothing = np.where(labels < 0, 0.7, 0.05).astype(np.float32)
    scores = np.where(labels < 0, nothing, probs.max(axis=1)).astype(np.float32)
    image = np.full((*SIZE, 3), 128, np.uint8)
    return RegionResult(Proposals.from_masks(masks), NAMES, probs, nothing, labels, scores, image)


def empty() -> RegionResult:
    return result_of().select([])


@pytest.fixture
def photos(tmp_path):
    paths = [tmp_path / "photos" / name for name in ("a/x.png", "b/x.png", "none.png")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1]).save(path)
    return paths


def exported(kind, photos, out, **options):
    export = open_export(kind, out, NAMES, **options)
    for path, result in zip(photos, (result_of(), result_of([2, 1, -1, -1, -1]), empty()), strict=True):
        export.add(path, result)
    return export.close()


def test_coco_json_loads_in_pycocotools(photos, tmp_path, capsys) -> None:
    from pycocotools.coco import COCO

    (path,) = exported("coco", photos, tmp_path / "out")
    data = COCO(str(path))
    assert [category["name"] for category in data.loadCats(data.getCatIds())] == list(NAMES)
    assert [image["file_name"] for image in data.dataset["images"]] == ["a/x.png", "b/x.png", "none.png"]
    assert [(image["height"], image["width"]) for image in data.dataset["images"]] == [SIZE] * 3
    assert len(set(data.anns)) == len(data.dataset["annotations"]) == 6
    assert data.getAnnIds(imgIds=3) == []
    for annotation, index in zip(data.loadAnns(data.getAnnIds(imgIds=1)), (0, 1, 2, 4), strict=True):
        mask = result_of().regions.mask(index)
        assert (data.annToMask(annotation).astype(bool) == mask).all()
        assert annotation["area"] == mask.sum()


def test_label_maps_export_to_coco_too(photos, tmp_path) -> None:
    labels = np.full(SIZE, -1, np.int16)
    labels[:9] = 1
    result = SegmentationResult(labels, NAMES, np.ones(SIZE, np.float32), np.zeros((*SIZE, 3), np.uint8))
    export = open_export("coco", tmp_path, NAMES)
    export.add(photos[0], result)
    content = json.loads(export.close()[0].read_text())
    assert [(entry["id"], entry["image_id"], entry["category_id"]) for entry in content["annotations"]] == [(1, 1, 2)]


def test_panoptic_png_and_json_are_read_back_as_they_were(photos, tmp_path) -> None:
    path, folder = exported("panoptic", photos, tmp_path / "out", stuff=["sky"])
    content = json.loads(path.read_text())
    assert [category["isthing"] for category in content["categories"]] == [1, 0, 1]
    assert [entry["file_name"] for entry in content["annotations"]] == ["x.png", "x-2.png", "none.png"]
    first = content["annotations"][0]
    ids = coco_ids(np.array(Image.open(folder / "x.png")))
    assert (ids == result_of().panoptic(stuff=["sky"]).ids).all()
    assert {info["id"] for info in first["segments_info"]} == set(np.unique(ids)) - {0}
    for info in first["segments_info"]:
        rows, columns = np.nonzero(ids == info["id"])
        x, y, width, height = info["bbox"]
        assert info["area"] == len(rows)
        assert (x, y, x + width - 1, y + height - 1) == (columns.min(), rows.min(), columns.max(), rows.max())
    segments = [Segment(info["id"], info["category_id"] - 1) for info in first["segments_info"]]
    assert panoptic_quality(panoptic_counts(ids, segments, ids, segments, 3))["PQ"] == 1
    assert content["annotations"][2]["segments_info"] == []
    assert not np.array(Image.open(folder / "none.png")).any()


@pytest.mark.parametrize("number", [0, 1, 255, 256, 65_535, 65_536, 2**24 - 1])
def test_ids_survive_the_colours(number) -> None:
    assert (coco_ids(panoptic_png(np.full((2, 3), number))) == number).all()


@pytest.mark.parametrize("number", [-1, 2**24])
def test_ids_that_no_colour_holds_are_refused(number) -> None:
    with pytest.raises(DensevlError, match="segment ids span"):
        panoptic_png(np.full((2, 3), number))


def test_labelme_polygons_fill_to_the_masks(photos, tmp_path) -> None:
    (folder,) = exported("labelme", photos, tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["none.json", "x-2.json", "x.json"]
    content = json.loads((folder / "x.json").read_text())
    assert (folder / content["imagePath"]).resolve() == photos[0].resolve(), "LabelMe opens the photo from there"
    assert (content["imageHeight"], content["imageWidth"]) == SIZE
    assert [shape["label"] for shape in content["shapes"]] == ["cat", "sky", "dög", "cat", "cat"]
    result = result_of()
    by_region = [[0], [1], [2], [3, 4]]
    for members, index in zip(by_region, (0, 1, 2, 4), strict=True):
        again = np.zeros(SIZE, bool)
        for member in members:
            picture = Image.new("1", SIZE[::-1])
            points = [tuple(point) for point in content["shapes"][member]["points"]]
            ImageDraw.Draw(picture).polygon(points, fill=1, outline=1)
            again |= np.array(picture)
        mask = result.regions.mask(index)
        assert (again & mask).sum() / (again | mask).sum() > 0.95
    assert content["shapes"][0]["description"] == "score 0.900; 1 hole, joined to the outline by cuts"
    assert [shape["group_id"] for shape in content["shapes"]] == [None, None, None, 3, 3], "one region in two parts"
    assert json.loads((folder / "none.json").read_text())["shapes"] == []


def test_what_does_not_go_together_is_refused(photos, tmp_path) -> None:
    with pytest.raises(OptionError, match=r"no export 'coca'.*closest: coco"):
        open_export("coca", tmp_path, NAMES)
    with pytest.raises(DensevlError, match="no class 'sea' to be stuff"):
        open_export("panoptic", tmp_path, NAMES, stuff=["sea"])
    with pytest.raises(DensevlError, match="other classes"):
        open_export("coco", tmp_path, ["cat"]).add(photos[0], result_of())
    with pytest.raises(OutputError, match="lies where the export writes"):
        open_export("labelme", tmp_path, NAMES).add(tmp_path / "labelme" / "x.png", result_of())
    assert coco_categories(["a"]) == [{"id": 1, "name": "a", "supercategory": ""}]
