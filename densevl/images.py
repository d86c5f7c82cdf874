"""Safe image reading: any source becomes uint8 RGB (H, W, 3), or one line says why not.

A file is recognised by its content, its size is checked against a cap before anything is decoded, and it is decoded
to its end: a cut file is an error, never a picture with a grey tail. Only numpy and Pillow are needed.
"""

from __future__ import annotations

import io
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from densevl.errors import ImageError
from densevl.files import CUT, StrictReader, open_strict, shown

UInt8Array = npt.NDArray[np.uint8]

MAX_PIXELS: Final = 100_000_000
EXTENSIONS: Final = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)

# The classes are called directly, not through `Image.open`: that function has a pixel limit of its own, held in a
# global, which warns or raises where ours should speak. JPEG without the MPO wrapper gives the first picture of an MPO.
_FORMATS: Final[tuple[tuple[str, re.Pattern[bytes], Callable[..., ImageFile]], ...]] = (
    ("JPEG", re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    ("WebP", re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
    ("TIFF", re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+"), TiffImageFile),
    ("GIF", re.compile(rb"GIF8[79]a"), GifImageFile),
    ("BMP", re.compile(rb"BM"), BmpImageFile),
    ("PPM", re.compile(rb"P[456]\s"), PpmImageFile),
)
_READABLE: Final = "JPEG, PNG, WebP, BMP, TIFF, GIF, binary PPM/PGM/PBM"
_FOREIGN: Final[tuple[tuple[re.Pattern[bytes], str], ...]] = (
    (re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml|head)", re.I), "an HTML or XML page, saved by mistake?"),
    (re.compile(rb"\s*<svg", re.I), "an SVG drawing; export it as PNG"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer; run 'git lfs pull'"),
    (re.compile(rb"....ftyp(hei|mif|msf|avi)", re.DOTALL), "a HEIC or AVIF picture; convert it to JPEG or PNG"),
    (re.compile(rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI", re.DOTALL), "a video; extract frames first"),
    (re.compile(rb"%PDF"), "a PDF; export its pages as PNG"),
    (re.compile(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!"), "an archive; unpack it first"),
    (re.compile(rb"P[123]\s"), "a plain-text PPM; save it as binary PPM or PNG"),
    (re.compile(rb"[\t\n\r\x20-\x7e\x80-\xff]+\Z"), "text"),
)


def read_image(source: Any, *, max_pixels: int = MAX_PIXELS) -> UInt8Array:
    """Read one image, whatever it comes as.

    Rules: EXIF orientation is applied; of an animation the first frame is taken; transparency is laid on white, as
    most drawings with transparency are made for it; 16-bit grey is divided by 257 (its full range becomes 0-255, no
    stretching); 16-bit colour files keep their high byte; colour profiles are not applied.

    Args:
        source: a path (str or PathLike); a PIL image; a numpy array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4)
            RGBA; or a torch tensor (H, W), (1, H, W), (3, H, W) or (4, H, W) on any device. Arrays and tensors are
            uint8 0-255, uint16 0-65535, bool, or float 0-1.
        max_pixels: the most pixels a file or PIL image may have, checked before it is decoded.

    Returns:
        uint8 RGB (H, W, 3), 0-255, C-contiguous, writable, sharing memory with nothing.

    Raises:
        ImageError: the source is missing, cut, damaged, too large, no image, or an array outside the rules above.
    """
    if isinstance(source, str | os.PathLike):
        return _from_file(os.fspath(source), max_pixels)
    if isinstance(source, Image.Image):
        return _from_pillow(source, max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, f"numpy array {source.dtype} {source.shape}")
    torch = sys.modules.get("torch")  # a tensor can only come from a torch that is already imported
    if torch is not None and isinstance(source, torch.Tensor):
        return _from_tensor(source)
    hint = "; wrap it: PIL.Image.open(io.BytesIO(data))" if isinstance(source, bytes | bytearray | memoryview) else ""
    hint = "; pass one image at a time" if isinstance(source, list | tuple) else hint
    allowed = "a path, a PIL image, a numpy array (H, W, 3) or a torch tensor (3, H, W)"
    raise ImageError(f"cannot read an image from {type(source).__name__}: give {allowed}{hint}")


def read_labels(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[np.int32]:
    """Read a label map, keeping the stored numbers as class ids: no colours, no scaling.

    Args:
        path: a PNG or TIFF with one channel: palette, or grey of 1, 2, 4, 8, 16 or 32 bits.
        max_pixels: the most pixels the file may have, checked before it is decoded.

    Returns:
        int32 (H, W), the ids as stored.

    Raises:
        ImageError: the file cannot be read, or is a colour picture or of a lossy format.
    """
    name = os.fspath(path)
    with _opened(name, max_pixels, formats=("PNG", "TIFF")) as image:
        # Pillow stretches grey of 2 and 4 bits over 0-255; the decoder's name for the layout tells how far.
        layout = image.tile[0].args if image.tile else None
        _load(image, shown(name))
        if image.mode not in {"P", "L", "1", "I"} and not image.mode.startswith("I;16"):
            raise ImageError(
                f"{shown(name)} is no label map: it has colours (mode {image.mode}); "
                "save one class id a pixel as a palette or grey PNG"
            )
        labels = np.asarray(image).astype(np.int32)
    if image.mode == "L":
        labels //= {"L;4": 17, "L;2": 85}.get(layout[0] if isinstance(layout, tuple) else str(layout), 1)
    return labels


def list_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Turn files and folders into a list of image files.

    A folder gives the images directly inside it, by extension, sorted by name, without hidden files. A file is kept
    as given, even when it is missing or has an odd extension, so that reading it can name the fault.

    Args:
        paths: one path or many.

    Returns:
        The files, in the order given; at least one.

    Raises:
        ImageError: nothing was found, or a folder cannot be read.
    """
    given = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    found: list[Path] = []
    for path in given:
        if not os.path.isdir(path):
            found.append(path)
            continue
        try:
            inside = sorted(path.iterdir())
        except OSError as error:
            raise ImageError(f"cannot list folder {shown(path)}: {error.strerror}") from error
        found += [p for p in inside if p.suffix.lower() in EXTENSIONS and p.name[0] != "." and p.is_file()]
    if not found:
        where = ", ".join(shown(path) for path in given[:3]) or "an empty list"
        raise ImageError(f"no images in {where}: files must end in {' '.join(sorted(EXTENSIONS))}")
    return found


def keep_ratio_size(height: int, width: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Return the size an image gets when it is fitted into a box without changing its ratio (mmcv's rule).

    Args:
        height, width: the image, in pixels.
        short_side, long_side: the most its shorter and its longer side may have, in pixels; the larger scale that
            keeps both is taken, so the image may grow.

    Returns:
        (height, width), rounded half up, each at least 1.

    Raises:
        ImageError: a number is below 1.
    """
    if min(height, width, short_side, long_side) < 1:
        raise ImageError(f"cannot fit {height}x{width} into {short_side}x{long_side}: every side must be at least 1")
    scale = min(long_side / max(height, width), short_side / min(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize(rgb: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """Resize by bilinear interpolation between the four nearest pixels, without antialiasing.

    This is what the papers' code does (mmcv, OpenCV's INTER_LINEAR, torch with align_corners=False): results agree
    with those within one grey level. Shrinking skips pixels; that is the protocol, not an oversight.

    Args:
        rgb: uint8 (H, W, C), 0-255.
        size: the new (height, width), each at least 1.

    Returns:
        uint8 (height, width, C), rounded half up, C-contiguous.

    Raises:
        ImageError: the array is not uint8 (H, W, C), is empty, or the size is below 1.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or 0 in rgb.shape:
        raise ImageError(f"cannot resize {rgb.dtype} {rgb.shape}: give uint8 (H, W, C), at least 1x1")
    height, width = size
    if min(size) < 1:
        raise ImageError(f"cannot resize to {height}x{width}: both sides must be at least 1")
    top, bottom, down = _taps(rgb.shape[0], height)
    left, right, across = _taps(rgb.shape[1], width)
    down, across = down[:, None, None], across[:, None]
    out = np.empty((height, width, rgb.shape[2]), np.uint8)
    step = max(1, 2**18 // out[0].size)  # bands that stay in the processor's cache
    for start in range(0, height, step):
        band = slice(start, start + step)
        upper, lower = rgb[top[band]], rgb[bottom[band]]
        above = _lerp(upper[:, left], upper[:, right], across)
        below = _lerp(lower[:, left], lower[:, right], across)
        out[band] = _lerp(above, below, down[band]) + np.float32(0.5)
    return out


def encode_png(picture: UInt8Array | Image.Image) -> bytes:
    """Return a picture, uint8 RGB (H, W, 3) or a PIL image, as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(buffer, format="PNG", compress_level=4)  # twice as fast as the default for a few per cent more bytes
    return buffer.getvalue()


def _taps(old: int, new: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """Return for each new position its two old neighbours and the share of the second, both (new,)."""
    centre = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    first = centre.astype(np.intp)
    return first, np.minimum(first + 1, old - 1), (centre - first).astype(np.float32)


def _lerp(first: npt.NDArray[Any], second: npt.NDArray[Any], share: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    mixed = second.astype(np.float32)
    mixed -= first
    mixed *= share
    mixed += first
    return mixed


# From a file ---------------------------------------------------------------------------------------------------------


def _from_file(name: str, max_pixels: int) -> UInt8Array:
    with _opened(name, max_pixels) as image:
        _load(image, shown(name))
        return _pixels(image, shown(name))


@contextmanager
def _opened(name: str, max_pixels: int, formats: tuple[str, ...] = ()) -> Iterator[ImageFile]:
    """Open a file as far as its header, with format and size checked; close it afterwards."""
    with open_strict(name) as file:
        head = file.read(512)
        format_name, factory = _recognise(name, head, formats)
        if format_name == "WebP" and (size := _webp_size(head)):
            _check_size(shown(name), size, max_pixels)  # its decoder takes the memory on opening
        file.seek(0)
        try:
            image = factory(file, "")  # no name: Pillow would map the file into memory behind our reader's back
        except Exception as error:  # decoders raise many types on damaged data
            raise ImageError(f"{shown(name)} is a damaged or unsupported {format_name}: {_reason(error)}") from error
        _check_size(shown(name), image.size, max_pixels)
        yield image


def _recognise(name: str, head: bytes, formats: tuple[str, ...]) -> tuple[str, Callable[..., ImageFile]]:
    allowed = ", ".join(formats) or _READABLE
    if not head:
        raise ImageError(f"{shown(name)} is empty (0 bytes): allowed are {allowed}")
    for format_name, magic, factory in _FORMATS:
        if magic.match(head):
            if formats and format_name not in formats:
                raise ImageError(f"{shown(name)} is a {format_name} file: allowed here are {allowed}")
            return format_name, factory
    guess = next((what for magic, what in _FOREIGN if magic.match(head)), "of no image format known here")
    raise ImageError(f"{shown(name)} is not an image but {guess}: allowed are {allowed}")


def _load(image: Image.Image, what: str) -> None:
    """Decode to the end of the picture."""
    try:
        if isinstance(file := getattr(image, "fp", None), StrictReader):  # not so for a caller's PIL image
            if isinstance(image, PngImageFile):
                _check_png(file)
            if isinstance(image, TiffImageFile):
                # Given its memory beforehand, Pillow skips the limit check that warns from 89 megapixels on.
                image.im = Image.new(image.mode, image._tile_size).im
                # Rows that no strip covers would come out black.
                boxes = (tile.extents or (0, 0, 0, 0) for tile in image.tile)
                covered = sum((right - left) * (low - top) for left, top, right, low in boxes)
                if covered < image.width * image.height:
                    raise OSError("its strips do not cover the picture")
            file.strict = True
        image.load()
    except Exception as error:  # decoders raise many types on damaged data
        raise ImageError(f"{what} cannot be decoded: {_reason(error)}") from error


def _check_size(what: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{what} is {width}x{height}: an image needs at least one pixel")
    if width * height > max_pixels:
        raise ImageError(
            f"{what} is {width}x{height} = {width * height:,} pixels, over the limit of {max_pixels:,}: "
            "shrink it, or raise max_pixels if you trust it"
        )


def _check_png(file: StrictReader) -> None:
    """Walk the chunks of a PNG, which carry checksums that Pillow does not look at for pixels.

    Raises:
        OSError: a chunk is cut or its checksum is wrong.
    """
    here, size = file.tell(), os.fstat(file.fileno()).st_size
    file.seek(8)
    kind = b""
    while kind != b"IEND":
        header = file.read(8)
        length, kind = int.from_bytes(header[:4], "big"), header[4:]
        if len(header) < 8 or file.tell() + length + 4 > size:
            raise OSError(CUT)
        if zlib.crc32(file.read(length), zlib.crc32(kind)) != int.from_bytes(file.read(4), "big"):
            raise OSError("a checksum is wrong, the file is damaged")
    file.seek(here)


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """Read (width, height) from a WebP header, or None where the header is unknown."""

    def number(start: int, stop: int) -> int:
        return int.from_bytes(head[start:stop], "little")

    if head[12:16] == b"VP8X":
        return number(24, 27) + 1, number(27, 30) + 1
    if head[12:16] == b"VP8L":
        return (number(21, 25) & 0x3FFF) + 1, (number(21, 25) >> 14 & 0x3FFF) + 1
    if head[12:16] == b"VP8 ":
        return number(26, 28) & 0x3FFF, number(28, 30) & 0x3FFF
    return None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# From memory ---------------------------------------------------------------------------------------------------------


def _from_pillow(image: Image.Image, max_pixels: int) -> UInt8Array:
    what = f"the PIL image ({image.mode}, {image.width}x{image.height})"
    _check_size(what, image.size, max_pixels)
    _load(image, what)
    return _pixels(image, what)


def _pixels(image: Image.Image, what: str) -> UInt8Array:
    """Turn a loaded Pillow image of any mode into upright uint8 RGB (H, W, 3)."""
    try:
        if image.mode == "F" or image.mode.startswith("I"):
            values = np.asarray(image)
            if image.mode == "I":
                if values.min() < 0 or values.max() > 65535:
                    raise ImageError(f"{what} has 32-bit values outside 0-65535: scale them to 16 bits first")
                values = values.astype(np.uint16)
            rgb = _from_array(values, what)
        elif image.has_transparency_data:
            rgb = _from_array(np.asarray(image.convert("RGBA")), what)
        else:
            rgb = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, ValueError, KeyError) as error:  # a mode Pillow cannot convert
        raise ImageError(f"{what} cannot be turned into RGB: {_reason(error)}") from error
    return np.ascontiguousarray(_upright(rgb, _orientation(image)))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # noqa: BLE001  many devices write broken EXIF; it says nothing about the pixels
        return 1


def _upright(rgb: UInt8Array, orientation: int) -> UInt8Array:
    """Undo one of the eight EXIF orientations."""
    if orientation in {5, 6, 7, 8}:
        rgb = rgb.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        rgb = rgb[::-1]
    if orientation in {2, 3, 6, 7}:
        rgb = rgb[:, ::-1]
    return rgb


def _from_tensor(tensor: Any) -> UInt8Array:
    what = f"torch tensor {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    if tensor.ndim == 3 and tensor.shape[0] not in {1, 3, 4}:
        raise ImageError(f"{what}: tensors are (C, H, W) with 1, 3 or 4 channels; use tensor.permute(2, 0, 1) for HWC")
    if tensor.ndim not in {2, 3}:
        raise ImageError(f"{what}: give (H, W) or (C, H, W); pass the images of a batch one by one")
    tensor = tensor.detach().cpu()
    array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return _from_array(array if array.ndim == 2 else array.transpose(1, 2, 0), what)


def _from_array(array: npt.NDArray[Any], what: str) -> UInt8Array:
    """Turn (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) into uint8 RGB (H, W, 3), a copy."""
    if array.ndim not in {2, 3} or (array.ndim == 3 and array.shape[2] not in {1, 3, 4}):
        hint = ""
        if array.ndim == 3 and array.shape[0] in {1, 3, 4}:
            hint = "; channels come last, use array.transpose(1, 2, 0)"
        elif array.ndim == 4:
            hint = "; pass the images of a batch one by one"
        raise ImageError(f"{what}: give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4){hint}")
    if 0 in array.shape:
        raise ImageError(f"{what}: an image needs at least one pixel")
    values = _to_uint8(array, what)
    if values.ndim == 2 or values.shape[2] == 1:
        return np.repeat(values.reshape(*values.shape[:2], 1), 3, axis=2)
    if values.shape[2] == 4:
        return _on_white(values)
    return np.array(values, order="C")


def _to_uint8(array: npt.NDArray[Any], what: str) -> UInt8Array:
    """Scale bool, uint16 and float 0-1 to uint8 0-255."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype.kind != "f":
        hint = "; array.astype(numpy.uint8) if its values are 0-255" if array.dtype.kind == "i" else ""
        raise ImageError(f"{what}: the type must be uint8, uint16, bool or float 0-1{hint}")
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():  # min and max hand NaN on
        raise ImageError(f"{what}: it holds NaN or infinite values; floats must be 0-1")
    if low < -1e-3 or high > 1 + 1e-3:  # a thousandth is what resampling overshoots by
        hint = "divide by 255" if low >= 0 and high <= 255 else "undo its normalisation"
        raise ImageError(f"{what}: its values span {low:.4g} to {high:.4g}, floats must be 0-1; {hint}")
    return (np.clip(array, 0, 1).astype(np.float32) * 255 + np.float32(0.5)).astype(np.uint8)


def _on_white(rgba: UInt8Array) -> UInt8Array:
    """Lay uint8 RGBA (H, W, 4) on a white ground."""
    alpha = rgba[..., 3:].astype(np.uint32)
    mixed = (rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return np.asarray(mixed, np.uint8)
