"""Decode image files: recognise them by content, check the size in their header, and decode them completely."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import IO, Any, Final

from PIL import Image, features
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from densevl.errors import ImageError, MissingExtraError
from densevl.images.limit import most_pixels
from densevl.images.opening import CUT, StrictReader, reader
from densevl.images.pixels import orientation, reason


def _avif(file: Any, name: str) -> ImageFile:
    from PIL.AvifImagePlugin import AvifImageFile

    if not features.check("avif"):
        raise OSError("this build of Pillow cannot read AVIF; convert it to PNG, or install Pillow's wheel")
    return AvifImageFile(file, name)


def _heif(file: Any, name: str) -> ImageFile:
    from pi_heif import HeifImageFile

    return HeifImageFile(file, name)


class _StoredTiff(TiffImageFile):
    """A TIFF as stored. This is the only format that Pillow turns by its orientation tag."""

    def _setup(self) -> None:
        super()._setup()
        self._size = self._tile_size

    def load_end(self) -> None:
        """Do not turn the picture, as Pillow would here."""


def reads_heif() -> bool:
    """Return whether HEIC pictures, as iPhones take them, can be read here."""
    return find_spec("pi_heif") is not None


# The classes are called directly instead of `Image.open`, which has its own global pixel limit that would warn or raise
# before ours. JPEG without the MPO wrapper gives the first picture of an MPO.
_FORMATS: Final[tuple[tuple[str, re.Pattern[bytes], Callable[..., ImageFile]], ...]] = (
    ("AVIF", re.compile(rb"....ftyp(avi[fs]|mi[af].{5,60}avi[fs])", re.DOTALL), _avif),
    ("HEIC", re.compile(rb"....ftyp(he[iv][cmsx]|mif1|msf1)", re.DOTALL), _heif),
    ("JPEG", re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    ("WebP", re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
    ("TIFF", re.compile(rb"(?:II\*\0(?!....CR)|MM\0\*|II\+\0|MM\0\+)", re.DOTALL), _StoredTiff),
    ("GIF", re.compile(rb"GIF8[79]a"), GifImageFile),
    ("BMP", re.compile(rb"BM"), BmpImageFile),
    ("PPM", re.compile(rb"P[456]\s"), PpmImageFile),
)
MOST_FRAMES: Final = 1000
_READABLE: Final = "JPEG, PNG, WebP, BMP, TIFF, GIF, binary PPM/PGM/PBM, AVIF, and HEIC with densevl[heif]"
_TEXT: Final = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]+\Z")
_TEXT_MARKS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_RAW: Final = "a raw photo of a camera; develop it, or export it as JPEG or TIFF"
_RAW_ENDINGS: Final = (".dng", ".nef", ".nrw", ".arw", ".sr2", ".cr2", ".pef", ".orf", ".rw2", ".srw", ".3fr", ".iiq")
_FOREIGN: Final[tuple[tuple[re.Pattern[bytes], str], ...]] = (
    (
        re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg", re.I | re.S),
        "an SVG drawing; export it as PNG",
    ),
    (re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml|head)", re.I), "an HTML or XML page (saved by mistake?)"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer; run 'git lfs pull'"),
    (
        re.compile(rb"\0\x05\x16[\0\x07]"),
        "a file of metadata by macOS; the picture is the file without '._' in its name",
    ),
    (re.compile(rb"....ftyp(hei|hev|mif|msf|avi)", re.DOTALL), "a HEIC or AVIF picture; convert it to JPEG or PNG"),
    (re.compile(rb"FUJIFILMCCD-RAW|II[RU][OS\0]|MMOR|FOVb|II\*\0.{4}CR|....ftypcrx", re.DOTALL), _RAW),
    (re.compile(rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI", re.DOTALL), "a video; use `densevl video`"),
    (re.compile(rb"%PDF"), "a PDF; export its pages as PNG"),
    (re.compile(rb"%!PS"), "PostScript; export it as PNG"),
    (re.compile(rb"8BPS"), "a Photoshop document; export it as PNG"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "a JPEG XL; convert it to JPEG or PNG"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "a JPEG 2000; convert it to JPEG or PNG"),
    (re.compile(rb"v/1\x01|#\?RADIANCE"), "a picture of high dynamic range; tone-map it and save it as PNG"),
    (re.compile(rb"\0\0[\1\2]\0"), "an icon; save it as PNG"),
    (re.compile(rb".{128}DICM", re.DOTALL), "DICOM; read it with pydicom, and give an array"),
    (re.compile(rb"SIMPLE  =|\x89HDF"), "FITS or HDF data; read it with its own package, and give an array"),
    (re.compile(rb"\x93NUMPY"), "a NumPy array; load it with numpy.load, and give the array"),
    (re.compile(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!"), "an archive; unpack it first"),
    (re.compile(rb"P[123]\s"), "a plain-text PPM; save it as binary PPM or PNG"),
    (_TEXT, "text"),
)


@contextmanager
def opened(
    source: Any, name: str | None, max_pixels: int | None, formats: tuple[str, ...] = ()
) -> Iterator[tuple[ImageFile, str]]:
    """Open a source up to its header, check its format and size, and close it afterwards.

    Args:
        source, name: see `opening.reader`. max_pixels: the limit; None is that of `pixel_limit`. formats: of
            `_FORMATS`; none allows all.

    Yields:
        The picture, to be decoded by `decode`, and its name for messages.

    Raises:
        ImageError: If it cannot be opened, has another format, is damaged or too large.
    """
    with reader(source, name) as (file, what):
        head = file.read(512)
        format_name, factory = _recognise(what, head, formats)
        if format_name == "WebP" and (size := _webp_size(head)):
            check_size(what, size, max_pixels)  # its decoder allocates the memory when it opens
        file.seek(0)
        if format_name == "HEIC" and not reads_heif():
            raise MissingExtraError("pi-heif", "heif", f"reading {what}, a HEIC picture,")
        try:
            image = factory(file, "")  # without a name, or Pillow maps the file into memory and bypasses our reader
        except Exception as error:  # decoders raise many types on damaged data
            raise ImageError(f"{what} is a damaged or unsupported {format_name}: {reason(error)}") from error
        if isinstance(image, TiffImageFile) and _is_raw(image, what):
            raise ImageError(f"{what} is not an image but {_RAW}")
        check_size(what, image.size, max_pixels)
        yield image, what


def kind_of(head: bytes) -> str:
    """Guess the kind of a file from its first 512 bytes, "a picture (PNG)" or "a PDF"; "" for text and unknown."""
    if head.startswith(_TEXT_MARKS):
        return ""
    picture = next((name for name, magic, _ in _FORMATS if magic.match(head)), "")
    if picture not in ("", "BMP", "PPM") or (picture and not _TEXT.match(head)):
        return f"a picture ({picture})"
    found = next((kind for magic, kind in _FOREIGN[:-1] if magic.match(head)), "")
    return found.partition(";")[0]


def _recognise(what: str, head: bytes, formats: tuple[str, ...]) -> tuple[str, Callable[..., ImageFile]]:
    allowed = ", ".join(formats) or _READABLE
    if not head:
        raise ImageError(f"{what} is empty (0 bytes): allowed are {allowed}")
    for format_name, magic, factory in _FORMATS:
        if magic.match(head):
            if formats and format_name not in formats:
                raise ImageError(f"{what} is a {format_name} file: allowed here are {allowed}")
            return format_name, factory
    guess = next((kind for magic, kind in _FOREIGN if magic.match(head)), "")
    but = f"not an image but {guess}" if guess else "not an image, or not of a format known here"
    raise ImageError(f"{what} is {but}: allowed are {allowed}")


def _is_raw(image: TiffImageFile, what: str) -> bool:
    """Return whether a TIFF is a camera's raw file. Its first picture is then only a thumbnail."""
    tags = image.tag_v2
    return (
        50706 in tags
        or (330 in tags and bool(tags.get(254, 0) & 1))
        or what.lower().rstrip("'\"").endswith(_RAW_ENDINGS)
    )


def frames(image: Image.Image) -> int:
    """Return the number of pages or frames, up to 1,000. A file of a few megabytes may have a million."""
    try:
        if not isinstance(image, GifImageFile | TiffImageFile):
            return int(getattr(image, "n_frames", 1))
        if not isinstance(file := image.fp, StrictReader):
            return _walked(image)
        here = file.tell()
        try:
            file.seek(0)
            return _walked(type(image)(file, ""))  # a separate object, since its size changes with each page
        finally:
            file.seek(here)
    except Exception:  # noqa: BLE001  later frames are damaged, but not needed
        return 1


def _walked(image: Any) -> int:
    """Count pages up to 1,000 without decoding them. Pillow would walk through all."""
    here = image.tell()
    try:
        while image.tell() + 1 < MOST_FRAMES:
            image._seek(image.tell() + 1, *[False] * isinstance(image, GifImageFile))
        return MOST_FRAMES
    except EOFError:
        return int(image.tell()) + 1
    finally:
        image.seek(here)


def turn_of(image: ImageFile) -> int:
    """Return the EXIF orientation, 1 to 8, of a file that is opened and not decoded. It stays undecoded."""
    if isinstance(image, PngImageFile) and "exif" not in image.info and image.fp is not None:
        # Pillow would decode the picture to find EXIF data behind it.
        image.info["exif"] = _late_exif(image.fp)
        turn = orientation(image)
        if not image.info["exif"]:
            del image.info["exif"]
        return turn
    return orientation(image)


def decode(image: Image.Image, what: str) -> None:
    """Decode a picture to its end.

    Raises:
        ImageError: If it ends early or is damaged.
    """
    try:
        if isinstance(file := getattr(image, "fp", None), StrictReader):  # not for a caller's PIL image
            if isinstance(image, PngImageFile):
                _check_png(file)
            if isinstance(image, TiffImageFile):
                # If its memory is allocated beforehand, Pillow skips its own limit, which warns above 89 megapixels.
                image.im = Image.new(image.mode, image._tile_size).im
                # Rows that no strip covers would be black.
                boxes = (tile.extents or (0, 0, 0, 0) for tile in image.tile)
                covered = sum((right - left) * (low - top) for left, top, right, low in boxes)
                if covered < image.width * image.height:
                    raise OSError("its strips do not cover the picture")
            file.strict = True
        image.load()
    except Exception as error:  # decoders raise many types on damaged data
        raise ImageError(f"{what} cannot be decoded: {reason(error)}") from error


def check_size(what: str, size: tuple[int, int], max_pixels: int | None = None) -> None:
    """Refuse a picture of (width, height) pixels that is empty or over the limit; None is that of `pixel_limit`."""
    width, height = size
    max_pixels = most_pixels() if max_pixels is None else max_pixels
    if width < 1 or height < 1:
        raise ImageError(f"{what} is {width}x{height}: an image needs at least one pixel")
    if width * height > max_pixels:
        raise ImageError(
            f"{what} is {width}x{height} = {width * height:,} pixels, over the limit of {max_pixels:,}: "
            "shrink it, raise max_pixels (--max-pixels) if you trust it, or segment it block by block (docs/huge.md)"
        )


def _chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yield kind and length of each chunk of a PNG, with the file at its content. The position is restored afterwards.

    Raises:
        OSError: If a chunk is truncated.
    """
    here, size = file.tell(), file.seek(0, os.SEEK_END)
    place, kind = 8, b""
    try:
        while kind != b"IEND":
            file.seek(place)
            head = file.read(8)
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            place += length + 12
            if len(head) < 8 or place > size:
                raise OSError(CUT)
            yield kind, length
    finally:
        file.seek(here)


def _check_png(file: IO[bytes]) -> None:
    """Check the checksums of a PNG's chunks, which Pillow ignores for pixels.

    Raises:
        OSError: If a chunk is truncated or its checksum is wrong.
    """
    for kind, length in _chunks(file):
        if zlib.crc32(file.read(length), zlib.crc32(kind)) != int.from_bytes(file.read(4), "big"):
            raise OSError("a checksum is wrong, the file is damaged")


def _late_exif(file: IO[bytes]) -> bytes:
    """Return the EXIF data of a PNG, wherever it is; none if the file is truncated."""
    try:
        return next((file.read(length) for kind, length in _chunks(file) if kind == b"eXIf"), b"")
    except OSError:
        return b""


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """Read (width, height) from a WebP header, or None if the header is unknown."""

    def number(start: int, stop: int) -> int:
        return int.from_bytes(head[start:stop], "little")

    if head[12:16] == b"VP8X":
        return number(24, 27) + 1, number(27, 30) + 1
    if head[12:16] == b"VP8L":
        return (number(21, 25) & 0x3FFF) + 1, (number(21, 25) >> 14 & 0x3FFF) + 1
    if head[12:16] == b"VP8 ":
        return number(26, 28) & 0x3FFF, number(28, 30) & 0x3FFF
    return None
