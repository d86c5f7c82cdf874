"""What all results share: files, comparison, cutting to some classes, and showing themselves in a notebook."""

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

#: The name of what carries no label, in `fractions` and `mask`.
UNLABELLED = "nothing"
VOLATILE = ("seconds",)
"""Of meta, what is not written: a second run is to give the same files."""
SHOWN = 800  # pixels along the long side, in a notebook
RESULT = Kind("result", DensevlError, "save it again")


class Result(ABC):
    """What every result can do besides its own: be saved and read, compared, cut to some classes, and shown.

    Two results are equal if what their files would say is: arrays by their numbers, and not how long it took, the
    photo's pixels, or what needs the model. As they hold arrays, results have no hash.

    Attributes:
        names: the classes. image: uint8 RGB (H, W, 3). meta: what made it. warnings: a sentence each.
    """

    names: tuple[str, ...]
    image: npt.NDArray[np.uint8]
    meta: dict[str, Any]
    warnings: tuple[str, ...]

    @abstractmethod
    def overlay(self, *, legend: bool = True) -> npt.NDArray[np.uint8]:
        """Draw what was found over the photo: uint8 RGB. Args: legend: with the names below."""

    @abstractmethod
    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write the files that `load` reads, all or none, and return their paths."""

    @classmethod
    @abstractmethod
    def load(cls, path: str | os.PathLike[str], *, image: Any = None) -> Self:
        """Read what `save` wrote; see `photo_of` for the image."""

    @abstractmethod
    def only(self, names: str | Iterable[str]) -> Self:
        """The result with only these classes; what was another is nothing."""

    @abstractmethod
    def _content(self) -> dict[str, Any]:
        """All that files hold: arrays, and JSON types."""

    @abstractmethod
    def _shares(self) -> dict[str, tuple[int | None, str]]:
        """What a notebook lists: by name the number of its colour, and how much of it there is."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)) or type(other) is not type(self):
            return NotImplemented
        return _same(self._content(), other._content())

    __hash__ = None  # type: ignore[assignment]  # arrays may change

    def _repr_html_(self) -> str:
        """The overlay, at most 800 pixels long, and a legend; one piece of HTML without script."""
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
        told = "".join(f"<div>{escape(text)}</div>" for text in self.warnings)
        return f'<div><img src="data:image/png;base64,{data}" alt="overlay"/><div>{rows}</div>{told}</div>'

    def _facts(self) -> dict[str, Any]:
        """Meta and warnings as files have them: plain, and without what changes from run to run."""
        meta = {key: value for key, value in self.meta.items() if key not in VOLATILE}
        return {"meta": meta, "warnings": list(self.warnings)}


def _swatch(colours: list[list[int]], number: int | None) -> str:
    colour = "none" if number is None else "rgb({}, {}, {})".format(*colours[number])
    size = "display:inline-block;width:.8em;height:.8em;border:1px solid #888"
    return f'<span style="{size};background:{colour}"></span>'


def to_json(content: dict[str, Any]) -> bytes:
    """The JSON file of a result.

    Raises:
        OutputError: meta is no JSON.
    """
    try:
        text = json.dumps(
            {"densevl": __version__, **content}, ensure_ascii=False, indent=1, allow_nan=False, default=_plain
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise OutputError(f"cannot save the result: its meta is no JSON: {error}") from error
    # A file name that is not UTF-8 holds lone surrogates; as escapes they are valid JSON and read back the same.
    return text.encode(errors="backslashreplace")


def from_json(path: Path, needed: Collection[str]) -> dict[str, Any]:
    """Read the JSON file of a result: what is needed is there, and size, names, meta and warnings are sound.

    Raises:
        DensevlError: missing, damaged, or of another kind of result.
    """
    content = read_json(path, RESULT, {"size", "meta", "warnings", *needed})
    with RESULT.sense(path):
        require_facts(content)
    return content


def require_facts(content: Mapping[str, Any], max_pixels: int | None = None) -> None:
    """Refuse content in which the facts that all results share are not what was saved.

    Args:
        max_pixels: of its size; None is that of `images.pixel_limit`.

    Raises:
        ValueError, KeyError: what is wrong.
    """
    for name in ("names", "warnings"):
        texts = content.get(name, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"its {name} are no list of texts")
    if not isinstance(content["meta"], dict) or not isinstance(content["meta"].get("image", ""), str | None):
        raise ValueError("its meta is no object, or does not name the photo by a text")
    size = content["size"]
    most = most_pixels() if max_pixels is None else max_pixels
    sides = [size.get(side, 0) for side in ("height", "width")] if isinstance(size, dict) else [0]
    if not all(type(side) is int and side > 0 for side in sides) or math.prod(sides) > most:
        raise ValueError(f"its size is {str(size)[:80]}: a height and a width above 0, {most:,} pixels at most")


def photo_of(content: Mapping[str, Any], image: Any = None) -> npt.NDArray[np.uint8]:
    """The photo of a saved result: the one given, else that whose path meta has, else white, which a warning says.

    Args:
        content: what `from_json` read.

    Raises:
        ImageError: the one given cannot be read.
        DensevlError: it is of another size.
    """
    size = content["size"]["height"], content["size"]["width"]
    source = image if image is not None else content["meta"].get("image")
    reason = "the result does not say where it is"
    if source is not None:
        try:
            photo = read_image(source)
            if photo.shape[:2] == size:
                return photo
            reason = f"{shown(str(source))} is {photo.shape[0]}x{photo.shape[1]} and the result {size[0]}x{size[1]}"
        except ImageError as error:
            if image is not None:
                raise
            reason = str(error)
    if image is not None:
        raise DensevlError(f"the photo of another result: {reason}")
    logging.getLogger(__name__).warning("a result is read without its photo, white stands for it: %s", reason)
    return np.full((*size, 3), 255, np.uint8)


def chosen(names: str | Iterable[str], known: Sequence[str]) -> list[int]:
    """The numbers of some classes, in their own order.

    Raises:
        DensevlError: an unknown name, or none.
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
    """Turn what meta commonly holds into JSON types."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} is no JSON type")
