"""Convert PIL images of any mode, arrays and tensors to uint8 RGB (H, W, 3), and RGB to PNG."""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from densevl.errors import ImageError, MissingExtraError
from densevl.images.depth import MOST
from densevl.images.notes import say

DARK = 2**14
"""16-bit images with no higher values look dark: nobody would use so little of the range on purpose."""
UInt8Array = npt.NDArray[np.uint8]
QUARTER_TURNS = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""


def from_pillow(image: Image.Image, what: str, bits: int | None = None, *, turn: int = 1) -> UInt8Array:
    """Convert a decoded PIL image of any mode and EXIF orientation to upright uint8 RGB (H, W, 3)."""
    try:
        if image.mode == "F" or image.mode.startswith("I"):
            values = np.asarray(image)
            if image.mode == "I":
                if values.min() < 0 or values.max() > 65535:
                    raise ImageError(f"{what} has 32-bit values outside 0-65535: scale them to 16 bits first")
                values = values.astype(np.uint16)
            rgb = from_array(values, what, bits)
        elif image.has_transparency_data:
            rgb = from_array(np.asarray(image.convert("RGBA")), what)
        else:
            rgb = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, ValueError, KeyError) as error:  # a mode Pillow cannot convert
        raise ImageError(f"{what} cannot be turned into RGB: {reason(error)}") from error
    return np.ascontiguousarray(upright(rgb, turn))


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a picture, 1 to 8; 1 is upright or unknown."""
    try:
        turn = int(image.getexif().get(0x0112, 1))
        return turn if 1 <= turn <= 8 else 1
    except Exception:  # noqa: BLE001  many devices write broken EXIF; it says nothing about the pixels
        return 1


def upright(pixels: npt.NDArray[Any], turn: int) -> npt.NDArray[Any]:
    """Undo one of the eight EXIF orientations of (H, W) or (H, W, 3)."""
    if turn in QUARTER_TURNS:
        pixels = pixels.swapaxes(0, 1)
    if turn in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if turn in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return pixels


def from_tensor(tensor: Any, what: str, bits: int | None = None) -> UInt8Array:
    """Convert a torch tensor (H, W) or (C, H, W) on any device to a uint8 RGB copy (H, W, 3)."""
    kinds = {"nested": tensor.is_nested, "meta": tensor.is_meta, "quantized": tensor.is_quantized}
    odd = next((kind for kind, found in kinds.items() if found), str(tensor.layout).removeprefix("torch."))
    if odd != "strided":
        raise ImageError(f"{what} is {odd}: give a dense tensor with values (dequantize() or to_dense())")
    what += f" {tuple(tensor.shape)}"
    if tensor.ndim == 3 and tensor.shape[0] not in {1, 3, 4}:
        raise ImageError(f"{what}: tensors are (C, H, W) with 1, 3 or 4 channels; use tensor.permute(2, 0, 1) for HWC")
    if tensor.ndim not in {2, 3}:
        raise ImageError(f"{what}: give (H, W) or (C, H, W); pass the images of a batch one by one")
    tensor = tensor.detach().cpu()
    array = (tensor.float() if tensor.is_floating_point() else tensor).numpy(force=True)
    return from_array(array if array.ndim == 2 else array.transpose(1, 2, 0), what, bits)


def from_array(array: npt.NDArray[Any], what: str, bits: int | None = None) -> UInt8Array:
    """Convert (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) to a uint8 RGB copy (H, W, 3)."""
    array = np.asarray(array).astype(
        array.dtype.newbyteorder("="), copy=False
    )  # not a matrix, and in this machine's byte order
    if array.ndim not in {2, 3} or (array.ndim == 3 and array.shape[2] not in {1, 3, 4}):
        hint = ""
        if array.ndim == 3 and array.shape[0] in {1, 3, 4}:
            hint = "; channels come last, use array.transpose(1, 2, 0)"
        elif array.ndim == 4:
            hint = "; pass the images of a batch one by one"
        raise ImageError(f"{what}: give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4){hint}")
    if 0 in array.shape:
        raise ImageError(f"{what}: an image needs at least one pixel")
    values = _to_uint8(array, what, bits)
    if values.ndim == 2 or values.shape[2] == 1:
        return np.repeat(values.reshape(*values.shape[:2], 1), 3, axis=2)
    if values.shape[2] == 4:
        return _on_white(values)
    return np.array(values, order="C")


def _to_uint8(array: npt.NDArray[Any], what: str, bits: int | None) -> UInt8Array:
    """Scale bool, uint16 and float 0-1 to uint8 0-255."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return _of_16_bits(array, what, bits)
    if array.dtype.kind != "f":
        hint = "; array.astype(numpy.uint8) if its values are 0-255" if array.dtype.kind == "i" else ""
        raise ImageError(f"{what}: the type must be uint8, uint16, bool or float 0-1{hint}")
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():  # min and max propagate NaN
        raise ImageError(f"{what}: it holds NaN or infinite values; floats must be 0-1")
    if low < -1e-3 or high > 1 + 1e-3:  # resampling overshoots by up to a thousandth
        hint = "divide by 255" if low >= 0 and high <= 255 else "undo its normalisation"
        raise ImageError(f"{what}: its values span {low:.4g} to {high:.4g}, floats must be 0-1; {hint}")
    return (np.clip(array, 0, 1).astype(np.float32) * 255 + np.float32(0.5)).astype(np.uint8)


def _of_16_bits(array: npt.NDArray[Any], what: str, bits: int | None) -> UInt8Array:
    """Scale uint16 to uint8, from the whole range or the bits that are used. Alpha is scaled separately."""
    if array.ndim == 3 and array.shape[2] == 4:
        alpha = array[..., 3:]
        own = bits if bits is not None and not int(alpha.max()) >> bits else MOST
        return np.concatenate([_of_16_bits(array[..., :3], what, bits), _of_16_bits(alpha, what, own)], axis=2)
    highest = int(array.max())
    if bits is not None and highest >> bits:
        raise ImageError(f"{what} holds {highest}, which is more than {bits} bits: give bits={highest.bit_length()}")
    if bits is None and 0 < highest < DARK:
        used = max(8, highest.bit_length())
        dark = f"its 16-bit values reach only {highest} of 65535, so it looks dark"
        say(what, f"{dark}; {_way_out(used)}")
    top = 2 ** (bits or 16) - 1
    return ((array.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)


def _way_out(bits: int) -> str:
    return f"if it has {bits} bits, say so: --bits {bits}, or images.bit_depth({bits}) in Python"


def require_light(rgb: UInt8Array, what: str) -> None:
    """Warn if the high bytes of 16-bit colours are so low that the image looks dark."""
    highest = int(rgb.max())
    if highest < DARK >> 8:
        bits = 8 + highest.bit_length()
        say(what, f"its 16-bit colours reach only {highest} of 255, so it looks dark; {_way_out(bits)}")


def deep_colours(content: bytes, what: str, turn: int) -> npt.NDArray[np.uint16]:
    """Read the 16-bit colours of a PNG or TIFF file as stored, (H, W, 3) or (H, W, 4) RGBA.

    Pillow keeps only their high bytes. `turn` is the file's EXIF orientation.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError("opencv-python", "eval", f"the 16-bit colours of {what}") from error
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise ImageError(f"the 16-bit colours of {what} cannot be read; save it as PNG, or with 8 bits, stretched")
    if content[:2] in (b"II", b"MM"):  # OpenCV always turns a TIFF
        pixels = upright(pixels, {6: 8, 8: 6}.get(turn, turn))
    return np.asarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]], np.uint16)


def _on_white(rgba: UInt8Array) -> UInt8Array:
    """Put uint8 RGBA (H, W, 4) on a white background."""
    alpha = rgba[..., 3:].astype(np.uint32)
    mixed = (rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return np.asarray(mixed, np.uint8)


def encode_png(picture: UInt8Array | Image.Image) -> bytes:
    """Return a picture, uint8 RGB (H, W, 3) or a PIL image, as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    # After PNG's filters, a photo repeats only in runs: a quarter of the default's time for 3 % more bytes.
    image.save(buffer, format="PNG", compress_level=4, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def reason(error: Exception) -> str:
    """Return the message of an exception on one line."""
    return " ".join(str(error).split()) or type(error).__name__
