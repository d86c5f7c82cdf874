"""`read_image` and `read_labels`: read one image from any kind of source.

A file is recognised by its content, its size is checked before anything is decoded, and it is decoded to its end: a
truncated file is an error, never a picture with a grey tail.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from densevl.errors import ImageError
from densevl.images.decoding import MOST_FRAMES, check_size, decode, frames, opened, turn_of
from densevl.images.depth import checked, used_bits
from densevl.images.notes import say
from densevl.images.opening import display_name, is_file, reader
from densevl.images.pixels import (
    UInt8Array,
    deep_colours,
    from_array,
    from_pillow,
    from_tensor,
    orientation,
    require_light,
    upright,
)


def read_image(
    source: Any,
    *,
    max_pixels: int | None = None,
    name: str | None = None,
    bits: int | None = None,
    exif: bool = True,
) -> UInt8Array:
    """Read one image from any kind of source.

    The EXIF orientation is applied. Of several frames or pages the first is used. Transparency is put on white, which
    most transparent drawings are made for. 16-bit grey is divided by 257 (its full range becomes 0-255, without
    stretching). 16-bit colour files keep their high byte, unless `bits` is given. Colour profiles are not applied. An
    `ImageWarning` tells if there are further frames, or if 16-bit values are so low that they look dark; in pipelines
    it is one of the result's `warnings`.

    Args:
        source: a path (str or PathLike); the content of an image file (bytes); an open, seekable binary file, which is
            read from its start and left open; a PIL image; a numpy array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4)
            RGBA; or a torch tensor (H, W), (1, H, W), (3, H, W) or (4, H, W) on any device. Arrays and tensors are
            uint8 0-255, uint16 0-65535, bool, or float 0-1.
        max_pixels: limit for a file or PIL image, checked before it is decoded. None uses the setting of
            `pixel_limit`, else 100 million.
        name: the image's name in messages, which then contain no path. This suits a server.
        bits: how many of its 16 bits an image uses, 8 to 16, for cameras and scanners with 10, 12 or 14: values 0 to
            2**bits - 1 become 0-255. None uses the setting of `bit_depth`, else all 16. 8-bit images are unaffected.
        exif: whether to apply the EXIF orientation; otherwise pixels are as stored.

    Returns:
        uint8 RGB (H, W, 3), 0-255, C-contiguous, writable, in memory of its own.

    Raises:
        ImageError: If the source is missing, truncated, damaged, too large, not an image, or an array outside the rules
            above, or it has values of more than `bits`.
        MissingExtraError: If it is a HEIC picture and the extra "heif" is not installed.

    Examples:
        >>> rgb = read_image(await upload.read(), name=upload.filename)
    """
    bits = used_bits() if bits is None else checked(bits)
    if is_file(source):
        with opened(source, name, max_pixels) as (image, what):
            _say_frame(image, what)
            stored = turn_of(image)
            turn = stored if exif else 1
            deep = ";16" in str(image.tile[0].args if image.tile else "") and image.mode.startswith("RGB")
            decode(image, what)
            if not deep or bits is None:
                rgb = from_pillow(image, what, bits, turn=turn)
        if deep and bits is not None:
            colours = deep_colours(_content(source), what, stored)
            return np.ascontiguousarray(upright(from_array(colours, what, bits), turn))
        if deep:
            require_light(rgb, what)
        return rgb
    if isinstance(source, Image.Image):
        what = display_name(name) or f"the PIL image ({source.mode}, {source.width}x{source.height})"
        _say_frame(source, what)
        check_size(what, source.size, max_pixels)
        decode(source, what)
        return from_pillow(source, what, bits, turn=orientation(source) if exif else 1)
    if isinstance(source, np.ndarray):
        return from_array(source, _described(name, f"numpy array {source.dtype} {source.shape}"), bits)
    torch = sys.modules.get("torch")  # a tensor can only come from a torch that is already imported
    if torch is not None and isinstance(source, torch.Tensor):
        return from_tensor(source, _described(name, f"torch tensor {str(source.dtype).removeprefix('torch.')}"), bits)
    hint = "; pass one image at a time" if isinstance(source, list | tuple) else ""
    allowed = "a path, bytes, a binary file, a PIL image, a numpy array (H, W, 3) or a torch tensor (3, H, W)"
    raise ImageError(f"cannot read {display_name(name) or 'an image'} from {type(source).__name__}: {allowed}{hint}")


@dataclass(frozen=True)
class Header:
    """The header of an image file.

    Attributes:
        size: (height, width) as stored. turn: the EXIF orientation, 1 to 8; 1 is upright, and `read_image` turns
            others.
    """

    size: tuple[int, int]
    turn: int


def header(path: str | os.PathLike[str], *, max_pixels: int | None = None) -> Header:
    """Read the header of an image file without decoding it.

    Raises:
        ImageError: If the file is missing, too large or not an image.
    """
    with opened(path, None, max_pixels) as (image, _):
        return Header((image.height, image.width), turn_of(image))


def read_labels(
    source: str | os.PathLike[str] | Any, *, max_pixels: int | None = None, name: str | None = None
) -> npt.NDArray[np.int32]:
    """Read a label map. The stored numbers are the class ids, without colours or scaling.

    Args:
        source: a path, bytes or an open binary file of a PNG or TIFF with one channel: palette, or grey of 1, 2, 4, 8,
            16 or 32 bits. Three channels that are equal at every pixel are read as one, also with opaque alpha.
        max_pixels: limit for the file, checked before it is decoded; None as in `read_image`.
        name: its name in messages; see `read_image`.

    Returns:
        int32 (H, W), the ids as stored.

    Raises:
        ImageError: If the file cannot be read, is a colour picture or has a lossy format.
    """
    if not is_file(source):
        raise ImageError(f"cannot read labels from {type(source).__name__}: give a path, bytes or a binary file")
    with opened(source, name, max_pixels, formats=("PNG", "TIFF")) as (image, what):
        # Pillow stretches 2- and 4-bit grey over 0-255. The decoder's name of the layout tells the factor.
        layout = image.tile[0].args if image.tile else None
        decode(image, what)
        if ";16" not in str(layout) and (grey := _grey(image)) is not None:
            return grey
        if image.mode not in {"P", "L", "1", "I"} and not image.mode.startswith("I;16"):
            raise ImageError(
                f"{what} is not a label map: it has colours (mode {image.mode}); "
                "save one class id per pixel as a palette or grey PNG"
            )
        labels = np.asarray(image).astype(np.int32)
    if image.mode == "L":
        labels //= {"L;4": 17, "L;2": 85}.get(layout[0] if isinstance(layout, tuple) else str(layout), 1)
    return labels


def read_values(
    source: str | os.PathLike[str] | Any, *, max_pixels: int | None = None, name: str | None = None
) -> npt.NDArray[np.int32] | npt.NDArray[np.float32]:
    """Read measurements such as depth: the floats (H, W) of a TIFF that stores them, or else like `read_labels`.

    Raises:
        ImageError: As for `read_labels`.
    """
    if is_file(source):
        with opened(source, name, max_pixels, formats=("PNG", "TIFF")) as (image, what):
            if image.mode == "F":
                decode(image, what)
                return np.array(image, np.float32)
    return read_labels(source, max_pixels=max_pixels, name=name)


def _grey(image: Image.Image) -> npt.NDArray[np.int32] | None:
    """Return the one channel of a decoded RGB, RGBA or LA picture if all colours are grey and opaque; else None."""
    if image.mode not in {"RGB", "RGBA", "LA"}:
        return None
    pixels = np.asarray(image)
    colours, alpha = (pixels, pixels[..., :0]) if image.mode == "RGB" else (pixels[..., :-1], pixels[..., -1])
    same = (colours == colours[..., :1]).all() and (alpha == 255).all()
    return colours[..., 0].astype(np.int32) if same else None


def _content(source: Any) -> bytes:
    with reader(source, None) as (file, _):
        return file.read()


def _say_frame(image: Image.Image, what: str) -> None:
    if (count := frames(image)) > 1:
        here = image.tell() + 1
        many = f"{count:,} or more" if count == MOST_FRAMES else str(count)
        used = "the first" if here == 1 else f"number {here}"
        say(what, f"the image has {many} frames or pages, and {used} is used; read others with PIL's seek()")


def _described(name: str | None, what: str) -> str:
    """Return an array's name for messages, with its type and shape, which explain most errors."""
    return f"{display_name(name)} ({what})" if name else what
