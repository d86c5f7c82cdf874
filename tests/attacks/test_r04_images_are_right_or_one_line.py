"""R4: the image reader never lies. Whatever the bytes, it gives the right pixels or one line."""

from __future__ import annotations

import io
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from attacks.pictures import FORMATS, MORE_FORMATS, corpus, encoded, one_line, photo, png_chunk, read
from densevl.errors import ImageError
from densevl.images import header, read_image, read_labels

# Formats -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_its_pixels_whatever_the_extension(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "picture.xyz"
    path.write_bytes(encoded(photo(), kind))
    rgb = read_image(path)
    assert rgb.dtype == np.uint8
    assert rgb.shape == (60, 90, 3)
    assert rgb.flags.c_contiguous
    assert rgb.flags.writeable
    tolerance = {"JPEG": 6, "GIF": 40}.get(kind, 0)
    assert np.abs(rgb.astype(float) - photo()).mean() <= tolerance


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (3, 2)])
def test_thin_images_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "thin.png"
    Image.new("RGB", size, (1, 2, 3)).save(path)
    rgb = read_image(path)
    assert rgb.shape == (size[1], size[0], 3)
    assert (rgb == (1, 2, 3)).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("truncated_allowed", [False, True], ids=["", "LOAD_TRUNCATED_IMAGES"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("kind", [*FORMATS, *MORE_FORMATS])
def test_a_cut_file_never_has_a_grey_tail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, share: float, truncated_allowed: bool
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", truncated_allowed)
    data = encoded(photo(), kind)
    path = tmp_path / "cut"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert "cut" in one_line(error)  # its name
    assert ImageFile.LOAD_TRUNCATED_IMAGES is truncated_allowed


@pytest.mark.parametrize("truncated_allowed", [False, True], ids=["", "LOAD_TRUNCATED_IMAGES"])
def test_a_png_with_any_flipped_bit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, truncated_allowed: bool
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", truncated_allowed)
    data = encoded(photo(), "PNG")
    path = tmp_path / "flipped.png"
    chance = random.Random(0)
    for _ in range(200):
        damaged = bytearray(data)
        damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ImageError):
            read_image(path)


def test_a_tiff_whose_strips_end_early_has_no_black_rows(tmp_path: Path) -> None:
    data = bytearray(encoded(Image.new("L", (4, 3), 9), "TIFF"))
    height_entry = data.index(b"\x01\x01\x04\x00\x01\x00\x00\x00\x03")
    data[height_entry + 8 : height_entry + 12] = (300).to_bytes(4, "little")
    path = tmp_path / "short.tif"
    path.write_bytes(data)
    with pytest.raises(ImageError, match="do not cover"):
        read_image(path)


@pytest.mark.parametrize("kind", [*FORMATS, *MORE_FORMATS])
def test_damaged_files_give_an_array_or_one_line(tmp_path: Path, kind: str) -> None:
    data = encoded(photo(), kind)
    path = tmp_path / "damaged"
    chance = random.Random(1)
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 4, 30])):
            damaged[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                outcome = read_image(path, max_pixels=10**6)
            except ImageError as error:
                outcome = error
        if isinstance(outcome, ImageError):
            assert "\n" not in str(outcome)
        else:
            assert outcome.dtype == np.uint8
            assert outcome.shape[2] == 3


# What is not an image ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty"),
        (b"just some words", "text"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "HTML"),
        (b"\n  <HTML>", "HTML"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"%PDF-1.7\n\x00", "PDF"),
        (b"PK\x03\x04\x00\x00", "archive"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00", "HEIC"),
        (b"\x00\x00\x00\x18ftypisom\x00\x00", "video"),
        (b"P3\n1 1\n255\n1 2 3\n", "plain-text PPM"),
        (b"\x00" * 600, "not of a format"),
        (b"\xff\xd8\xff", "damaged"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"GIF89a", "damaged"),
        (b"BM", "damaged"),
        (b"II*\x00", "damaged"),
        (b"RIFF\x00\x00\x00\x00WEBP", "damaged"),
        (b"P6 ", "damaged"),
        (b"P6 0 5 255 ", "damaged"),
    ],
)
def test_a_file_that_is_no_image_is_named_with_its_cause(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert cause in one_line(error)
    assert "holiday.jpg" in str(error.value)


def test_a_missing_file_suggests_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "street_01.jpg").touch()
    with pytest.raises(ImageError) as error:
        read_image(str(tmp_path / "stret_01.jpg"))
    assert "does not exist" in one_line(error)
    assert "street_01.jpg" in str(error.value)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        (".", "folder"),
        ("no/such/folder/x.jpg", "its folder"),
        ("https://example.org/x.jpg", "download"),
        ("nul\0byte.jpg", "null"),
        ("line\nbreak.jpg", "does not exist"),
        ("x" * 5000, "cannot open"),
        ("/dev/zero", "not a regular file"),
    ],
)
def test_a_path_that_cannot_be_opened_is_one_line(name: str, cause: str) -> None:
    with pytest.raises(ImageError) as error:
        read_image(name)
    assert cause in one_line(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_hang_the_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(tmp_path / "pipe.jpg")


# Modes and orientations ----------------------------------------------------------------------------------------------


def mode_cases() -> dict[str, tuple[str, Callable[[], Image.Image], tuple[int, int, int]]]:
    """Name: (format, picture, the colour its first pixel must become)."""

    def filled(mode: str, colour: object, **info: object) -> Image.Image:
        picture = Image.new(mode, (4, 3), colour)  # type: ignore[arg-type]
        picture.info.update(info)
        return picture

    def palette_image(transparent: bool = False) -> Image.Image:
        picture = Image.new("P", (4, 3), 1)
        picture.putpalette([9, 9, 9, 200, 100, 50])
        if transparent:
            picture.info["transparency"] = 1
        return picture

    def sixteen(value: int) -> Image.Image:
        return Image.fromarray(np.full((3, 4), value, np.uint16))

    return {
        "grey": ("PNG", lambda: filled("L", 77), (77, 77, 77)),
        "one bit white": ("PNG", lambda: filled("1", 1), (255, 255, 255)),
        "one bit black": ("TIFF", lambda: filled("1", 0), (0, 0, 0)),
        "one bit PBM": ("PPM", lambda: filled("1", 1), (255, 255, 255)),
        "grey PGM": ("PPM", lambda: filled("L", 77), (77, 77, 77)),
        "grey, opaque alpha": ("PNG", lambda: filled("LA", (77, 255)), (77, 77, 77)),
        "grey, clear": ("PNG", lambda: filled("LA", (77, 0)), (255, 255, 255)),
        "grey with a clear level": ("PNG", lambda: filled("L", 77, transparency=77), (255, 255, 255)),
        "colour, opaque alpha": ("PNG", lambda: filled("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
        "colour, half clear": ("PNG", lambda: filled("RGBA", (0, 100, 200, 128)), (127, 177, 227)),
        "colour, clear, WebP": ("WEBP", lambda: filled("RGBA", (9, 9, 9, 0)), (255, 255, 255)),
        "colour with a clear colour": ("PNG", lambda: filled("RGB", (1, 2, 3), transparency=(1, 2, 3)), (255,) * 3),
        "palette": ("PNG", palette_image, (200, 100, 50)),
        "palette GIF": ("GIF", palette_image, (200, 100, 50)),
        "palette TIFF": ("TIFF", palette_image, (200, 100, 50)),
        "palette BMP": ("BMP", palette_image, (200, 100, 50)),
        "palette, clear": ("PNG", lambda: palette_image(True), (255, 255, 255)),
        "palette GIF, clear": ("GIF", lambda: palette_image(True), (255, 255, 255)),
        "16 bit full": ("PNG", lambda: sixteen(65535), (255, 255, 255)),
        "16 bit middle": ("PNG", lambda: sixteen(257 * 100 + 128), (100, 100, 100)),
        "16 bit dark": ("PNG", lambda: sixteen(200), (1, 1, 1)),
        "16 bit TIFF": ("TIFF", lambda: sixteen(257 * 100), (100, 100, 100)),
        "16 bit TIFF, LZW": ("TIFF-lzw", lambda: sixteen(257 * 100), (100, 100, 100)),
        "16 bit PGM": ("PPM", lambda: sixteen(257 * 100), (100, 100, 100)),
        "32 bit TIFF": ("TIFF", lambda: filled("I", 257 * 100), (100, 100, 100)),
        "float TIFF": ("TIFF", lambda: filled("F", 0.5), (128, 128, 128)),
        "CMYK TIFF": ("TIFF", lambda: filled("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
        "CMYK JPEG": ("JPEG", lambda: filled("CMYK", (0, 255, 255, 0)), (254, 0, 0)),
        "grey JPEG": ("JPEG", lambda: filled("L", 77), (77, 77, 77)),
    }


@pytest.mark.parametrize("name", mode_cases())
def test_every_pixel_mode_becomes_the_colour_seen(tmp_path: Path, name: str) -> None:
    kind, make, colour = mode_cases()[name]
    path = tmp_path / "picture"
    options = {"transparency": make().info["transparency"]} if "transparency" in make().info else {}
    path.write_bytes(encoded(make(), kind, **options))
    rgb = read_image(path)
    assert rgb.shape == (3, 4, 3)
    assert np.abs(rgb.astype(int) - colour).max() <= (2 if kind == "JPEG" else 0)


@pytest.mark.parametrize("mode_value", [("F", 200.0), ("F", float("nan")), ("I", 70_000), ("I", -1)])
def test_values_without_a_known_range_are_refused_not_clipped(tmp_path: Path, mode_value: tuple[str, float]) -> None:
    path = tmp_path / "depth.tif"
    Image.new(mode_value[0], (4, 3), mode_value[1]).save(path)  # type: ignore[arg-type]
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert "depth.tif" in one_line(error)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "TIFF-lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright_and_its_header_is_as_stored(
    tmp_path: Path, orientation: int, kind: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned"
    path.write_bytes(encoded(photo(), kind, exif=exif.tobytes()))
    with Image.open(path) as raw:
        expected = np.asarray(ImageOps.exif_transpose(raw).convert("RGB"))
        raw_again = read_image(raw)
    assert expected.shape[:2] == ((90, 60) if orientation > 4 else (60, 90))
    np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_array_equal(raw_again, expected)
    assert (header(path).size, header(path).turn) == ((60, 90), orientation)
    stored = read_image(encoded(photo(), kind))
    np.testing.assert_array_equal(read_image(path, exif=False), stored)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_turned_tiffs_of_labels_and_of_deep_colours_are_turned_once_or_not_at_all(orientation: int) -> None:
    tifffile = pytest.importorskip("tifffile")

    def written(pixels: np.ndarray, **how: object) -> bytes:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, pixels, extratags=[(274, "H", 1, orientation, True)], **how)
        return buffer.getvalue()

    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(read_labels(written(ids)), ids)
    deep = np.random.default_rng(0).integers(0, 65536, (3, 4, 3), np.uint16)
    data = written(deep, photometric="rgb")
    np.testing.assert_array_equal(read_image(data, exif=False), deep >> 8)
    assert np.abs(read_image(data, bits=16).astype(int) - read_image(data)).max() <= 1
    assert np.abs(read_image(data, bits=16, exif=False).astype(int) - (deep >> 8)).max() <= 1


def test_exif_behind_the_pixels_of_a_png_is_followed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(), "PNG")
    late = data[:-12] + png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + data[-12:]
    np.testing.assert_array_equal(read_image(late), np.rot90(photo(), -1))
    assert header(late).turn == 6


def test_broken_exif_does_not_cost_the_photo(tmp_path: Path) -> None:
    path = tmp_path / "odd.jpg"
    path.write_bytes(encoded(photo(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert read_image(path).shape == (60, 90, 3)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    path = tmp_path / "moving"
    path.write_bytes(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert (read_image(path) == (250, 0, 0)).all()


# What was searched for -----------------------------------------------------------------------------------------------


def test_what_a_search_found_is_pixels_or_one_line() -> None:
    """Files that `tools/fuzz_images.py` kept, each another way through the reader; those with words broke it once."""
    kept = corpus()
    assert len(kept) > 400
    for name, data in kept.items():
        try:
            read(data)
        except Exception as error:
            raise AssertionError(name) from error
