"""The image reader gives the right pixels or one clear line; never a grey tail, a wrong turn or a full memory."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from densevl.errors import DensevlError, ImageError
from densevl.images import encode_png, find_images, keep_ratio_size, list_images, read_image, read_labels, resize

FORMATS = {
    "JPEG": {"quality": 90},
    "PNG": {},
    "WEBP": {"lossless": True},
    "BMP": {},
    "TIFF": {},
    "TIFF-lzw": {"compression": "tiff_lzw"},
    "TIFF-deflate": {"compression": "tiff_adobe_deflate"},
    "GIF": {},
    "PPM": {},
}


def photo(height: int = 60, width: int = 90) -> np.ndarray:
    """A picture whose four corners differ, smooth enough for JPEG, with some noise so that files are not tiny."""
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 255 / width, y * 255 / height, 255 - (x + y) * 255 / (height + width)], -1)
    return np.clip(smooth + np.random.default_rng(0).normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)


def encoded(image: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, format=kind.split("-")[0], **{**FORMATS.get(kind, {}), **options})
    return buffer.getvalue()


def one_line(error: pytest.ExceptionInfo[ImageError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) > 10
    return text


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def grey_png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows, 9))
        + png_chunk(b"IEND", b"")
    )


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
@pytest.mark.parametrize("kind", FORMATS)
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


@pytest.mark.parametrize("kind", FORMATS)
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
        (b"\x00" * 600, "no image format"),
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


# Bombs ---------------------------------------------------------------------------------------------------------------


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "bomb.png"
    path.write_bytes(grey_png(20_000, 20_000, 8, bytes(20_001 * 20_000)))
    assert path.stat().st_size < 500_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match="400,000,000 pixels, over the limit of 100,000,000"):
            read_image(path)
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 0.05
    assert peak < 2e6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


@pytest.mark.parametrize("kind", FORMATS)
def test_the_cap_holds_for_every_format(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "large"
    path.write_bytes(encoded(photo(), kind))
    with pytest.raises(ImageError, match="over the limit"):
        read_image(path, max_pixels=60 * 90 - 1)
    assert read_image(path, max_pixels=60 * 90).shape == (60, 90, 3)


def test_webp_canvas_is_checked_before_its_decoder_takes_memory(tmp_path: Path) -> None:
    data = bytearray(encoded(photo(), "WEBP", lossless=False, xmp=b"<x/>"))
    assert data[12:16] == b"VP8X"
    data[24:30] = b"\xff\xff\xff\x0f\x00\x00"  # a canvas of 16,777,216 x 16
    path = tmp_path / "bomb.webp"
    path.write_bytes(data)
    with pytest.raises(ImageError, match="over the limit"):
        read_image(path)


@pytest.mark.parametrize("limit", [None, 10], ids=["no Pillow limit", "a low Pillow limit"])
@pytest.mark.parametrize("kind", FORMATS)
def test_pillows_own_limit_neither_warns_nor_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, limit: int | None
) -> None:
    path = tmp_path / "picture"
    path.write_bytes(encoded(photo(), kind))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if kind == "WEBP" and limit:  # its plugin asks Pillow's limit before our reader sees the size
            with pytest.raises(ImageError, match="limit"):
                read_image(path)
        else:
            assert read_image(path).shape == (60, 90, 3)
    assert limit == Image.MAX_IMAGE_PIXELS


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
def test_every_exif_orientation_comes_out_upright(tmp_path: Path, orientation: int, kind: str) -> None:
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


# Arrays and tensors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "colour"),
    [
        (np.full((2, 3), 7, np.uint8), (7, 7, 7)),
        (np.full((2, 3, 1), 7, np.uint8), (7, 7, 7)),
        (np.full((2, 3, 3), (1, 2, 3), np.uint8), (1, 2, 3)),
        (np.full((2, 3, 4), (1, 2, 3, 255), np.uint8), (1, 2, 3)),
        (np.full((2, 3, 4), (1, 2, 3, 0), np.uint8), (255, 255, 255)),
        (np.full((2, 3), 65535, np.uint16), (255, 255, 255)),
        (np.full((2, 3), True), (255, 255, 255)),
        (np.full((2, 3, 3), 0.5, np.float64), (128, 128, 128)),
        (np.full((2, 3, 3), 1.0005, np.float32), (255, 255, 255)),
        (np.full((2, 3, 3), 0.5, np.float16), (128, 128, 128)),
        (np.full((4, 6, 3), 9, np.uint8)[::2, ::-2], (9, 9, 9)),
        (torch.full((3, 2, 3), 7, dtype=torch.uint8), (7, 7, 7)),
        (torch.full((1, 2, 3), 7, dtype=torch.uint8), (7, 7, 7)),
        (torch.full((2, 3), 0.5), (128, 128, 128)),
        (torch.full((3, 2, 3), 0.5, dtype=torch.bfloat16, requires_grad=True), (128, 128, 128)),
        (torch.ones((2, 3), dtype=torch.bool), (255, 255, 255)),
        (Image.new("RGB", (3, 2), (1, 2, 3)), (1, 2, 3)),
    ],
    ids=lambda given: str(getattr(given, "dtype", type(given).__name__)),
)
def test_arrays_tensors_and_pillow_images_are_taken(array: object, colour: tuple[int, int, int]) -> None:
    rgb = read_image(array)
    assert rgb.shape == (2, 3, 3)
    assert rgb.flags.c_contiguous
    assert (rgb == colour).all()


@pytest.mark.parametrize(
    ("source", "way_out"),
    [
        (np.zeros((2, 3, 3)) + 200.0, "divide by 255"),
        (np.zeros((2, 3, 3)) - 1.5, "normalisation"),
        (np.full((2, 3), np.nan), "NaN"),
        (np.full((2, 3), np.inf), "infinite"),
        (np.zeros((0, 3, 3), np.uint8), "at least one pixel"),
        (np.zeros((3, 20, 30), np.uint8), "transpose(1, 2, 0)"),
        (np.zeros((20, 30, 2), np.uint8), "(H, W, 3)"),
        (np.zeros((1, 20, 30, 3), np.uint8), "one by one"),
        (np.zeros(5, np.uint8), "(H, W)"),
        (np.zeros((), np.uint8), "(H, W)"),
        (np.zeros((2, 3, 3), np.int64), "astype"),
        (np.zeros((2, 3, 3), complex), "uint8"),
        (np.array([["a"]]), "uint8"),
        (torch.zeros(20, 30, 3), "permute(2, 0, 1)"),
        (torch.zeros(1, 3, 20, 30), "one by one"),
        (torch.zeros(3, 0, 30), "at least one pixel"),
        (torch.zeros(3, 2, 3, dtype=torch.complex64), "uint8"),
        ([np.zeros((2, 3, 3))], "one image at a time"),
        (None, "a path"),
        (3, "a path"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_a_wrong_array_is_refused_with_the_way_out(source: object, way_out: str) -> None:
    with pytest.raises(ImageError) as error:
        read_image(source)
    assert way_out in one_line(error)


@pytest.mark.filterwarnings("ignore::UserWarning")  # two of the kinds are deprecated or in prototype
@pytest.mark.parametrize(
    ("make", "way_out"),
    [
        (lambda x: x.to_sparse(), "is sparse_coo: give a dense tensor"),
        (lambda x: x.to("meta"), "is meta"),
        (lambda x: torch.quantize_per_tensor(x, 1.0, 0, torch.quint8), r"is quantized.*dequantize\(\)"),
        (lambda x: torch.nested.nested_tensor([x[0]]), "is nested"),
    ],
    ids=["sparse", "meta", "quantized", "nested"],
)
def test_a_tensor_without_plain_values_is_refused(make: Callable[[torch.Tensor], torch.Tensor], way_out: str) -> None:
    with pytest.raises(ImageError, match=way_out):
        read_image(make(torch.zeros(3, 2, 3)))


def test_the_result_shares_no_memory_with_a_video_buffer() -> None:
    buffer = photo()
    rgb = read_image(buffer)
    buffer[:] = 0
    assert rgb.max() > 0


def test_importing_the_reader_pulls_neither_torch_nor_opencv() -> None:
    code = "import sys, densevl.images, densevl.results; print({'torch', 'cv2', 'supervision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Label maps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["P", "L", "I;16", "TIFF"])
def test_label_ids_survive(tmp_path: Path, kind: str) -> None:
    ids = np.arange(12).reshape(3, 4) * (20 if kind != "I;16" else 3000)
    picture = Image.fromarray(ids.astype(np.uint16 if kind == "I;16" else np.uint8))
    if kind == "P":
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    path = tmp_path / "labels"
    picture.save(path, format="TIFF" if kind == "TIFF" else "PNG")
    labels = read_labels(path)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, ids)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_label_ids_of_few_bits_are_not_stretched_to_grey(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "labels.png"
    packed = sum((index % 2**bits) << (8 - bits - index * bits) for index in range(8 // bits))
    path.write_bytes(grey_png(8 // bits, 1, bits, bytes([0, packed])))
    assert read_labels(path).tolist() == [[index % 2**bits for index in range(8 // bits)]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_photo_is_no_label_map(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo"
    path.write_bytes(encoded(photo(), kind))
    with pytest.raises(ImageError) as error:
        read_labels(path)
    assert "photo" in one_line(error)


# Folders -------------------------------------------------------------------------------------------------------------


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).touch()


def test_a_folder_gives_its_images_with_all_below_it_in_order(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("densevl.images.listing.reads_heif", lambda: False)
    names = ["b.JPG", "a.png", "._a.png", "notes.txt", "deep/c.png", "folder.png/x.jpg", ".hidden/y.jpg", "z.heic"]
    _touch(tmp_path, *names, "out/r.png", "old/r.png", "old/densevl.json")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    (tmp_path / "deep" / "back").symlink_to(tmp_path)
    found = find_images(tmp_path, skip=tmp_path / "out")
    seen = [os.path.relpath(path, tmp_path) for path in found.paths]
    assert seen == ["a.png", "b.JPG", "deep/c.png", "folder.png/x.jpg"]
    assert found.folders == ("", "", "deep", "folder.png")
    told = (
        "1 .txt, 2 broken links, 1 folder of results, 1 hidden file, 1 hidden folder, 1 link to a folder that is taken"
    )
    assert found.told == f'{told}, 1 of HEIC (pip install "densevl[heif]")'
    (tmp_path / "deep" / "back").unlink()
    given = tmp_path / "odd.extension"
    assert list_images([given, tmp_path / "deep"]) == [given, tmp_path / "deep" / "c.png"]


def test_patterns_and_lists_name_images_and_a_photo_named_twice_is_taken_once(tmp_path: Path, monkeypatch) -> None:
    _touch(tmp_path, "a/1.jpg", "a/2.jpg", "a/[3].jpg", "b/4.png")
    (tmp_path / "a" / "list.txt").write_text("1.jpg\n\nb/4.png\nnowhere.jpg\n")
    monkeypatch.chdir(tmp_path)
    assert find_images("*/?.*").paths == ("a/1.jpg", "a/2.jpg", "b/4.png")
    assert find_images("a/[3].jpg").paths == ("a/[3].jpg",)
    assert find_images(["a/list.txt", tmp_path / "b" / "4.png"]).paths == ("a/1.jpg", "b/4.png", "nowhere.jpg")
    with pytest.raises(ImageError, match="no file matches"):
        find_images("*.jpg")
    (tmp_path / "latin.txt").write_bytes(b"\xe4.jpg")
    with pytest.raises(ImageError, match="list of paths"):
        find_images("latin.txt")


@pytest.mark.parametrize("paths", [[], ["."]], ids=["nothing given", "a folder without images"])
def test_no_images_at_all_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError, match="no images in"):
        list_images(paths)


# Resizing ------------------------------------------------------------------------------------------------------------

sides = st.integers(1, 70)


@settings(max_examples=150, deadline=None)
@given(sides, sides, sides, sides, st.integers(0, 2**32 - 1))
def test_resize_agrees_with_torch(height: int, width: int, new_height: int, new_width: int, seed: int) -> None:
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    ours = resize(rgb, (new_height, new_width))
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)[None].double()
    theirs = torch.nn.functional.interpolate(tensor, (new_height, new_width), mode="bilinear", align_corners=False)
    assert ours.shape == (new_height, new_width, 3)
    assert ours.dtype == np.uint8
    assert np.abs(ours - theirs[0].permute(1, 2, 0).numpy()).max() <= 0.51


@settings(max_examples=150, deadline=None)
@given(sides, sides, sides, sides, st.integers(0, 2**32 - 1))
def test_resize_agrees_with_opencv(height: int, width: int, new_height: int, new_width: int, seed: int) -> None:
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    theirs = cv2.resize(rgb, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
    assert np.abs(resize(rgb, (new_height, new_width)).astype(int) - theirs).max() <= 1


def test_resize_of_a_large_photo_agrees_with_opencv_and_is_fast() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), np.uint8)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        small = resize(rgb, keep_ratio_size(2000, 3000, 336, 2048))
        seconds.append(time.perf_counter() - start)
    assert small.shape == (336, 504, 3)
    assert min(seconds) < 0.05
    cv2 = pytest.importorskip("cv2", exc_type=ImportError)
    assert np.abs(small.astype(int) - cv2.resize(rgb, (504, 336))).max() <= 1


@pytest.mark.parametrize(
    ("array", "size"),
    [
        (np.zeros((2, 2, 3), np.float32), (4, 4)),
        (np.zeros((2, 2), np.uint8), (4, 4)),
        (np.zeros((0, 2, 3), np.uint8), (4, 4)),
        (np.zeros((2, 2, 3), np.uint8), (0, 4)),
    ],
)
def test_resize_refuses_what_it_cannot_mean(array: np.ndarray, size: tuple[int, int]) -> None:
    with pytest.raises(ImageError):
        resize(array, size)


@pytest.mark.parametrize(
    ("given_size", "box", "expected"),
    [
        ((375, 500), (336, 2048), (336, 448)),
        ((500, 375), (336, 2048), (448, 336)),
        ((1024, 2048), (560, 2048), (560, 1120)),
        ((100, 3000), (336, 2048), (68, 2048)),
        ((333, 500), (336, 2048), (336, 505)),
        ((1, 20_000), (336, 2048), (1, 2048)),
        ((1, 1), (336, 2048), (336, 336)),
    ],
)
def test_keep_ratio_size_follows_mmcv(given_size: tuple[int, int], box: tuple[int, int], expected: object) -> None:
    assert keep_ratio_size(*given_size, *box) == expected


def test_keep_ratio_size_refuses_an_empty_image() -> None:
    with pytest.raises(DensevlError):
        keep_ratio_size(0, 5, 336, 2048)


def test_encode_png_is_lossless() -> None:
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode_png(photo())))), photo())
