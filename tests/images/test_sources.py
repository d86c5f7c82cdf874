"""Images from memory and from open files: the same pixels and the same refusals as from a path, and no path in them."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from attacks.pictures import FORMATS, encoded, grey_png, one_line, photo
from densevl.errors import ImageError
from densevl.images import read_image, read_labels

NAME = "the photo"


def from_path(data: bytes, folder: Path) -> Path:
    (folder / "secret").mkdir(exist_ok=True)
    (folder / "secret" / "upload-1a2b").write_bytes(data)
    return folder / "secret" / "upload-1a2b"


def spooled(data: bytes, folder: Path) -> Any:
    file = tempfile.SpooledTemporaryFile(max_size=100)  # what web frameworks hand over  # noqa: SIM115
    file.write(data)
    return file  # it stands at its end, as after an upload


def in_archive(data: bytes, folder: Path) -> Any:
    with zipfile.ZipFile(folder / "secret.zip", "w") as archive:
        archive.writestr("upload", data)
    return zipfile.ZipFile(folder / "secret.zip").open("upload")


WAYS: dict[str, Callable[[bytes, Path], Any]] = {
    "path": from_path,
    "bytes": lambda data, folder: data,
    "bytearray": lambda data, folder: bytearray(data),
    "memoryview": lambda data, folder: memoryview(data),
    "BytesIO": lambda data, folder: io.BytesIO(data),
    "open file": lambda data, folder: from_path(data, folder).open("rb"),
    "unbuffered file": lambda data, folder: from_path(data, folder).open("rb", buffering=0),
    "spooled file": spooled,
    "file in an archive": in_archive,
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@ways
@pytest.mark.parametrize("kind", FORMATS)
def test_every_source_gives_the_pixels_of_the_path(tmp_path: Path, kind: str, way: Callable) -> None:
    data = encoded(photo(), kind)
    expected = read_image(from_path(data, tmp_path))
    np.testing.assert_array_equal(read_image(way(data, tmp_path)), expected)


@ways
def test_a_turned_photo_comes_out_upright(tmp_path: Path, way: Callable) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(), "PNG", exif=exif)
    np.testing.assert_array_equal(read_image(way(data, tmp_path)), np.rot90(photo(), -1))


HOSTILE = {
    "nothing": (b"", "is empty"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "xml": (b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><svg>&e;</svg>", "XML page"),
    "pdf": (b"%PDF-1.7", "a PDF"),
    "archive": (b"PK\x03\x04" + bytes(40), "an archive"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
    "bomb": (grey_png(20_000, 20_000, 8, bytes(10**6)), "over the limit"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(200), "PostScript"),
    "cut": (encoded(photo(), "PNG")[:3000], "truncated download"),
    "cut jpeg": (encoded(photo(), "JPEG")[:1500], "truncated download"),
    "damaged": (encoded(photo(), "PNG").replace(b"IDAT", b"IDAT\xff", 1), "cannot be decoded"),
}


@pytest.mark.parametrize("truncated_allowed", [False, True], ids=["", "LOAD_TRUNCATED_IMAGES"])
@pytest.mark.parametrize("named", [False, True], ids=["", "named"])
@ways
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_content_is_refused_alike_and_a_name_hides_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, way: Callable, named: bool, truncated_allowed: bool
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", truncated_allowed)
    data, cause = HOSTILE[case]
    with pytest.raises(ImageError) as error:
        read_image(way(data, tmp_path), name=NAME if named else None)
    text = one_line(error)
    assert cause in text
    assert text.startswith(NAME) == named
    assert not named or (str(tmp_path) not in text and "secret" not in text and "upload" not in text)


@ways
def test_the_cap_on_pixels_is_the_callers(tmp_path: Path, way: Callable) -> None:
    with pytest.raises(ImageError, match=r"the photo is 90x60 = 5,400 pixels, over the limit of 5,399"):
        read_image(way(encoded(photo(), "WEBP"), tmp_path), max_pixels=5399, name=NAME)


@pytest.mark.parametrize("name", ["x.jpg", ".", "no/folder/x.jpg", "https://example.org/x.jpg", "/dev/zero", "a\0b"])
def test_a_path_that_cannot_be_opened_stays_hidden(tmp_path: Path, name: str) -> None:
    (tmp_path / "y.jpg").touch()  # no neighbours are suggested either
    with pytest.raises(ImageError) as error:
        read_image(os.path.join(tmp_path, name), name=NAME)
    text = one_line(error)
    assert NAME in text
    assert str(tmp_path) not in text
    assert "y.jpg" not in text


@pytest.mark.parametrize(
    ("source", "description"),
    [
        (np.zeros((2, 3, 3), np.int64), r"the photo \(numpy array int64 \(2, 3, 3\)\): the type"),
        (torch.zeros(2, 3, 5), r"the photo \(torch tensor float32\) \(2, 3, 5\): tensors are"),
        (Image.new("I", (2, 2), -1), "the photo has 32-bit values"),
        ([], "cannot read the photo from list"),
    ],
)
def test_a_name_stands_in_every_message(source: object, description: str) -> None:
    with pytest.raises(ImageError, match=description):
        read_image(source, name=NAME)


@pytest.mark.parametrize("name", ["a\nb\x1b[31m", "x" * 5000, "  ", "naïve 照片.jpg", "\u202egpj.exe"])
def test_a_name_from_outside_stays_on_one_line(name: str) -> None:
    with pytest.raises(ImageError) as error:
        read_image(b"", name=name)
    text = one_line(error)
    assert text.isprintable()
    assert len(text) < 400


def test_a_file_of_the_caller_stays_open(tmp_path: Path) -> None:
    file = io.BytesIO(encoded(photo(), "TIFF"))
    for data in (file, file):
        read_image(data)
    assert not file.closed
    broken = io.BytesIO(b"%PDF")
    with pytest.raises(ImageError):
        read_image(broken)
    assert broken.getvalue() == b"%PDF"


class Stream(io.RawIOBase):
    """What arrives over a network: it can be read once."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return 0


def closed() -> io.BytesIO:
    file = io.BytesIO(b"x")
    file.close()
    return file


@pytest.mark.parametrize(
    ("make", "way_out"),
    [
        (lambda folder: Stream(), "pass its content"),
        (lambda folder: (folder / "x.txt").open("w+"), "'rb'"),
        (lambda folder: (folder / "x.bin").open("wb"), "'rb'"),
        (lambda folder: closed(), "closed"),
        (lambda folder: io.StringIO("x"), "'rb'"),
        (lambda folder: type("Upload", (), {"read": None})(), "pass its content"),
    ],
    ids=["stream", "text file", "file for writing", "closed file", "StringIO", "upload"],
)
def test_a_file_that_cannot_be_read_names_the_way_out(tmp_path: Path, make: Callable, way_out: str) -> None:
    with pytest.raises(ImageError) as error:
        read_image(make(tmp_path))
    assert way_out in one_line(error)


@ways
def test_label_maps_come_from_every_source(tmp_path: Path, way: Callable) -> None:
    ids = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert (read_labels(way(encoded(ids, "PNG"), tmp_path)) == ids).all()
    with pytest.raises(ImageError, match="the map is a JPEG file"):
        read_labels(way(encoded(photo(), "JPEG"), tmp_path), name="the map")
    with pytest.raises(ImageError, match="give a path"):
        read_labels(ids)
