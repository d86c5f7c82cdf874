"""`Prompt`: an image, or a vector of the model's joint space, in the place of a word."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from densevl import digest
from densevl.errors import LabelError
from densevl.images import read_image

IMAGE, VECTOR = "image", "vector"


class Prompt(str):
    """What stands for a class besides words. As a string it is its kind and a hash of its content.

    So it takes part wherever words do, and equal content is the same prompt.

    Attributes:
        kind: "image" or "vector". content: uint8 RGB (H, W, 3), or float32 (D,).
    """

    kind: str
    content: npt.NDArray[Any]

    def __new__(cls, kind: str, content: npt.NDArray[Any]) -> Prompt:
        """Name the content."""
        shape = "x".join(map(str, content.shape))
        made = super().__new__(cls, f"{kind} {shape} {digest.of_bytes(np.ascontiguousarray(content).tobytes())[:16]}")
        made.kind, made.content = kind, content
        return made

    def __getnewargs__(self) -> tuple[str, npt.NDArray[Any]]:  # type: ignore[override]
        return self.kind, self.content

    def __deepcopy__(self, memo: Any) -> Prompt:
        return self


def is_prompt(value: object) -> bool:
    """Whether a value is meant as an image or a vector: a path, a PIL image, an array or a tensor."""
    return isinstance(value, (Prompt, os.PathLike, Image.Image, np.ndarray)) or hasattr(value, "detach")


def parse(value: Any) -> Prompt:
    """Read a path of an image, a PIL image, uint8 RGB (H, W, 3), or a float vector (D,); arrays may be tensors.

    Raises:
        LabelError: an array that is neither, numbers that are not finite, or a vector of zeros.
        ImageError: an image that cannot be read.
    """
    if isinstance(value, Prompt):
        return value
    if isinstance(value, (os.PathLike, Image.Image)):
        return Prompt(IMAGE, read_image(value))
    array = value.detach().cpu().float().numpy() if _is_float_tensor(value) else np.asarray(value)
    if array.ndim == 1 and array.dtype.kind == "f":
        if not np.isfinite(array).all() or not array.any():
            raise LabelError("a vector among the labels holds only zeros, or numbers that are not finite")
        return Prompt(VECTOR, array.astype(np.float32))
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8 and array.size:
        return Prompt(IMAGE, array)
    raise LabelError(
        f"an array among the labels is {array.dtype} {array.shape}: an image is uint8 (H, W, 3), a vector float (D,); "
        "several of them are a list"
    )


def _is_float_tensor(value: Any) -> bool:
    return hasattr(value, "detach") and value.is_floating_point()


def name_of(value: Any, number: int) -> str:
    """What a class is called that is given as a prompt alone: the file's name, or the kind and a number."""
    if isinstance(value, os.PathLike):
        stem = os.path.splitext(os.path.basename(os.fspath(value)))[0]
        return str(stem)
    return f"{parse(value).kind} {number}"
