"""`Prompt`: an image, a part of one, or a vector of the model's joint space, in place of a word."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from densevl import digest
from densevl.errors import LabelError
from densevl.images import read_image

if TYPE_CHECKING:
    from densevl.proposals import Proposals

IMAGE, VECTOR = "image", "vector"


@dataclass(frozen=True, eq=False)
class Example:
    """A part of an image in place of a word; a mask or a box is embedded as places of photos are.

    Attributes:
        image: as `read_image` takes it.
        mask: bool (H, W) of that image. box: x0, y0, x1, y1 in its pixels. With neither, the whole image is used.
    """

    image: Any
    mask: Any = None
    box: Sequence[float] | None = None


@dataclass(frozen=True, eq=False)
class Vector:
    """A row of the model's joint space in place of a word.

    Attributes:
        row: floats (D,), not all 0, of any length.
        words: whether it was embedded from words. Otherwise it counts as coming from an image, as a plain array does.
    """

    row: Any
    words: bool = False


class Prompt(str):
    """An image or a vector that stands for a class. As a string it is its kind and a hash of its content.

    So it can be used wherever words can, and equal content is the same prompt.

    Attributes:
        kind: "image" or "vector". content: uint8 RGB (H, W, 3), or float32 (D,) of length 1.
        mask: bool (H, W), the relevant part of the image; None is all of it.
        shown: whether it comes from an image rather than from words.
    """

    kind: str
    content: npt.NDArray[Any]
    mask: npt.NDArray[np.bool_] | None
    shown: bool

    def __new__(
        cls, kind: str, content: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None = None, shown: bool = True
    ) -> Prompt:
        """Name the content."""
        shape = "x".join(map(str, content.shape))
        data = np.ascontiguousarray(content).tobytes() + (b"" if mask is None else np.packbits(mask).tobytes())
        made = super().__new__(cls, f"{kind} {shape} {digest.of_bytes(data + b'words' * (not shown))[:16]}")
        made.kind, made.content, made.mask, made.shown = kind, content, mask, shown
        return made

    @property
    def region(self) -> Proposals:
        """The relevant part of the image, as one mask."""
        from densevl.proposals import Proposals  # loads torch

        mask = np.ones(self.content.shape[:2], bool) if self.mask is None else self.mask
        return Proposals.from_masks(mask[None], (mask.shape[0], mask.shape[1]))

    @property
    def cropped(self) -> npt.NDArray[np.uint8]:
        """The image, cut to the box around the mask."""
        if self.mask is None:
            return self.content
        rows, cols = (np.flatnonzero(self.mask.any(axis=axis)) for axis in (1, 0))
        return self.content[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.kind, self.content, self.mask, self.shown

    def __deepcopy__(self, memo: Any) -> Prompt:
        return self


def is_prompt(value: object) -> bool:
    """Whether a value is an image or a vector: one of the classes here, a path, a PIL image, or an array."""
    kinds = (Prompt, Example, Vector, os.PathLike, Image.Image, np.ndarray)
    return isinstance(value, kinds) or hasattr(value, "detach")


def parse(value: Any) -> Prompt:
    """Read an `Example`, a path of an image, a PIL image, uint8 RGB (H, W, 3), a `Vector`, or a float vector (D,).

    Arrays may be tensors.

    Raises:
        LabelError: an array is neither, numbers are not finite, a vector is all zeros, or there are a mask and a box.
        ImageError: an image cannot be read.
        ProposalError: a mask or a box does not fit its image.
    """
    if isinstance(value, Prompt):
        return value
    if isinstance(value, Example):
        return _example(value)
    if isinstance(value, Vector):
        return Prompt(VECTOR, _unit(_row(value.row)), shown=not value.words)
    if isinstance(value, (os.PathLike, Image.Image)):
        return Prompt(IMAGE, read_image(value))
    array = _array(value)
    if array.ndim == 1 and array.dtype.kind == "f":
        return Prompt(VECTOR, _unit(array))
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8 and array.size:
        return Prompt(IMAGE, array)
    raise LabelError(
        f"an array among the labels is {array.dtype} {array.shape}: an image is uint8 (H, W, 3), a vector float (D,); "
        "several of them are a list"
    )


def _example(given: Example) -> Prompt:
    from densevl.proposals import given as read_regions  # loads torch

    rgb = read_image(given.image)
    if given.mask is not None and given.box is not None:
        raise LabelError("an Example has a mask and a box; give one of the two")
    if given.mask is None and given.box is None:
        return Prompt(IMAGE, rgb)
    regions = {"boxes": [given.box]} if given.mask is None else {"regions": np.asarray(given.mask)[None]}
    return Prompt(IMAGE, rgb, read_regions(rgb, **regions).masks()[0])


def _array(value: Any) -> npt.NDArray[Any]:
    """Convert to an array; NumPy lacks torch's short floats."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    tensor = value.detach().cpu()
    return np.asarray(tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor)


def _row(value: Any) -> npt.NDArray[Any]:
    """The numbers (D,) of a `Vector`."""
    try:
        array = _array(value)
    except (TypeError, ValueError, RuntimeError):
        array = np.asarray(None)
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        kind = f"{array.dtype} {array.shape}" if array.dtype.kind in "fiub" else f"a {type(value).__name__}"
        raise LabelError(f"a Vector is {kind}; give one row of numbers (D,)")
    return array


def _unit(row: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Normalise a row to length 1, however small or large its numbers are."""
    exact = row.astype(np.float64)
    if not np.isfinite(exact).all() or not exact.any():
        raise LabelError("a vector among the labels holds only zeros, or numbers that are not finite")
    exact /= np.abs(exact).max()
    return (exact / np.linalg.norm(exact)).astype(np.float32)


def name_of(value: Any, number: int) -> str:
    """The name of a class that is given as a prompt only: the file's name, or the kind and a number."""
    shown = value.image if isinstance(value, Example) else value
    if isinstance(shown, (str, os.PathLike)) and not isinstance(shown, Prompt):
        stem = os.path.splitext(os.path.basename(os.fspath(shown)))[0]
        return str(stem)
    return f"{IMAGE if isinstance(value, Example) else parse(value).kind} {number}"
