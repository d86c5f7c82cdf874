"""Pictures of any size, block by block: equal to the whole picture, what is written, and what cannot be done so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from densevl import Segmenter
from densevl.cli import app
from densevl.errors import DensevlError, ImageError, OptionError, ProtocolError, RecipeError
from densevl.images import read_image, resize
from densevl.inference import WindowGrid
from densevl.pipelines.rasters import result as rasters
from densevl.pipelines.rasters.result import BlockSegmenter
from densevl.pipelines.rasters.source import Raster

rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")

SCENE = Path(__file__).parents[2] / "demo" / "scenes" / "wood.png"
LABELS = "dog, elephant, penguin | bird, fish, house"
UTM = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(500_000, 5_300_000, 0.5, 0.5)}


def noisy(height: int, width: int) -> np.ndarray:
    rgb = resize(read_image(SCENE), (height, width))
    return rgb ^ np.random.default_rng(0).integers(0, 8, rgb.shape, dtype=np.uint8)


def tiff(path: Path, pixels: np.ndarray, **how: Any) -> Path:
    """Write (H, W, bands) as a tiled GeoTIFF."""
    height, width, count = pixels.shape
    size = {"height": height, "width": width, "count": count, "dtype": pixels.dtype.name}
    colours = {"photometric": "RGB"} if count == 3 else {}
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64}
    with rasterio.open(path, "w", driver="GTiff", **size, **colours, **tiles, **UTM, **how) as file:
        file.write(pixels.transpose(2, 0, 1))
    return path


@pytest.fixture(scope="module")
def field(tmp_path_factory) -> Path:
    return tiff(tmp_path_factory.mktemp("field") / "field.tif", noisy(300, 420))


@pytest.fixture(scope="module")
def segment() -> BlockSegmenter:
    return BlockSegmenter("mini")


@settings(max_examples=6, deadline=None)
@given(
    height=st.integers(1, 280),
    width=st.integers(1, 280),
    crop=st.integers(40, 130),
    stride=st.none() | st.integers(30, 40),
    blend=st.sampled_from(["pixel", "patch"]),
    short_side=st.none() | st.integers(50, 300),
)
def test_blocks_equal_the_whole_picture(tmp_path_factory, height, width, crop, stride, blend, short_side) -> None:
    path = tmp_path_factory.mktemp("png") / "x.png"
    Image.fromarray(noisy(height, width)).save(path)
    protocol = {"crop": crop, "stride": stride, "blend": blend, "short_side": short_side}
    segment = BlockSegmenter("mini", protocol=protocol)
    whole = segment.segmenter(path, LABELS)
    blocks = list(segment(path, LABELS).blocks())
    assert np.array_equal(np.concatenate([labels for _, labels, _ in blocks]), whole.labels)
    assert np.array_equal(np.concatenate([confidence for *_, confidence in blocks]), whole.confidence)


def test_the_plan_of_a_whole_axis_is_never_made(segment, field, monkeypatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("densevl.inference.windows.axis_plan", never)
    assert sum(len(labels) for _, labels, _ in segment(field, LABELS).blocks()) == 300


def test_low_blocks_are_taken_where_rows_of_windows_are_large(segment, field, monkeypatch) -> None:
    whole = np.concatenate([labels for _, labels, _ in segment(field, LABELS).blocks()])
    monkeypatch.setattr("densevl.inference.blocks.HELD", 1)
    blocks = list(segment(field, LABELS).blocks())
    assert {len(labels) for _, labels, _ in blocks} <= {16, 300 % 16}
    assert np.array_equal(np.concatenate([labels for _, labels, _ in blocks]), whole)


def test_what_is_written_lies_where_the_picture_lies(segment, field, tmp_path) -> None:
    result = segment(field, LABELS)
    result.polygons = True
    written = result.save(tmp_path / "out" / "field.tif")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in written)
    whole = Segmenter("mini")(field, LABELS)
    with rasterio.open(tmp_path / "out" / "field.tif") as file:
        labels = file.read(1)
        assert (file.crs, file.transform, file.nodata) == (UTM["crs"], UTM["transform"], 255)
        assert file.block_shapes == [(256, 256)]
        assert json.loads(file.tags()["names"]) == list(whole.names)
        assert file.colormap(1)[0] == (230, 57, 70, 255)
    assert np.array_equal(labels, whole.labels.astype(np.uint8))
    with rasterio.open(tmp_path / "out" / "field_confidence.tif") as file:
        assert np.array_equal(file.read(1), np.rint(whole.confidence * 255))
    key = json.loads((tmp_path / "out" / "field.json").read_text())
    assert key["fractions"] == whole.fractions() == result.fractions()
    shapes = json.loads((tmp_path / "out" / "field.geojson").read_text())
    from rasterio.features import rasterize
    from rasterio.warp import transform_geom

    drawn = rasterize(
        [
            (transform_geom("EPSG:4326", UTM["crs"], row["geometry"]), row["properties"]["number"])
            for row in shapes["features"]
        ],
        (300, 420),
        fill=255,
        transform=UTM["transform"],
        dtype=np.uint8,
    )
    assert np.array_equal(drawn, labels)
    longitude, latitude = np.array(shapes["features"][0]["geometry"]["coordinates"][0]).T
    assert (np.abs(longitude - 15) < 0.1).all()
    assert (np.abs(latitude - 47.85) < 0.1).all()


def test_more_than_255_classes_take_16_bits(tmp_path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(noisy(40, 50)).save(path)
    names = [f"thing {number}" for number in range(300)]
    BlockSegmenter("mini", background="none")(path, names).save(tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as file:
        assert (file.dtypes[0], file.nodata, file.crs) == ("uint16", 65535, None)
        whole = Segmenter("mini", background="none")(path, names)
        assert np.array_equal(file.read(1), whole.labels.astype(np.uint16))


def test_a_run_that_is_broken_off_goes_on_and_gives_the_same_bytes(segment, field, tmp_path, monkeypatch) -> None:
    segment(field, LABELS).save(tmp_path / "a" / "x.tif")
    monkeypatch.setattr(rasters.BlockResult, "rows", lambda *_: 64)

    def stop(share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    result = segment(field, LABELS)
    result.progress = stop
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / "b" / "x.tif")
    (left,) = (tmp_path / "b").iterdir()
    with open(left, "ab") as file:
        file.write(b"\0" * 1000)  # a row that a kill cut
    shares: list[float] = []
    again = segment(field, LABELS)
    again.progress = shares.append
    again.save(tmp_path / "b" / "x.tif")
    assert len(shares) == 2
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    assert len(list((tmp_path / "b").iterdir())) == 4


def test_rows_of_another_run_are_not_taken(segment, field, tmp_path) -> None:
    result = segment(field, "dog, cat")
    result.progress = lambda share: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / "x.tif")
    segment(field, LABELS).save(tmp_path / "x.tif")
    with rasterio.open(tmp_path / "x.tif") as file:
        assert np.array_equal(file.read(1), Segmenter("mini")(field, LABELS).labels.astype(np.uint8))


KINDS = {
    "RGB": (noisy(50, 60), {}),
    "grey": (noisy(50, 60)[..., 0], {}),
    "alpha is laid on white": (np.dstack([noisy(50, 60), noisy(50, 60)[..., :1] | 1]), {}),
    "one bit": (noisy(50, 60)[..., 0] > 100, {}),
    "palette": (Image.fromarray(noisy(50, 60)).quantize(40), {}),
    "print": (Image.fromarray(noisy(50, 60)).convert("CMYK"), {"only": "tif"}),
    "JPEG in TIFF": (noisy(50, 60), {"only": "tif", "compression": "jpeg"}),
}


@pytest.mark.parametrize("ending", ["tif", "png"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_that_read_image_gives(kind, ending, tmp_path) -> None:
    pixels, how = KINDS[kind]
    how = dict(how)
    if how.pop("only", ending) != ending:
        pytest.skip("PNG has none")
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(tmp_path / f"x.{ending}", **how)
    with Raster(tmp_path / f"x.{ending}") as raster:
        rows = np.concatenate([raster.rows(0, 7), raster.rows(7, 50)])
    assert np.array_equal(rows, read_image(tmp_path / f"x.{ending}"))


def test_values_beyond_8_bits_are_stretched_as_told(tmp_path) -> None:
    values = noisy(40, 50).astype(np.uint16) * 10
    with Raster(tiff(tmp_path / "x.tif", values), value_range=(0, 2550)) as raster:
        assert np.array_equal(raster.rows(0, 40), noisy(40, 50))


def test_bands_are_taken_by_number_or_by_what_the_file_calls_them(tmp_path) -> None:
    four = np.dstack([noisy(40, 50)[..., 0] // 2, noisy(40, 50)])
    with Raster(tiff(tmp_path / "x.tif", four, photometric="MINISBLACK"), bands=(2, 3, 4)) as raster:
        assert np.array_equal(raster.rows(0, 40), noisy(40, 50))
    with rasterio.open(tmp_path / "x.tif", "r+") as file:
        file.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("gray", "red", "green", "blue")]
    with Raster(tmp_path / "x.tif") as raster:
        assert np.array_equal(raster.rows(0, 40), noisy(40, 50))


def test_where_the_file_holds_nothing_there_is_nothing(segment, tmp_path) -> None:
    rgb = noisy(100, 120)
    rgb[30:50, 40:90] = 0
    _, labels, confidence = next(segment(tiff(tmp_path / "x.tif", rgb, nodata=0), LABELS).blocks())
    assert (labels[30:50, 40:90] == -1).all()
    assert (confidence[30:50, 40:90] == 0).all()


def _bad(name: str, folder: Path) -> Any:
    path = folder / "x.tif"
    if name == "16 bits":
        return tiff(path, noisy(40, 50).astype(np.uint16) * 9)
    if name == "floats":
        return tiff(path, noisy(40, 50).astype(np.float32))
    if name == "five bands":
        return tiff(path, np.zeros((40, 50, 5), np.uint8), photometric="MINISBLACK")
    if name == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(noisy(40, 50)).save(path, exif=exif)
    if name == "cut":
        tiff(path, noisy(300, 300))
        path.write_bytes(path.read_bytes()[:150_000])
    if name == "text":
        path.write_text("no picture")
    return path if name != "address" else "s3://bucket/x.tif"


@pytest.mark.parametrize(
    ("name", "told"),
    {
        "16 bits": "uint16 instead of 8-bit colours.*--range",
        "floats": "float32 instead of 8-bit colours.*--range",
        "five bands": "5 bands.*--bands",
        "turned": "orientation 6",
        "cut": "cannot be read completely|is damaged",
        "text": "not a TIFF, PNG, JPEG or JPEG 2000",
        "absent": "does not exist",
        "address": "copy it first",
    }.items(),
)
def test_a_file_that_cannot_be_used_is_one_line(name, told, segment, tmp_path) -> None:
    with pytest.raises(ImageError, match=told) as error:
        list(segment(_bad(name, tmp_path), LABELS).blocks())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "told"), [({"bands": (1, 9, 2)}, "has 3"), ({"bands": (1, 2)}, "has 3"), ({"value_range": (5, 5)}, "5,5")]
)
def test_bands_and_ranges_that_cannot_be_are_refused(given, told, segment, field) -> None:
    with pytest.raises(OptionError, match=told):
        segment(field, LABELS, **given)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"views": "flip"}, RecipeError),
        ({"refine": "pamr"}, OptionError),
        ({"presence": 0.5}, OptionError),
        ({"protocol": {"plan": "whole"}}, ProtocolError),
        ({"protocol": {"crop": None}}, ProtocolError),
        ({"recipe": "lposs", "proxy": "mini-sam"}, RecipeError),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_needs_the_whole_picture_is_refused(given, error) -> None:
    with pytest.raises(error) as told:
        BlockSegmenter("mini", **given)
    assert isinstance(told.value, DensevlError)


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["segment", *map(str, arguments), "--labels", LABELS, "--model", "mini"])


def test_the_command_writes_geotiff_and_does_nothing_twice(field, tmp_path) -> None:
    for said in ("results in", "is done already"):
        done = run(
            field, "--geotiff", "--polygons", "--json" if said != "results in" else "--strict", "--out", tmp_path / "o"
        )
        assert done.exit_code == 0, done.output
        assert said in done.output
    assert (tmp_path / "o" / "field.geojson").is_file()


def test_one_huge_picture_goes_block_by_block_by_itself(field, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("densevl.images.limit.MAX_PIXELS", 100_000)
    done = run(field, "--out", tmp_path / "o")
    assert done.exit_code == 0, done.output
    assert "block by block" in done.stderr
    assert (tmp_path / "o" / "field.tif").is_file()


def test_a_folder_with_a_cut_file_does_the_others(field, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tif").write_bytes(field.read_bytes())
    (tmp_path / "in" / "b.tif").write_bytes(field.read_bytes()[:200_000])
    done = run(tmp_path / "in", "--geotiff", "--out", tmp_path / "o")
    assert done.exit_code == 3, done.output
    assert sorted(path.name for path in (tmp_path / "o").glob("*.tif")) == ["a.tif", "a_confidence.tif"]


def test_options_of_geotiff_do_not_stand_alone(field) -> None:
    done = run(field, "--bands", "1,2,3")
    assert done.exit_code == 2
    assert "--geotiff" in done.stderr


def test_without_the_extra_the_line_names_it(field, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    done = run(field, "--geotiff")
    assert done.exit_code == 2
    assert 'pip install "densevl[geo]"' in done.stderr


def test_exports_and_bits_do_not_go_block_by_block(field) -> None:
    for more in (["--as", "coco"], ["--bits", "12"]):
        done = run(field, "--geotiff", *more)
        assert done.exit_code == 2, done.output
        assert "--as and --bits" in done.stderr


def test_an_image_too_long_to_be_decoded_at_once_is_refused_in_a_line_before_the_model_runs(monkeypatch) -> None:
    segment = Segmenter("mini")
    monkeypatch.setattr(segment.backbone, "normalize", None)  # what comes after
    with pytest.raises(ImageError, match=r"39x1000000 is too long to be decoded at once .*--geotiff"):
        segment(np.zeros((39, 1_000_000, 3), np.uint8), LABELS)
    with pytest.raises(ImageError, match="block by block"):
        WindowGrid.place(39, 1_000_000, 96, None, 8).plan(39, 1_000_000)
