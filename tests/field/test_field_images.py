"""Images and folders as they come from phones, cameras, scanners, web pages and other programs."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from case import Case, Ran, cases, run
from PIL import Image

from densevl import Segmenter
from densevl.errors import MissingExtraError
from densevl.images import Found, bit_depth, find_images, read_image

HEIC = base64.b64decode(
    b"AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    b"ACJpbG9jAAAAAERAAAEAAQAAAAABoAABAAAAAAAAADIAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRt"
    b"AAAAAAABAAAA/GlwcnAAAADcaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMA"
    b"AAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNs"
    b"eAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFwAAAAGAAAAAEAAAAQAAAAAf///9gAAAAC////0AAAAAIAAAAQcGl4"
    b"aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYECAwWEAAAAOm1kYXQAAAAuKAGvEyFiY0D1JyL//v+6f/CLJ/0r2WFncrrBW/L6"
    b"wPZkm8DzqpGegIdppzAVeA=="
)
AVIF = base64.b64decode(
    b"AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUIAAADrbWV0YQAAAAAAAAAhaGRscgAAAAAAAAAAcGljdAAAAAAAAAAAAAAA"
    b"AAAAAAAOcGl0bQAAAAAAAQAAAB5pbG9jAAAAAEQAAAEAAQAAAAEAAAETAAAAKQAAAChpaW5mAAAAAAABAAAAGmluZmUCAAAAAAEA"
    b"AGF2MDFDb2xvcgAAAABqaXBycAAAAEtpcGNvAAAAFGlzcGUAAAAAAAAAGAAAABAAAAAQcGl4aQAAAAADCAgIAAAADGF2MUOBAAwA"
    b"AAAAE2NvbHJuY2x4AAEADQAGgAAAABdpcG1hAAAAAAAAAAEAAQQBAoMEAAAAMW1kYXQSAAoJGBDv7RAQ0GhAMhoXh4eGIYSSSSZQ"
    b"AAAAV9cdi79Bg/36XdmoIA=="
)
PHOTO = Image.new("RGB", (24, 16), (200, 60, 30))


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _png16(values: np.ndarray) -> bytes:
    return _encoded(Image.fromarray(values.astype(np.uint16)), "PNG")


def _file(name: str, content: bytes) -> Callable[[Path], np.ndarray]:
    def read(folder: Path) -> np.ndarray:
        (folder / name).write_bytes(content)
        return read_image(folder / name)

    return read


class _Told:
    """An image and what was said of it by a segmenter, which says less of its pixels alone."""

    def __init__(self, source: Any) -> None:
        segment = Segmenter("mini")
        result = segment(source, "penguin,pizza")
        self.image = result.image
        self.warnings = tuple(set(result.warnings) - set(segment(self.image, "penguin,pizza").warnings))


def _told(name: str, content: bytes) -> Callable[[Path], _Told]:
    def read(folder: Path) -> _Told:
        (folder / name).write_bytes(content)
        return _Told(folder / name)

    return read


def _colours16(values: np.ndarray) -> bytes:
    """A PNG of 16-bit RGB or RGBA; OpenCV writes BGR."""
    return bytes(cv2.imencode(".png", values[..., [2, 1, 0, 3][: values.shape[2]]].astype(np.uint16))[1])


def _within_12_bits(content: bytes) -> Callable[[Path], _Told]:
    def read(folder: Path) -> _Told:
        (folder / "x.png").write_bytes(content)
        with bit_depth(12):
            (result,) = Segmenter("mini").many([folder / "x.png"], "penguin,pizza")  # reads ahead in a thread
        told = _Told(result.image)
        told.warnings = tuple(set(result.warnings) - set(Segmenter("mini")(result.image, "penguin,pizza").warnings))
        return told

    return read


def _is_red(image: Any) -> bool:
    rgb = getattr(image, "image", image)
    return rgb.shape == (16, 24, 3) and bool((abs(rgb[8, 12].astype(int) - (200, 60, 30)) < 6).all())


FRAMES = [PHOTO, Image.new("RGB", (24, 16), (0, 0, 255))]
KINDS = {
    "SVG": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
    "a web page": (b"<!DOCTYPE html><html>not found", "HTML"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "a PDF": (b"%PDF-1.7\n", "a PDF"),
    "a Photoshop document": (b"8BPS\0\1" + bytes(20), "Photoshop"),
    "JPEG XL": (b"\xff\x0a\xfa\x1f" + bytes(20), "JPEG XL"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    "a raw photo, CR2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(20), "raw photo"),
    "a raw photo, CR3": (b"\0\0\0\x18ftypcrx " + bytes(20), "raw photo"),
    "a raw photo, RAF": (b"FUJIFILMCCD-RAW " + bytes(20), "raw photo"),
    "a video": (b"\0\0\0\x18ftypmp42" + bytes(20), "a video"),
    "macOS's ._ file": (b"\0\5\x16\7\0\2\0\0Mac OS X", "without '._'"),
    "DICOM": (bytes(128) + b"DICM" + bytes(20), "DICOM"),
    "an array": (b"\x93NUMPY\1\0", "numpy.load"),
    "nothing": (b"", "0 bytes"),
    "text": (b"cat\ndog\n", "text"),
}
ARRAYS = (
    Case(
        "numbers of another machine refused",
        "a big-endian array, as TIFF readers give it",
        lambda folder: read_image(np.full((2, 2), 0x8080, ">u2")),
        right=lambda rgb: (rgb == 128).all(),
    ),
    Case(
        "a traceback for a matrix",
        "an array of another class",
        lambda folder: read_image(np.matrix(np.full((2, 2), 9, np.uint8))),
        right=lambda rgb: rgb.shape == (2, 2, 3),
    ),
    Case(
        "an image taken for a path",
        "a data: address",
        lambda folder: read_image("data:image/png;base64,iVBO"),
        "give the bytes",
    ),
)
NEF = _encoded(PHOTO, "TIFF")
READ = (
    *ARRAYS,
    *(
        Case(f"{kind} named .jpg", "a file of another kind", _file("x.jpg", data), said)
        for kind, (data, said) in KINDS.items()
    ),
    Case("the thumbnail of a raw photo", "a NEF", _file("x.nef", NEF), "raw photo"),
    Case(
        "the thumbnail of a DNG",
        "a DNG",
        _file("x.tif", _encoded(PHOTO, "TIFF", tiffinfo={50706: b"\1\4\0\0"})),
        "raw photo",
    ),
    Case("a HEIC photo", "an iPhone's photo", _told("x.heic", HEIC), None, "", _is_red),
    Case("a HEIC photo named .jpg", "a renamed photo", _told("x.jpg", HEIC), None, "", _is_red),
    Case("AVIF", "a picture from the web", _told("x.avif", AVIF), None, "", _is_red),
    Case("a web address", "a URL", lambda folder: read_image("https://example.com/cat.jpg"), "is an address: download"),
    Case(
        "a web address as a path",
        "Path takes a slash",
        lambda folder: read_image(Path("https://example.com/cat.jpg")),
        "is an address: download",
    ),
    Case(
        "an address as a path",
        "Path takes a slash",
        lambda folder: read_image(Path("s3://bucket/cat.jpg")),
        "lost a slash",
    ),
    Case(
        "a web address among sources",
        "a URL in a list",
        lambda folder: find_images(["https://example.com/cat.jpg"]),
        "is an address: download",
    ),
    Case(
        "a web address in the command",
        "a URL",
        lambda folder: run("segment", "https://example.com/cat.jpg", "--labels", "cat", "--out", folder),
        "is an address: download",
    ),
    *(
        Case(
            f"one of {kind}'s frames in silence",
            "an animation or pages",
            _told("x", _encoded(PHOTO, kind, save_all=True, append_images=FRAMES[1:])),
            None,
            "has 2 frames",
            lambda got: got.image.shape == (16, 24, 3),
        )
        for kind in ("GIF", "TIFF", "WEBP", "PNG")
    ),
    Case(
        "a later page of a PIL image",
        "an image at its second frame",
        lambda folder: _Told(_second(folder)),
        None,
        "number 2 is used",
        lambda got: got.image[8, 12, 2] > 200,
    ),
    Case(
        "12 bits in 16 come out black",
        "a camera's PNG",
        _told("x.png", _png16(np.full((16, 24), 4000))),
        None,
        "--bits 12",
        None,
    ),
    Case(
        "10 bits in 16 come out black",
        "a camera's TIFF",
        lambda folder: _Told(np.full((16, 24), 1000, np.uint16)),
        None,
        "--bits 10",
        None,
    ),
    Case(
        "14 bits in 16 come out dark",
        "a thermal camera",
        lambda folder: _Told(np.full((16, 24), 16000, np.uint16)),
        None,
        "--bits 14",
        None,
    ),
    Case(
        "12 bits are stretched",
        "a camera's PNG with its bits",
        lambda folder: read_image(_png16(np.full((2, 2), 4095)), bits=12),
        right=lambda rgb: (rgb == 255).all(),
    ),
    Case(
        "more than 12 bits",
        "bits that are wrong",
        lambda folder: read_image(_png16(np.full((2, 2), 9000)), bits=12),
        "bits=14",
    ),
    Case(
        "bits of another kind",
        "bits that are wrong",
        lambda folder: read_image(_png16(np.full((2, 2), 9)), bits=3),
        "8 to 16",
    ),
    Case(
        "bits that nobody can tell a pipeline",
        "a folder of a microscope",
        _within_12_bits(_png16(np.full((16, 24), 4095))),
        None,
        "",
        lambda got: (got.image == 255).all(),
    ),
    Case(
        "12 bits of 16-bit colours are dropped",
        "a colour scan: Pillow reads its high bytes alone",
        _within_12_bits(_colours16(np.full((16, 24, 3), (100, 200, 4095)))),
        None,
        "",
        lambda got: got.image[3, 3].tolist() == [6, 12, 255],
    ),
    Case(
        "12 bits beside a full alpha",
        "a colour scan with transparency",
        _within_12_bits(_colours16(np.full((16, 24, 4), (100, 200, 4095, 65535)))),
        None,
        "",
        lambda got: got.image[3, 3].tolist() == [6, 12, 255],
    ),
    Case(
        "a full alpha hides that 12 bits come out dark",
        "an array of RGBA",
        lambda folder: _Told(np.full((16, 24, 4), (100, 200, 4095, 65535), np.uint16)),
        None,
        "--bits 12",
        None,
    ),
    Case(
        "16-bit colours come out dark",
        "a colour scan",
        _told("x.png", _colours16(np.full((16, 24, 3), 4095))),
        None,
        "--bits 12",
        None,
    ),
    Case(
        "8 bits among images of 12",
        "a mixed folder",
        _within_12_bits(_encoded(PHOTO, "PNG")),
        None,
        "",
        _is_red,
    ),
    Case(
        "full 16 bits warn",
        "a scanner's PNG",
        _told("x.png", _png16(np.linspace(0, 65535, 384).reshape(16, 24))),
        None,
        "",
        None,
    ),
    Case(
        "a black 16-bit image warns",
        "a frame with the lid on",
        _told("x.png", _png16(np.zeros((16, 24)))),
        None,
        "",
        None,
    ),
    Case(
        "CMYK",
        "a picture for print",
        _told("x.jpg", _encoded(PHOTO.convert("CMYK"), "JPEG", quality=95)),
        None,
        "",
        _is_red,
    ),
    Case("YCbCr", "an image of another mode", lambda folder: read_image(PHOTO.convert("YCbCr")), right=_is_red),
    Case(
        "a palette",
        "a PNG of few colours",
        _told("x.png", _encoded(PHOTO.convert("P", palette=Image.Palette.ADAPTIVE), "PNG")),
        None,
        "",
        _is_red,
    ),
    Case(
        "LAB",
        "an image of another mode",
        lambda folder: read_image(Image.new("LAB", (4, 4), (255, 128, 128))),
        right=lambda rgb: bool((rgb > 240).all()),
    ),
    Case("int32", "an array of another type", lambda folder: read_image(np.zeros((4, 4, 3), np.int32)), "astype"),
    Case(
        "floats to 255",
        "an array of another range",
        lambda folder: read_image(np.full((4, 4, 3), 200.0)),
        "divide by 255",
    ),
)


def _listed(lines: str) -> Callable[[Path], Found]:
    """What a list of images beside "a b.png" holds."""

    def found(folder: Path) -> Found:
        PHOTO.save(folder / "a b.png")
        (folder / "list.txt").write_text(lines)
        return find_images(folder / "list.txt")

    return found


def _second(folder: Path) -> Image.Image:
    image = Image.open(io.BytesIO(_encoded(PHOTO, "TIFF", save_all=True, append_images=FRAMES[1:])))
    image.seek(1)
    return image


def _folder(folder: Path) -> Path:
    photos = folder / "photos"
    for name in ("a/x.png", "b/x.png"):
        (photos / name).parent.mkdir(parents=True)
        PHOTO.save(photos / name)
    return photos


def _segment(folder: Path, photos: Path, *more: object) -> Ran:
    return run("segment", photos, "--labels", "penguin,pizza", "--model", "mini", "--out", folder / "out", *more)


def _left(make: Callable[[Path], object]) -> Callable[[Path], Ran]:
    """Segment a folder of two photos with something else in it."""

    def command(folder: Path) -> Ran:
        photos = _folder(folder)
        make(photos)
        return _segment(folder, photos)

    return command


def _done(done: Ran) -> bool:
    return done.code == 0 and done.out.count("x.png: ") == 2


FOLDERS = (
    Case(
        "quotes around a path become part of it",
        "a list that a spreadsheet or a shell has written",
        _listed("\"a b.png\"\n'a b.png'\n"),
        right=lambda found: len(found.paths) == 1,
    ),
    Case(
        "an address of a file with its blanks encoded",
        "file:///my%20photos, from a browser",
        lambda folder: _listed(f"file://{folder}/a%20b.png\n")(folder),
        right=lambda found: len(found.paths) == 1 and os.path.isfile(found.paths[0]),
    ),
    Case(
        "a path whose name has a per cent sign",
        "50%20.png, as it stands on disk",
        lambda folder: (PHOTO.save(folder / "50%20.png"), read_image(f"file://{folder}/50%20.png"))[1],
        right=_is_red,
    ),
    Case(
        "a file of another kind in silence",
        "text beside photos",
        _left(lambda photos: (photos / "n.txt").touch()),
        None,
        "left out of the folders: 1 .txt$",
        _done,
    ),
    Case(
        "a broken link in silence",
        "a link to a drive that is gone",
        _left(lambda photos: (photos / "x.png").symlink_to("gone")),
        None,
        "1 broken link$",
        _done,
    ),
    Case(
        "two broken links",
        "grammar",
        _left(lambda photos: [(photos / name).symlink_to("gone") for name in ("y.png", "z.png")]),
        None,
        "2 broken links$",
        None,
    ),
    Case(
        "a photo twice by a link",
        "a link to a photo beside it",
        _left(lambda photos: (photos / "y.png").symlink_to(photos / "a/x.png")),
        None,
        "1 link to an image that is taken$",
        _done,
    ),
    Case(
        "a folder twice by a link",
        "a link to a folder beside it",
        _left(lambda photos: (photos / "0").symlink_to(photos / "a")),
        None,
        "1 link to a folder that is taken$",
        _done,
    ),
    Case(
        "a circle of links",
        "a link to the folder itself",
        _left(lambda photos: (photos / "a/up").symlink_to(photos)),
        None,
        "link to a folder",
        _done,
    ),
    Case(
        "hidden files in silence",
        "macOS's files",
        _left(lambda photos: [(photos / "._x.jpg").touch(), (photos / ".git").mkdir()]),
        None,
        "1 hidden file, 1 hidden folder$",
        _done,
    ),
    Case(
        "an empty folder in silence",
        "a download that failed",
        _left(lambda photos: (photos / "c").mkdir()),
        None,
        "1 empty folder$",
        _done,
    ),
    Case(
        "nothing is left out",
        "a folder of photos alone",
        lambda folder: _segment(folder, _folder(folder)),
        right=lambda done: _done(done) and "left out" not in str(done.warnings),
    ),
    Case(
        "a folder of no images",
        "the wrong folder",
        lambda folder: _segment(folder, _only_text(folder)),
        "left out: 1 .txt",
    ),
)


def _only_text(folder: Path) -> Path:
    (folder / "photos").mkdir()
    (folder / "photos" / "n.txt").touch()
    return folder / "photos"


@cases(*READ)
def test_images_are_what_was_meant_or_refused(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)


@cases(*FOLDERS)
def test_what_is_left_out_of_folders_is_said(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)


def test_without_the_extra_heic_is_one_line_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densevl.images.decoding.reads_heif", lambda: False)
    monkeypatch.setattr("densevl.images.listing.reads_heif", lambda: False)
    photos = _folder(tmp_path)
    (photos / "IMG_1.HEIC").write_bytes(HEIC)
    with pytest.raises(MissingExtraError, match=r"IMG_1\.HEIC.*densevl\[heif\]"):
        read_image(photos / "IMG_1.HEIC")
    assert any('1 of HEIC (pip install "densevl[heif]")' in line for line in _segment(tmp_path, photos).warnings)
    (photos / "a" / "y.jpg").write_bytes(HEIC)
    named = _segment(tmp_path, photos)
    assert named.code == 2
    assert sum("densevl[heif]" in line for line in named.warnings) == 1, "once, not for each image"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_read_does_not_end_the_run(tmp_path: Path) -> None:
    photos = _folder(tmp_path)
    (photos / "c").mkdir(mode=0)
    assert find_images(photos).told == "1 folder that cannot be read"


def test_a_missing_extra_ends_a_search_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("segment_anything", "segment_anything.modeling"):  # the second, as others may have imported it
        monkeypatch.setitem(sys.modules, module, None)
    done = run("search", _folder(tmp_path), "--for", "penguin", "--model", "mini", "--out", tmp_path / "out")
    assert (done.code, len([line for line in done.warnings if "densevl[sam]" in line])) == (2, 1), done.warnings
    assert "nothing found" not in done.out


def test_equal_names_and_what_is_done_are_told_apart(tmp_path: Path) -> None:
    photos = _folder(tmp_path)
    first = _segment(tmp_path, photos)
    assert {line.partition(": ")[0] for line in first.out.splitlines()[:2]} == {"a/x.png", "b/x.png"}
    again = _segment(tmp_path, photos)
    assert again.warnings[-1] == "2 of 2 images are done already"
    alone = run("segment", photos / "a/x.png", "--labels", "penguin", "--model", "mini", "--out", tmp_path / "o")
    assert alone.out.startswith("x.png: ")
    told = run("segment", photos / "a/x.png", "--labels", "penguin", "--model", "mini", "--out", tmp_path / "o")
    assert told.warnings[-1] == "the image is done already"


def test_json_names_the_shard_that_an_image_is_packed_in(tmp_path: Path) -> None:
    photos, out = _folder(tmp_path), tmp_path / "r.tar"
    done = run("segment", photos, "--labels", "penguin,pizza", "--model", "mini", "--out", out, "--json")
    *rows, last = [json.loads(line) for line in done.out.splitlines()]
    assert [row["outputs"] for row in rows] == [[str(tmp_path / "r-000000.tar")]] * 2
    assert last["summary"]["classes"]["nothing"]["images"] == 2
    assert (tmp_path / "r-000000.tar").is_file()
