"""The base of all results: files, comparison, restriction to some classes, and display in a notebook."""

from __future__ import annotations

import json
import logging
import math
import os
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from densevl import __version__
from densevl.drawing import palette
from densevl.errors import DensevlError, ImageError, OutputError, suggest
from densevl.files import shown
from densevl.images import encode_png, read_image
from densevl.images.limit import most_pixels
from densevl.saved import Kind, read_json

if TYPE_CHECKING:
    pass

#: The name of pixels without label, in `fractions` and `mask`.
UNLABELLED = "nothing"
VOLATILE = ("seconds",)
"""Keys of meta that are not written, so that a second run gives the same files."""
SHOWN = 800  # pixels of the long side, in a notebook
RESULT = Kind("result", DensevlError, "save it again")


class Result(ABC):
    """Base class of results. They can be saved and read, compared, restricted to some classes, and displayed.

    Two results are equal if their files would be: arrays are compared by value, but not the duration, the photo's
    pixels, or anything that needs the model. Results hold arrays and have no hash.

    Attributes:
        names: the classes. image: uint8 RGB (H, W, 3). meta: what made it. warnings: one sentence each.
    """

    names: tuple[str, ...]
    image: npt.NDArray[np.uint8]
    meta: dict[str, Any]
    warnings: tuple[str, ...]

    @abstractmethod
    def overlay(self, *, legend: bool = True) -> npt.NDArray[np.uint8]:
        """Draw the result over the photo: uint8 RGB. `legend`: add the names below."""

    @abstractmethod
    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
        """Write the files that `load` reads, either all or none, and return their paths.

        Args:
            overwrite: allow replacing files that densevl did not write.

        Raises:
            OutputError: If the name cannot be used, a file is the photo or was not written by densevl, or the files
                cannot be written.
        """

    @classmethod
    @abstractmethod
    def load(cls, path: str | os.PathLike[str], *, image: Any = None) -> Self:
        """Read what `save` wrote; see `photo_of` for the image."""

    @abstractmethod
    def only(self, names: str | Iterable[str]) -> Self:
        """Return the result with only these classes. Others become nothing."""

    @abstractmethod
    def _content(self) -> dict[str, Any]:
        """Return everything that files contain: arrays and JSON types."""

    @abstractmethod
    def _shares(self) -> dict[str, tuple[int | None, str]]:
        """Return what a notebook lists: by name the index of its colour, and its amount as text."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)) or type(other) is not type(self):
            return NotImplemented
        return _same(self._content(), other._content())

    __hash__ = None  # type: ignore[assignment]  # arrays may change

    def _repr_html_(self) -> str:
        """Return the overlay, at most 800 pixels long, with a legend, as HTML without scripts."""
        picture = Image.fromarray(self.overlay(legend=False))
        picture.thumbnail((SHOWN, SHOWN))
        data = b64encode(encode_png(picture)).decode()
        shares = self._shares()
        colours = palette(1 + max([number for number, _ in shares.values() if number is not None], default=0)).tolist()
        rows = "".join(
            f'<span style="white-space:nowrap;margin-right:1em">{_swatch(colours, number)} {escape(name)} '
            f"{escape(share)}</span> "
            for name, (number, share) in shares.items()
        )
        warnings = "".join(f"<div>{escape(text)}</div>" for text in self.warnings)
        return f'<div><img src="data:image/png;base64,{data}" alt="overlay"/><div>{rows}</div>{warnings}</div>'

    def _facts(self) -> dict[str, Any]:
        """Return meta and warnings for files, without what changes from run to run."""
        meta = {key: value for key, value in self.meta.items() if key not in VOLATILE}
        return {"meta": meta, "warnings": list(self.warnings)}


def _swatch(colours: list[list[int]], number: int | None) -> str:
    colour = "none" if number is None else "rgb({}, {}, {})".format(*colours[number])
    size = "display:inline-block;width:.8em;height:.8em;border:1px solid #888"
    return f'<span style="{size};background:{colour}"></span>'


def to_json(content: dict[str, Any]) -> bytes:
    """Return the JSON file of a result.

    Raises:
        OutputError: If meta is not JSON.
    """
    try:
        text = json.dumps(
            {"densevl": __version__, **content}, ensure_ascii=False, indent=1, allow_nan=False, default=_plain
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise OutputError(f"cannot save the result: its meta is not JSON: {error}") from error
    # A file name that is not UTF-8 contains lone surrogates. Escaped, they are valid JSON and read back the same.
    return text.encode(errors="backslashreplace")


def from_json(path: Path, needed: Collection[str]) -> dict[str, Any]:
    """Read the JSON file of a result, and check that it is complete and its common facts are valid.

    Raises:
        DensevlError: If it is missing, damaged, or of another kind of result.
    """
    content = read_json(path, RESULT, {"size", "meta", "warnings", *needed})
    with RESULT.sense(path):
        require_facts(content)
    return content


def require_facts(content: Mapping[str, Any], max_pixels: int | None = None) -> None:
    """Refuse content whose common facts are not valid.

    Args:
        max_pixels: limit of its size; None is that of `images.pixel_limit`.

    Raises:
        ValueError, KeyError: With what is wrong.
    """
    for name in ("names", "warnings"):
        texts = content.get(name, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"its {name} are not a list of strings")
    if not isinstance(content["meta"], dict) or not isinstance(content["meta"].get("image", ""), str | None):
        raise ValueError("its meta is not an object, or its image is not a string")
    size = content["size"]
    most = most_pixels() if max_pixels is None else max_pixels
    sides = [size.get(side, 0) for side in ("height", "width")] if isinstance(size, dict) else [0]
    if not all(type(side) is int and side > 0 for side in sides) or math.prod(sides) > most:
        raise ValueError(
            f"its size is {str(size)[:80]}: it must have a height and a width above 0, and at most {most:,} pixels"
        )


def photo_of(content: Mapping[str, Any], image: Any = None) -> npt.NDArray[np.uint8]:
    """Return the photo of a saved result: the one given, or from the path in its meta, or white with a warning.

    Args:
        content: from `from_json`.

    Raises:
        ImageError: If the given photo cannot be read.
        DensevlError: If it has another size.
    """
    size = content["size"]["height"], content["size"]["width"]
    source = image if image is not None else content["meta"].get("image")
    reason = "the result does not say where it is"
    if source is not None:
        try:
            photo = read_image(source)
            if photo.shape[:2] == size:
                return photo
            reason = f"{shown(str(source))} is {photo.shape[0]}x{photo.shape[1]} but the result {size[0]}x{size[1]}"
        except ImageError as error:
            if image is not None:
                raise
            reason = str(error)
    if image is not None:
        raise DensevlError(f"the photo of another result: {reason}")
    logging.getLogger(__name__).warning("a result is read without its photo, and a white one is used: %s", reason)
    return np.full((*size, 3), 255, np.uint8)


def chosen(names: str | Iterable[str], known: Sequence[str]) -> list[int]:
    """Return the indices of some classes, in their own order.

    Raises:
        DensevlError: If a name is unknown, or none is given.
    """
    asked = list(names) if isinstance(names, Iterable) and not isinstance(names, str) else [names]
    for name in asked:
        if name not in known:
            raise DensevlError(f"no class {name!r} in this result{suggest(str(name), known)}")
    if not asked:
        raise DensevlError("no names: give only() at least one class")
    return [number for number, name in enumerate(known) if name in asked]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    return json.dumps(one, default=_plain) == json.dumps(other, default=_plain)


def _plain(value: Any) -> Any:
    """Convert common values in meta to JSON types."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} is not a JSON type")
