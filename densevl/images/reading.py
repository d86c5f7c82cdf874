"""`read_image` and `read_labels`: one image from whatever it comes as.

A file is recognised by its content, its size is checked against a cap before anything is decoded, and it is decoded
to its end: a cut file is an error, never a picture with a grey tail.
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
    """Read one image, whatever it comes as.

    Rules: EXIF orientation is applied; of several frames or pages the first is taken; transparency is laid on white,
    as most drawings with transparency are made for it; 16-bit grey is divided by 257 (its full range becomes 0-255, no
    stretching); 16-bit colour files keep their high byte, unless `bits` is given; colour profiles are not applied. An
    `ImageWarning` says where there were further frames, and where 16 bits hold so low values that they come out dark;
    in the pipelines it is one of the result's `warnings`.

    Args:
        source: a path (str or PathLike); the content of an image file (bytes); an open binary file that can seek, read
            from its beginning and left open; a PIL image; a numpy array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4)
            RGBA; or a torch tensor (H, W), (1, H, W), (3, H, W) or (4, H, W) on any device. Arrays and tensors are
            uint8 0-255, uint16 0-65535, bool, or float 0-1.
        max_pixels: the most pixels a file or PIL image may have, checked before it is decoded. None takes what
            `pixel_limit` says, else 100 million.
        name: what messages call the image. They then hold no path, which suits a server.
        bits: how many of its 16 bits an image uses, 8 to 16, as cameras and scanners with 10, 12 or 14 have it:
            values 0 to 2**bits - 1 become 0-255. None takes what `bit_depth` says, else all 16. Images of 8 bits stay
            as they are.
        exif: whether the EXIF orientation is applied; else pixels are as they are stored.

    Returns:
        uint8 RGB (H, W, 3), 0-255, C-contiguous, writable, sharing memory with nothing.

    Raises:
        ImageError: the source is missing, cut, damaged, too large, no image, or an array outside the rules above; or it
            holds values of more than `bits`.
        MissingExtraError: a HEIC picture, without the extra "heif".

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
    """What a file says of its pixels.

    Attributes:
        size: (height, width) as stored. turn: the EXIF orientation, 1 to 8; 1 is upright. `read_image` turns others.
    """

    size: tuple[int, int]
    turn: int


def header(path: str | os.PathLike[str], *, max_pixels: int | None = None) -> Header:
    """Read the header of an image file, without decoding it.

    Raises:
        ImageError: the file is missing, too large or no image.
    """
    with opened(path, None, max_pixels) as (image, _):
        return Header((image.height, image.width), turn_of(image))


def read_labels(
    source: str | os.PathLike[str] | Any, *, max_pixels: int | None = None, name: str | None = None
) -> npt.NDArray[np.int32]:
    """Read a label map, keeping the stored numbers as class ids: no colours, no scaling.

    Args:
        source: a PNG or TIFF with one channel: palette, or grey of 1, 2, 4, 8, 16 or 32 bits; or with three that are
            equal at every pixel, which are read as one, and opaque alpha. A path, bytes or an open binary file.
        max_pixels: the most pixels the file may have, checked before it is decoded; None as in `read_image`.
        name: what messages call it; see `read_image`.

    Returns:
        int32 (H, W), the ids as stored.

    Raises:
        ImageError: the file cannot be read, or is a colour picture or of a lossy format.
    """
    if not is_file(source):
        raise ImageError(f"cannot read labels from {type(source).__name__}: give a path, bytes or a binary file")
    with opened(source, name, max_pixels, formats=("PNG", "TIFF")) as (image, what):
        # Pillow stretches grey of 2 and 4 bits over 0-255; the decoder's name for the layout tells how far.
        layout = image.tile[0].args if image.tile else None
        decode(image, what)
        if ";16" not in str(layout) and (grey := _grey(image)) is not None:
            return grey
        if image.mode not in {"P", "L", "1", "I"} and not image.mode.startswith("I;16"):
            raise ImageError(
                f"{what} is no label map: it has colours (mode {image.mode}); "
                "save one class id a pixel as a palette or grey PNG"
            )
        labels = np.asarray(image).astype(np.int32)
    if image.mode == "L":
        labels //= {"L;4": 17, "L;2": 85}.get(layout[0] if isinstance(layout, tuple) else str(layout), 1)
    return labels


def read_values(
    source: str | os.PathLike[str] | Any, *, max_pixels: int | None = None, name: str | None = None
) -> npt.NDArray[np.int32] | npt.NDArray[np.float32]:
    """Read measurements, such as depth: the floats (H, W) of a TIFF that stores them, else as `read_labels`.

    Raises:
        ImageError: as `read_labels`.
    """
    if is_file(source):
        with opened(source, name, max_pixels, formats=("PNG", "TIFF")) as (image, what):
            if image.mode == "F":
                decode(image, what)
                return np.array(image, np.float32)
    return read_labels(source, max_pixels=max_pixels, name=name)


def _grey(image: Image.Image) -> npt.NDArray[np.int32] | None:
    """The one channel of a decoded picture in RGB, RGBA or LA whose colours are all grey and opaque; else None."""
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
        taken = "the first is" if here == 1 else f"number {here} is"
        say(what, f"the image has {many} frames or pages, of which {taken} taken; others are read by PIL's seek()")


def _described(name: str | None, what: str) -> str:
    """What messages call an array: its type and shape are most of what can be wrong with it."""
    return f"{display_name(name)} ({what})" if name else what
