"""Pictures as files, sound and hostile; and what the reader owes whatever bytes it is given."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densevl.errors import ImageError, MissingExtraError
from densevl.images import header, read_image, read_values

CORPUS = Path(__file__).with_name("corpus.zip")
"""What `tools/fuzz_images.py` found, one file for each way through the reader."""

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
MORE_FORMATS = {
    "AVIF": {},
    "JPEG-progressive": {"quality": 90, "progressive": True},
    "WEBP-lossy": {"lossless": False},
    "TIFF-jpeg": {"compression": "jpeg"},
    "TIFF-packbits": {"compression": "packbits"},
}
"""Further ways to store a picture."""


def photo(height: int = 60, width: int = 90) -> np.ndarray:
    """A picture whose four corners differ, smooth enough for JPEG, with some noise so that files are not tiny."""
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([x * 255 / width, y * 255 / height, 255 - (x + y) * 255 / (height + width)], -1)
    return np.clip(smooth + np.random.default_rng(0).normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)


def encoded(image: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    """A picture as a file of one of `FORMATS` or `MORE_FORMATS`."""
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, format=kind.split("-")[0], **{**{**FORMATS, **MORE_FORMATS}.get(kind, {}), **options})
    return buffer.getvalue()


def one_line(error: pytest.ExceptionInfo[ImageError]) -> str:
    """What an error says, which is one line."""
    text = str(error.value)
    assert "\n" not in text
    assert len(text) > 10
    return text


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def grey_png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", head)
        + png_chunk(b"IDAT", zlib.compress(rows, 9))
        + png_chunk(b"IEND", b"")
    )


def corpus() -> dict[str, bytes]:
    """The files of `CORPUS` by name."""
    with zipfile.ZipFile(CORPUS) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def sound() -> Iterator[bytes]:
    """Small pictures of every format and mode, from which a search for hostile ones starts."""
    small = photo(7, 9)
    for kind in FORMATS:
        yield encoded(small, kind)
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16", "I", "F", "CMYK"):
        picture = Image.fromarray(small).convert("L" if mode in ("I;16", "I", "F") else mode.replace("LA", "RGBA"))
        picture = picture.convert("I").convert(mode) if mode == "I;16" else picture.convert(mode)
        for kind in ("PNG", "TIFF-lzw", "JPEG", "WEBP", "GIF", "BMP"):
            try:
                yield encoded(picture, kind)
            except (OSError, ValueError):  # a format without this mode
                continue
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        yield encoded(small, kind, exif=exif.tobytes())
    frames = [Image.new("RGB", (6, 5), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        yield encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    yield encoded(small, "JPEG", progressive=True)
    yield encoded(small, "WEBP", lossless=False)
    yield encoded(small, "AVIF", quality=60)


def read(data: bytes, max_pixels: int = 10**6) -> np.ndarray | ImageError:
    """Read a file whatever it is, and assert what is owed: pixels that are all of the file, or one line.

    Read twice, as memory that a decoder left as it was differs from one time to the next.
    """
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            try:
                found.append(read_image(data, max_pixels=max_pixels))
            except (ImageError, MissingExtraError) as error:
                found.append(error)
        try:
            read_values(data, max_pixels=max_pixels)
        except (ImageError, MissingExtraError) as error:
            found.append(error)
        assert not any("\n" in str(error) for error in found if isinstance(error, Exception)), found
        first, second = found[:2]
        assert type(first) is type(second), found
        if isinstance(first, np.ndarray):
            assert first.dtype == np.uint8
            assert first.ndim == 3
            assert first.shape[2] == 3
            assert first.shape[0] * first.shape[1] <= max_pixels
            told = header(data, max_pixels=max_pixels)
            assert first.shape[:2] == (told.size if told.turn < 5 else told.size[::-1])
            assert np.array_equal(first, second), "two readings of the same bytes differ"
    return first
