"""Results in the formats of other tools: each is read back, by the tool's own library where it is light."""

from __future__ import annotations

import itertools
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_exports import NAMES, SIZE, result_of
from typer.testing import CliRunner

from densevl.cli import app
from densevl.errors import OptionError, OutputError
from densevl.regions.exports.base import as_regions
from densevl.regions.exports.brush import brush
from densevl.regions.exports.kinds import EXPORTS, open_export, parse_kinds
from densevl.regions.polygons import outlined
from densevl.results import SegmentationResult

SCENES = Path(__file__).parents[2] / "demo" / "scenes"


def label_map() -> SegmentationResult:
    """A spot of 'cat' with a hole, and a strip of 'sky'; the rest is nothing."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    far, labels = np.hypot(y - 24, x - 30), np.full(SIZE, -1, np.int16)
    labels[(far < 14) & (far > 5)] = 0
    labels[:6] = 1
    return SegmentationResult(
        labels, NAMES, np.where(labels < 0, 0.4, 0.8).astype(np.float32), np.zeros((*SIZE, 3), np.uint8)
    )


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photos" / "x.png"
    path.parent.mkdir()
    Image.new("RGB", SIZE[::-1]).save(path)
    return path


def handed_on(kind, photo, result) -> list[Path]:
    export = open_export(kind, photo.parents[1] / "out", NAMES)
    export.add(photo, result)
    return export.close()


def brushed(data: list[int]) -> np.ndarray:
    """Label Studio's decoder, as its SDK's `decode_rle` does it: one value at a time."""
    bits, at = "".join(f"{byte:08b}" for byte in data), 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = read(32), read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        series, length = read(1), read(widths[read(2)]) + 1
        values += [read(word)] * length if series else [read(word) for _ in range(length)]
    return np.array(values, np.uint8).reshape(-1, 4)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (40, 60), (300, 301)])
@pytest.mark.parametrize("share", [0, 0.02, 0.5, 1])
def test_a_brush_of_label_studio_is_the_mask(shape, share) -> None:
    mask = np.random.default_rng(3).random(shape) < share
    values = brushed(brush(mask))
    assert (values == 255 * mask.reshape(-1, 1)).all()


def test_a_task_of_label_studio_has_the_labels_of_its_interface(photo) -> None:
    tasks, interface = handed_on("labelstudio", photo, result_of())
    (task,) = json.loads(tasks.read_text())
    assert task["data"]["image"] == photo.as_posix()
    (prediction,) = task["predictions"]
    assert len(prediction["result"]) == 4
    for entry, index in zip(prediction["result"], (0, 1, 2, 4), strict=True):
        mask = brushed(entry["value"]["rle"])[:, 0].reshape(SIZE) > 0
        assert (mask == result_of().regions.mask(index)).all()
        assert (entry["original_height"], entry["original_width"]) == SIZE
    listed: dict[str, dict[str, str | None]] = {}

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs) -> None:
            listed.setdefault(tag, {}).setdefault(dict(attrs).get("name") or dict(attrs).get("value"), None)

    Reader().feed(interface.read_text())
    assert set(listed["label"]) == set(NAMES)
    assert {entry["from_name"] for entry in prediction["result"]} <= set(listed["brushlabels"])
    assert {entry["to_name"] for entry in prediction["result"]} <= set(listed["image"])


PLACES = {
    "a bucket": (["s3://b/in/x.jpg", "s3://b/in/deep/y.jpg"], ["x.jpg", "deep/y.jpg"]),
    "one of a bucket": (["s3://b/in/x.jpg"], ["x.jpg"]),
    "two buckets": (["s3://one/x.jpg", "s3://two/x.jpg"], ["one/x.jpg", "two/x.jpg"]),
    "an archive": (["tar://a/x.jpg::/d/p.tar", "tar://a/y.jpg::/d/p.tar"], ["x.jpg", "y.jpg"]),
    "two archives": (["tar://x.jpg::/d/p.tar", "tar://x.jpg::/d/q.tar"],) * 2,
    "a disk and a bucket": (["/d/x.jpg", "s3://b/y.jpg"], ["/d/x.jpg", "s3://b/y.jpg"]),
    "a disk": (["/d/in/x.jpg", "/d/in/deep/y.jpg"], ["x.jpg", "deep/y.jpg"]),
}


@pytest.mark.parametrize("name", PLACES)
def test_images_anywhere_keep_their_addresses(name, tmp_path) -> None:
    places, told = PLACES[name]
    coco, studio = (open_export(kind, tmp_path, NAMES) for kind in ("coco", "labelstudio"))
    for number, place in enumerate(places):
        coco.add(place, label_map(), str(number))
        studio.add(place, label_map(), str(number))
    assert [image["file_name"] for image in json.loads(coco.close()[0].read_text())["images"]] == told
    assert [task["data"]["image"] for task in json.loads(studio.close()[0].read_text())] == places


def test_yolo_is_read_by_supervision(photo) -> None:
    supervision = pytest.importorskip("supervision")
    listing, folder = handed_on("yolo", photo, result_of())
    data = supervision.DetectionDataset.from_yolo(str(photo.parent), str(folder), str(listing), force_masks=True)
    assert data.classes == list(NAMES)
    (_, _, found), *_ = list(data)
    parts = {0: [0], 1: [1], 2: [2], 3: [4], 4: [4]}
    assert found.class_id.tolist() == [0, 1, 2, 0, 0]
    for number, (mask, own) in enumerate(zip(found.mask, parts.values(), strict=True)):
        want = result_of().regions.mask(own[0])
        want = want if number < 3 else want & mask  # one of its two parts
        assert (mask & want).sum() / (mask | want).sum() > (0.8 if number != 2 else 0.7)


def test_yolo_is_a_data_set_that_ultralytics_trains_on(tmp_path, monkeypatch) -> None:
    """Run from elsewhere, with names that others would be told apart by, in folders, one of them called images."""
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "config"))
    data = pytest.importorskip("ultralytics.data.utils")
    from ultralytics.data.dataset import YOLODataset

    names = ["x.png", "a/x.png", "images/x.png", "labels/x.png", "labels_/x.png", "what? a name:.jpg", "v1.2.png"]
    for name in names:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(SCENES / "wood.png").convert("RGB").save(path)
    out = tmp_path / "out"
    words = ["--model", "mini", "--labels", "penguin,mushroom", "--out", str(out), "--as", "yolo"]
    assert CliRunner().invoke(app, ["segment", str(tmp_path / "in"), *words]).exit_code == 0
    shutil.copytree(tmp_path / "in", out / "images", dirs_exist_ok=True)
    found = data.check_det_dataset(str(out / "yolo.yaml"), autodownload=False)
    assert found["names"] == {0: "penguin", 1: "mushroom"}
    assert found["train"] == found["val"] == str(out / "images")
    read = YOLODataset(img_path=found["train"], data=found, task="segment", augment=False)
    assert sorted(Path(row["im_file"]).relative_to(out / "images").as_posix() for row in read.labels) == sorted(names)
    assert all({0, 1} == set(row["cls"].ravel().tolist()) for row in read.labels)


def test_yolo_refuses_photos_that_would_share_their_labels(tmp_path) -> None:
    for name in ("x.png", "x.jpg"):
        Image.new("RGB", SIZE[::-1]).save(tmp_path / name)
    words = ["segment", str(tmp_path), "--model", "mini", "--labels", "cat", "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, [*words, "--as", "yolo"])
    assert refused.exit_code == 4
    assert "two photos would share 'labels/x.txt'" in refused.stderr
    assert not (tmp_path / "out" / "x-png.json").exists()
    export = open_export("yolo", tmp_path / "own", NAMES)
    export.add(tmp_path / "x.png", label_map())
    with pytest.raises(OutputError, match="rename one"):
        export.add(tmp_path / "x.jpg", label_map())


@pytest.mark.parametrize("kind", EXPORTS)
def test_no_name_of_a_photo_is_that_of_a_file_of_an_export(tmp_path, kind) -> None:
    """Photos called as what exports write, and in folders called so; a second run finds all done."""
    one = EXPORTS[kind]
    files = [Path(name).stem for name in (one.file, *one.others) if name] + ["x", "x_confidence"]
    for name in [*files, *([f"{one.part}/x", f"{one.part.upper()}/y"] if one.part else [])]:
        path = tmp_path / "in" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24), (200, 30, 20)).save(path)
    words = ["segment", str(tmp_path / "in"), "--model", "mini", "--labels", "cat,dog", "--out", str(tmp_path / "out")]
    for _ in range(2):
        told = CliRunner().invoke(app, [*words, "--as", kind])
        assert told.exit_code == 0, told.output


def filled(rings: list[list[list[float]]], size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre lies in rings, by the even-odd rule."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    inside = np.zeros(size, bool)
    for ring in rings:
        for (x0, y0), (x1, y1) in itertools.pairwise(ring):
            crosses = (y0 > y) != (y1 > y)
            inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0 or 1))
    return inside


@pytest.mark.parametrize("result", [result_of(), label_map()], ids=["regions", "label map"])
def test_geojson_fills_to_the_masks(photo, result) -> None:
    (folder,) = handed_on("geojson", photo, result)
    content = json.loads((folder / "x.geojson").read_text())
    found = as_regions(result)
    assert [feature["properties"]["name"] for feature in content["features"]] == list(found.found)
    for index, feature in enumerate(content["features"]):
        rings = [ring for part in feature["geometry"]["coordinates"] for ring in part]
        assert all(ring[0] == ring[-1] for ring in rings)
        assert (filled(rings, SIZE) == found.regions.mask(index)).all()
        assert feature["properties"]["area"] == found.regions.areas[index]


@pytest.mark.parametrize("seed", range(6))
def test_outlines_along_pixels_are_exact_and_turn_the_right_way(seed) -> None:
    mask = np.random.default_rng(seed).random((17, 23)) < (0.3, 0.5, 0.7)[seed % 3]
    parts = outlined(mask)
    rings = [[*ring.tolist(), ring[0].tolist()] for part in parts for ring in part]
    assert (filled(rings, mask.shape) == mask).all()

    def area(ring) -> float:
        return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True)) / 2

    assert all(area(part[0]) > 0 and all(area(hole) < 0 for hole in part[1:]) for part in parts)
    assert sum(area(ring) for part in parts for ring in part) == mask.sum()


def test_arrays_and_label_maps_are_the_result(photo) -> None:
    (folder,) = handed_on("npz", photo, result_of())
    held = np.load(folder / "x.npz", allow_pickle=False)
    assert (np.unpackbits(held["masks"], axis=-1, count=SIZE[1]).astype(bool) == result_of().masks).all()
    assert held["names"].tolist() == list(NAMES)
    legend, folder = handed_on("png", photo, label_map())
    stored = np.array(Image.open(folder / "x.png"))
    assert (np.where(stored == 255, -1, stored.astype(int)) == label_map().labels).all()
    told = json.loads(legend.read_text())
    assert [row["name"] for row in told["classes"]] == list(NAMES)
    assert Image.open(folder / "x.png").getpalette()[:3] == told["classes"][0]["colour"]


def test_many_classes_take_sixteen_bits(tmp_path) -> None:
    names = tuple(f"class {number}" for number in range(300))
    labels = np.array([[299, -1], [0, 255]], np.int16)
    result = SegmentationResult(labels, names, np.ones((2, 2), np.float32), np.zeros((2, 2, 3), np.uint8))
    export = open_export("png", tmp_path, names)
    export.add(tmp_path / "p.png", result, "p")
    legend, folder = export.close()
    stored = np.array(Image.open(folder / "p.png")).astype(int)
    nothing = json.loads(legend.read_text())["nothing"]
    assert (np.where(stored == nothing, -1, stored) == labels).all()


@pytest.mark.parametrize("kind", EXPORTS)
def test_every_kind_takes_results_of_both_sorts_and_empty_ones(photo, kind) -> None:
    nothing = SegmentationResult(
        np.full(SIZE, -1, np.int16), NAMES, np.zeros(SIZE, np.float32), np.zeros((*SIZE, 3), np.uint8)
    )
    export = open_export(kind, photo.parents[1] / "out", NAMES)
    for number, result in enumerate((label_map(), result_of(), nothing, result_of().select([]))):
        export.add(photo, result, f"n{number}")
    assert all(path.exists() for path in export.close())


@pytest.mark.parametrize("text", ["cocoa", "coco,", "", "coco;yolo"])
def test_kinds_that_do_not_exist_are_refused(text) -> None:
    with pytest.raises(OptionError, match=r"no export .*there are coco"):
        parse_kinds(text)


def test_segment_hands_a_folder_on(tmp_path) -> None:
    """One COCO file with stable ids; what a later run adds leaves the earlier files as they were."""
    from pycocotools.coco import COCO

    out = tmp_path / "out"
    words = ["--model", "mini", "--labels", "penguin,cactus,dog", "--out", str(out), "--as", ",".join(EXPORTS)]
    assert CliRunner().invoke(app, ["segment", str(SCENES), *words]).exit_code == 0
    first = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = CliRunner().invoke(app, ["segment", str(SCENES), *words])
    assert again.exit_code == 0, again.output
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == first
    data = COCO(str(out / "coco.json"))
    for image in data.loadImgs(data.getImgIds()):
        result = SegmentationResult.load(out / Path(image["file_name"]).with_suffix(".png").name)
        for annotation in data.loadAnns(data.getAnnIds(imgIds=image["id"])):
            assert (data.annToMask(annotation) == (result.labels == annotation["category_id"] - 1)).all()
    for kind, one in EXPORTS.items():
        assert one.file is None or (out / one.file).exists(), kind
        assert one.part is None or len(list((out / one.part).iterdir())) == 3, kind
