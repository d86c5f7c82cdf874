"""What all results share: files that read back equal, `only`, notebooks, and equality."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densevl.anomaly.result import AnomalyResult, Thresholds
from densevl.errors import DensevlError, OutputError
from densevl.proposals import Proposals
from densevl.regions.result import RegionResult
from densevl.results import SegmentationResult

ODD = "<script>alert('x')</script> & \"q\""
NAMES = ("road", "car", ODD)
SIZE = (6, 9)


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)).save(path)
    return path


def segmentation(photo: Path) -> SegmentationResult:
    rng = np.random.default_rng(1)
    return SegmentationResult(
        rng.integers(-1, 3, SIZE).astype(np.int16),
        NAMES,
        rng.uniform(0, 1, SIZE).astype(np.float32),
        np.array(Image.open(photo)),
        {"image": str(photo), "seconds": 1.25, "size": (1, 2), "model": "mini"},
        ("a <warning>",),
        scores_fn=lambda: rng.uniform(0, 1, (3, *SIZE)),
    )


def regions(photo: Path) -> RegionResult:
    rng = np.random.default_rng(2)
    masks = rng.integers(0, 2, (5, *SIZE)).astype(bool)
    masks[3] = False
    scores = rng.uniform(0, 0.3, (5, 3)).astype(np.float32)
    labels = np.array([2, -1, 0, -1, 2])
    return RegionResult(
        Proposals.from_masks(masks, quality=rng.uniform(0, 1, 5)),
        NAMES,
        scores,
        np.full(5, 0.2, np.float32),
        labels,
        scores.max(axis=1),
        np.array(Image.open(photo)),
        meta={"image": str(photo), "seconds": 2.0},
        warnings=("a <warning>",),
    )


def anomaly(photo: Path, thresholds: Thresholds | None = Thresholds(0.5, 0.25, 0.01, 7)) -> AnomalyResult:
    grid = np.random.default_rng(3).uniform(0, 1, (2, 3)).astype(np.float32)
    meta = {"image": str(photo), "seconds": 0.5}
    return AnomalyResult(0.75, grid, {"text": grid}, np.array(Image.open(photo)), thresholds, meta, ("a <warning>",))


def plain(photo: Path) -> AnomalyResult:
    return anomaly(photo, None)


KINDS = {segmentation: ".png", regions: ".json", anomaly: ".png", plain: ".png"}
each = pytest.mark.parametrize("make", KINDS)


@each
def test_what_is_saved_reads_back_equal(make, photo, tmp_path) -> None:
    made = make(photo)
    written = made.save(tmp_path / "out" / f"x{KINDS[make]}")
    read = type(made).load(tmp_path / "out" / f"x{KINDS[make]}")
    assert read == made
    assert np.array_equal(read.image, made.image)
    assert read.warnings == made.warnings
    again = read.save(tmp_path / "again" / f"x{KINDS[make]}")
    assert [a.read_bytes() == b.read_bytes() for a, b in zip(written, again, strict=True)] == [True] * len(written)
    assert b"densevl" in (tmp_path / "out" / "x.json").read_bytes()[:100], "so that it is known as densevl's own"


@each
def test_a_file_of_the_user_is_replaced_only_if_asked(make, photo, tmp_path) -> None:
    made, end = make(photo), KINDS[make]
    for path in made.save(tmp_path / f"x{end}"):
        kept = {path: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".json"}
        (tmp_path / "x.json").write_bytes(b"{}")
        path.write_bytes(b"theirs")
        with pytest.raises(OutputError, match=r"not written by densevl .* name another path.* overwrite=True$"):
            made.save(tmp_path / f"x{end}")
        assert all(other.read_bytes() == data for other, data in kept.items() if other != path)
        assert path.read_bytes() == b"theirs"
        made.save(tmp_path / f"x{end}", overwrite=True)
        made.save(tmp_path / f"x{end}")


@each
def test_a_result_never_replaces_its_photo(make, photo, tmp_path) -> None:
    made, before = make(photo), photo.read_bytes()
    target = photo.with_suffix(KINDS[make])
    if target == photo:
        regions(photo).save(tmp_path / "photo.json")
        with pytest.raises(OutputError, match="is one of the inputs"):
            made.save(target, overwrite=True)
        with pytest.raises(OutputError, match="not written by densevl"):  # an array does not say where it is from
            replace(made, meta={}).save(target)
    else:
        made.save(target)
    assert photo.read_bytes() == before


@each
@pytest.mark.parametrize("path", [None, 3, ["x.png"]])
def test_what_is_not_a_path_is_one_line(make, path, photo) -> None:
    with pytest.raises(OutputError, match=f"cannot save to a {type(path).__name__}: give the path of a file"):
        make(photo).save(path)


@each
def test_a_second_run_gives_the_same_files(make, photo, tmp_path) -> None:
    one, other = make(photo), make(photo)
    other = replace(other, meta={**other.meta, "seconds": 9.0})
    assert one == other
    files = [made.save(tmp_path / name / f"x{KINDS[make]}") for name, made in (("a", one), ("b", other))]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


@each
def test_equality_sees_every_difference(make, photo) -> None:
    made = make(photo)
    assert made != replace(made, meta={**made.meta, "model": "photo"})
    assert made != replace(made, warnings=())
    assert made != "a result"
    changed = {
        segmentation: {"labels": np.roll(made.labels, 1) if make is segmentation else None},
        regions: {"confidence": getattr(made, "confidence", None) * np.float32(0.5) if make is regions else None},
    }.get(make, {"score": 0.1})
    assert made != replace(made, **changed)
    with pytest.raises(TypeError, match="unhashable"):
        hash(made)


@each
def test_a_photo_that_is_gone_is_white_and_said(make, photo, tmp_path, caplog) -> None:
    made = make(photo)
    made.save(tmp_path / f"x{KINDS[make]}")
    photo.rename(tmp_path / "moved.png")
    read = type(made).load(tmp_path / f"x{KINDS[make]}")
    assert (read.image == 255).all()
    assert "without its photo" in caplog.text
    assert read == made, "the photo is not what a result says"
    given = type(made).load(tmp_path / f"x{KINDS[make]}", image=tmp_path / "moved.png")
    assert np.array_equal(given.image, made.image)
    with pytest.raises(DensevlError, match="another result"):
        type(made).load(tmp_path / f"x{KINDS[make]}", image=np.zeros((3, 3, 3), np.uint8))


@each
@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"size": 3}', b"\xff", b"[" * 10_000])
def test_damaged_files_are_one_line(make, content, photo, tmp_path) -> None:
    made = make(photo)
    made.save(tmp_path / f"x{KINDS[make]}")
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DensevlError) as caught:
        type(made).load(tmp_path / f"x{KINDS[make]}")
    assert "\n" not in str(caught.value)
    with pytest.raises(DensevlError, match="cannot be read"):
        type(made).load(tmp_path / f"none{KINDS[make]}")
    for names in (5, None, [[]]):
        with pytest.raises(DensevlError, match="no class"):
            made.only(names)


@pytest.mark.parametrize("content", [b"", b"x", b"\x93NUMPY"])
def test_a_damaged_map_is_one_line(content, photo, tmp_path) -> None:
    made = anomaly(photo)
    made.save(tmp_path / "x.png")
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(DensevlError, match="cannot be read"):
        type(made).load(tmp_path / "x.png")


def test_an_ending_in_capitals_reads_back(photo, tmp_path) -> None:
    made = segmentation(photo)
    made.save(tmp_path / "x.PNG")
    assert type(made).load(tmp_path / "x.PNG") == made


@pytest.mark.parametrize("make", [segmentation, regions])
def test_only_some_classes_leave_the_rest_nothing(make, photo) -> None:
    made = make(photo)
    few = made.only([ODD, "road"])
    assert few.names == ("road", ODD), "in their own order"
    for label, name in enumerate(few.names):
        assert np.array_equal(few.labels == label, made.labels == made.names.index(name))
    assert (few.labels == -1).sum() == ((made.labels == -1) | (made.labels == 1)).sum()
    assert np.array_equal(few.confidence, made.confidence)
    assert few.scores.shape == (2, *SIZE) or few.scores.shape == (5, 2)
    assert made.only("car").names == ("car",)
    for wrong, match in (("raod", "closest: road"), ([], "at least one"), (["road", 3], "no class 3")):
        with pytest.raises(DensevlError, match=match):
            made.only(wrong)


def test_only_keeps_the_probabilities_of_a_place(tmp_path) -> None:
    labels = np.zeros((2, 2), np.int16)
    chance = np.array([0.5, 0.2, 0.2, 0.1], np.float32).reshape(4, 1, 1)
    made = SegmentationResult(
        labels,
        ("a", "b", "c"),
        np.full((2, 2), 0.5, np.float32),
        np.zeros((2, 2, 3), np.uint8),
        chances_fn=lambda rows, cols: np.broadcast_to(chance, (4, len(rows), len(cols))),
    )
    assert made.only(["b", "c"]).at(0, 0) == [
        ("nothing", pytest.approx(0.6)),
        ("b", pytest.approx(0.2)),
        ("c", pytest.approx(0.2)),
    ]


@each
def test_a_notebook_shows_picture_and_names_without_script(make, photo) -> None:
    shown = make(photo)._repr_html_()
    assert shown.startswith("<div>")
    assert 'src="data:image/png;base64,' in shown
    assert "<script" not in shown
    assert "a &lt;warning&gt;" in shown
    if make in (segmentation, regions):
        assert "&lt;script&gt;" in shown


def test_a_large_picture_is_shrunk_for_a_notebook() -> None:
    import base64
    import io

    size = (40, 2000)
    made = SegmentationResult(
        np.zeros(size, np.int16), ("a",), np.ones(size, np.float32), np.zeros((*size, 3), np.uint8)
    )
    data = made._repr_html_().split("base64,")[1].split('"')[0]
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (800, 16)


def test_an_anomaly_is_one_class(photo) -> None:
    made = anomaly(photo)
    assert made.names == ("anomalous",)
    assert made.scores.shape == (1, *SIZE)
    assert made.only("anomalous") is made
    with pytest.raises(DensevlError, match="no class 'car'"):
        made.only("car")
    assert made.overlay(span=(0.0, 1.0)).shape == (*SIZE, 3)


def test_regions_read_back_in_their_order_with_those_that_are_nothing(photo, tmp_path) -> None:
    made = regions(photo)
    made.save(tmp_path / "x.json")
    content = json.loads((tmp_path / "x.json").read_text())
    assert len(content["regions"]) == 3
    assert [row["index"] for row in content["unnamed"]] == [1, 3]
    read = RegionResult.load(tmp_path / "x.json")
    assert read.found == made.found
    assert np.array_equal(read.masks, made.masks)
    assert [row["category_name"] for row in read.to_coco()] == [row["category_name"] for row in made.to_coco()]
    assert len(read.instances(threshold=0.0)) <= 3
