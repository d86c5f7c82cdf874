"""R5: pictures that would fill the memory are refused by their header, before anything is decoded."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
import warnings
import zlib
from pathlib import Path

import pytest
from PIL import Image

from attacks.pictures import FORMATS, encoded, photo, png_chunk
from attacks.spending import MEASURED
from densevl.errors import ImageError
from densevl.images import read_image

SIDE = 20_000
CHILD = """
import json, sys, time
from densevl.errors import ImageError
from densevl.images import header, read_image, read_labels

def measured(call):
    before, start, said = peak(), time.process_time(), "nothing"
    try:
        call()
    except ImageError as error:
        said = str(error)
    return said, time.process_time() - start, peak() - before

measured(lambda: read_image(sys.argv[1]))  # a sound one: plugins are imported
out = {}
for path in sys.argv[2:]:
    out[path] = [measured(lambda: f(path)) for f in (read_image, read_labels, lambda p: header(p, max_pixels=2**62))]
print(json.dumps(out))
"""


def bomb(side: int = SIDE) -> bytes:
    """A PNG of 389 kB that is grey, black, and of 20,000 x 20,000 pixels: complete, and right in every checksum."""
    count, part = side * (side + 1), 10**6
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = squeeze.compress(bytes(part)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    again = squeeze.compress(bytes(part)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    end = squeeze.compress(bytes(count % part)) + squeeze.flush()
    rows = b"\x78\xda" + start + again * (count // part - 1) + end
    total = (count % 65521 << 16 | 1).to_bytes(4, "big")  # Adler's sum of zeros
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", rows + total), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def bombs() -> dict[str, bytes]:
    """Small files of every format whose header says that they are huge."""
    small = {kind: bytearray(encoded(photo(), kind)) for kind in FORMATS}
    at = small["JPEG"].index(b"\xff\xc0") + 5
    small["JPEG"][at : at + 4] = b"\xff\xdc\xff\xdc"
    small["WEBP"] = bytearray(encoded(photo(), "WEBP", lossless=False, xmp=b"<x/>"))
    small["WEBP"][24:30] = b"\xff\xff\xff\x0f\x00\x00"  # a canvas of 16,777,216 x 16
    small["BMP"][18:26] = struct.pack("<ii", 60_000, 60_000)
    small["GIF"][6:10] = b"\xff\xff\xff\xff"
    small["PPM"] = bytearray(b"P6 99999 99999 255\n" + bytes(99))
    for kind in ("TIFF", "TIFF-lzw", "TIFF-deflate"):
        for tag in (256, 257):  # width and height
            number = 4 if kind == "TIFF" else 3  # of four bytes or two
            at = small[kind].index(struct.pack("<HHI", tag, number, 1)) + 8
            small[kind][at : at + 4] = struct.pack("<I", 60_000)
    small["TIFF, second page"] = bytearray(two_pages(60_000))
    return {"PNG": bomb()} | {kind: bytes(data) for kind, data in small.items() if kind != "PNG"}


def of_frames(kind: str, count: int) -> bytes:
    """A picture of 2 x 2 pixels again and again."""
    one = encoded(photo(2, 2), kind)
    if kind == "GIF":
        at = one.index(b",")
        return one[:at] + one[at:-1] * count + b";"
    at = int.from_bytes(one[4:8], "little")
    entries = one[at : at + 2 + 12 * int.from_bytes(one[at : at + 2], "little")]
    starts = [at, *(len(one) + index * (len(entries) + 4) for index in range(count - 1)), 0]
    lists = [entries + struct.pack("<I", after) for after in starts[1:]]
    return one[:at] + lists[0] + one[at + len(lists[0]) :] + b"".join(lists[1:])


def two_pages(side: int) -> bytes:
    """A TIFF whose second page says that it has this side, and lacks most else: Pillow then took both for one."""
    data = bytearray(of_frames("TIFF", 2))
    at = len(encoded(photo(2, 2), "TIFF"))
    for entry in range(at + 2, at + 2 + 12 * int.from_bytes(data[at : at + 2], "little"), 12):
        tag = int.from_bytes(data[entry : entry + 2], "little")
        if tag in (256, 257):
            data[entry + 8 : entry + 12] = struct.pack("<I", side)
        else:
            data[entry : entry + 2] = struct.pack("<H", 40_000 + tag)
    return bytes(data)


def test_the_bomb_is_one(tmp_path: Path) -> None:
    assert 380_000 < len(bomb()) < 400_000
    assert (read_image(bomb(1100)) == 0).all()


def test_bombs_are_refused_soon_and_take_no_memory(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    (tmp_path / "sound").write_bytes(encoded(photo(), "PNG"))
    for kind, data in bombs().items():
        (tmp_path / kind).write_bytes(data)
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            MEASURED + CHILD,
            tmp_path / "sound",
            *(tmp_path / kind for kind in bombs()),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    for path, calls in json.loads(done.stdout).items():
        for _, seconds, grown in calls:
            assert seconds < 0.05, (path, calls)
            assert grown < 20, (path, calls)  # MiB
        if Path(path).name == "TIFF, second page":
            assert calls[0][0] == "nothing", "its first page is small and sound, and none of the second is read"
            continue
        assert "over the limit of 100,000,000" in calls[0][0], path
        if Path(path).name != "WEBP":  # whose decoder starts with the header, and has a limit of its own
            assert calls[2][0] == "nothing", "a header is read at any size"


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
@pytest.mark.parametrize(("count", "said"), [(3, "has 3 frames"), (20_000, "has 1,000 or more frames")])
def test_a_picture_of_many_frames_takes_no_longer_than_one_of_few(kind: str, count: int, said: str) -> None:
    start = time.process_time()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert read_image(of_frames(kind, count)).shape == (2, 2, 3)
    assert time.process_time() - start < 0.5  # a million frames took minutes
    assert said in str(told[0].message)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_cap_holds_for_every_format(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "large"
    path.write_bytes(encoded(photo(), kind))
    with pytest.raises(ImageError, match="over the limit"):
        read_image(path, max_pixels=60 * 90 - 1)
    assert read_image(path, max_pixels=60 * 90).shape == (60, 90, 3)


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
