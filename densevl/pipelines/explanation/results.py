"""Results of `Explainer`: numbers on the patch grid that add up to a score, and pictures of them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from densevl.drawing import contact_sheet, draw_signed, signed_bar
from densevl.drawing.colours import PAPER
from densevl.errors import LabelError, OptionError
from densevl.files import save_all, target_of
from densevl.images import encode_png
from densevl.results.base import to_json

Floats = npt.NDArray[np.float64]
SHEET, SHOWN = 1200, 640  # pixels: width of a sheet, and long side of a photo in it
ACROSS, LEAST, MOST = 160, 640, 2400  # pixels: width of a head's map, and least and greatest width of their sheet
MOST_WORDS = 19  # per sheet


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(ABC):
    """Base class of explanations.

    Attributes:
        score: the explained value, a cosine or a difference of cosines. image: uint8 RGB (H, W, 3). All of it is fed,
            resized to the training size. meta: what it was made with. warnings: one sentence each.
    """

    score: float
    image: npt.NDArray[np.uint8]
    meta: dict[str, Any] = field(default_factory=dict, kw_only=True)
    warnings: tuple[str, ...] = field(default=(), kw_only=True)

    @abstractmethod
    def overlay(self) -> npt.NDArray[np.uint8]:
        """Draw the explanation: uint8 RGB."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return all numbers, ready for JSON."""

    def brief(self) -> dict[str, Any]:
        """Return the numbers without the maps, and the warnings."""
        return {**_without_maps(self.facts()), "warnings": list(self.warnings)}

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
        """Write the picture, and its numbers as a JSON of the same stem, either both or neither.

        Args:
            overwrite: allow replacing files that densevl did not write.

        Raises:
            OutputError: If the name does not end in .png, a file is the photo or was not written by densevl, or the
                files cannot be written.
        """
        target = target_of(path, ".png", "explanations are PNG files")
        height, width = self.image.shape[:2]
        facts = {"size": {"height": height, "width": width}, **self.facts()}
        facts |= {"meta": self.meta, "warnings": list(self.warnings)}
        contents = {target: encode_png(self.overlay()), target.with_suffix(".json"): to_json(facts)}
        return save_all(contents, inputs=[self.meta.get("image")], overwrite=overwrite)

    def _photo(self) -> npt.NDArray[np.uint8]:
        picture = Image.fromarray(self.image)
        picture.thumbnail((SHOWN, SHOWN))
        if max(picture.size) < SHOWN // 2:  # enlarge small drawings, to make their maps visible
            times = SHOWN // max(picture.size)
            picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.LANCZOS)
        return np.array(picture)


@dataclass(frozen=True, eq=False, repr=False)
class PatchMap(Explanation):
    """What each patch adds to the score of a label. It is exact: all parts add up to the score.

    Attributes:
        label: the explained word, the best of its synonyms. against: the words whose mean score is subtracted.
        map: (h, w), what the attention of all blocks and heads adds.
        cls: what the attention of CLS to itself adds. mlps: (L,), what the MLP of each block adds. start: what the
            input of the first block adds.
        blocks: (L,), what each block's attention adds to the map and `cls`.
    """

    label: str
    against: tuple[str, ...]
    map: Floats
    cls: float
    mlps: Floats
    start: float
    blocks: Floats

    def __repr__(self) -> str:
        return f"PatchMap({self.label!r}, score {self.score:.3f}, patches {self.map.sum():+.3f})"

    @property
    def parts(self) -> dict[str, float]:
        """The parts that the score is the sum of."""
        return {"patches": float(self.map.sum()), "CLS": self.cls, "MLPs": float(self.mlps.sum()), "input": self.start}

    def overlay(self) -> npt.NDArray[np.uint8]:
        """Draw the photo, the photo under its map next to it, and the colour bar below: uint8 RGB."""
        photo, limit = self._photo(), _limit(self.map)
        parts = ", ".join(f"{name} {value:+.3f}" for name, value in self.parts.items())
        minus = f" minus {', '.join(self.against)}" if self.against else ""
        titles = (f"score of {self.label}{minus}: {self.score:.3f}", f"= {parts}")
        return _above(contact_sheet([photo, draw_signed(photo, self.map, limit)], titles, 2, SHEET), limit)

    def facts(self) -> dict[str, Any]:
        """See `Explanation.facts`."""
        return {
            "label": self.label,
            "against": list(self.against),
            "score": self.score,
            "parts": self.parts,
            "blocks": self.blocks.tolist(),
            "mlps": self.mlps.tolist(),
            "map": self.map.tolist(),
        }


@dataclass(frozen=True, eq=False, repr=False)
class HeadMaps(Explanation):
    """What each head of some blocks adds to the score of a label, by patch.

    Attributes:
        label, against: as for `PatchMap`. blocks: the block numbers, from 1.
        maps: (L', A, h, w) by block, head and patch. cls: (L', A), what the attention of CLS to itself adds.
    """

    label: str
    against: tuple[str, ...]
    blocks: tuple[int, ...]
    maps: Floats
    cls: Floats

    def __repr__(self) -> str:
        best = ", ".join(f"{block}.{head} {score:+.3f}" for (block, head), score in self.top(3))
        return f"HeadMaps({self.label!r}, score {self.score:.3f}, {best})"

    @property
    def scores(self) -> Floats:
        """What each head adds over all patches and CLS, (L', A)."""
        return np.asarray(self.maps.sum(axis=(2, 3)) + self.cls)

    def top(self, count: int) -> list[tuple[tuple[int, int], float]]:
        """Return the heads that add or subtract most: ((block, head), score), both from 1.

        Raises:
            OptionError: If count is not a whole number of at least 1.
        """
        if not is_whole(count) or count < 1:
            raise OptionError(f"count is {count!r}; it must be a number of heads, at least 1")
        scores = self.scores
        order = np.argsort(-np.abs(scores), axis=None, kind="stable")[:count]
        places = [np.unravel_index(int(place), scores.shape) for place in order]
        return [((self.blocks[row], int(head) + 1), float(scores[row, head])) for row, head in places]

    @property
    def summed(self) -> str:
        """The blocks in words: "block 6", "blocks 3 to 6", "blocks 3, 6"."""
        first, last = self.blocks[0], self.blocks[-1]
        if len(self.blocks) == 1:
            return f"block {first}"
        joined = last - first + 1 == len(self.blocks) > 2
        return f"blocks {first} to {last}" if joined else f"blocks {', '.join(map(str, self.blocks))}"

    def overlay(self) -> npt.NDArray[np.uint8]:
        """Draw the photo and the sum of all heads; below, a map for each head, with one block per row: uint8 RGB."""
        photo, heads = self._photo(), self.maps.shape[1]
        whole, limit = self.maps.sum(axis=(0, 1)), _limit(self.maps)
        minus = f" minus {', '.join(self.against)}" if self.against else ""
        titles = [
            f"score of {self.label}{minus}: {self.score:.3f}",
            f"heads of {self.summed}: {self.scores.sum():+.3f}",
        ]
        width = min(max(ACROSS * heads, LEAST), MOST)
        top = contact_sheet([photo, draw_signed(photo, whole, _limit(whole))], titles, 2, min(width, SHEET))
        top = np.pad(top, ((0, 0), (0, width - top.shape[1]), (0, 0)), constant_values=PAPER[0])
        small = np.array(Image.fromarray(photo).resize((max(1, photo.shape[1] // 2), max(1, photo.shape[0] // 2))))
        tiles = [draw_signed(small, own, limit) for block in self.maps for own in block]
        named = [
            f"{block}.{head} {score:+.3f}"
            for block, row in zip(self.blocks, self.scores, strict=True)
            for head, score in enumerate(row, 1)
        ]
        return _above(np.concatenate([top, contact_sheet(tiles, named, heads, width)]), limit)

    def facts(self) -> dict[str, Any]:
        """See `Explanation.facts`."""
        scores = self.scores
        rows = [
            {
                "block": block,
                "head": head + 1,
                "score": float(scores[row, head]),
                "share": float(scores[row, head]) / self.score if self.score else None,
                "map": self.maps[row, head].tolist(),
            }
            for row, block in enumerate(self.blocks)
            for head in range(scores.shape[1])
        ]
        return {"label": self.label, "against": list(self.against), "score": self.score, "heads": rows}


@dataclass(frozen=True, eq=False, repr=False)
class PairMap(Explanation):
    """What each word of a caption and each patch together add to the score.

    The map, `end` and `cls` add up to f(x, x) - f(x, r) - f(r, x) + f(r, r), except for `gap`: the score, minus what
    text and image have in common with each other's reference.

    Attributes:
        caption: as given. tokens: its words, with the tokenizer's parts joined, and punctuation.
        map: (S, h, w) by word and patch. end: (h, w) by patch, for the end token.
        cls: (S + 1,) with CLS, by word, and last for the end token.
        references: f(x, r), f(r, x), f(r, r) by name. gap: error of the sum.
        box: x0, y0, x1, y1 in pixels, whose `region` is included in the facts; None for no box.
    """

    caption: str
    tokens: tuple[str, ...]
    map: Floats
    end: Floats
    cls: Floats
    references: dict[str, float]
    gap: float
    box: tuple[float, float, float, float] | None = field(default=None, kw_only=True)

    def __repr__(self) -> str:
        words = ", ".join(f"{word} {score:+.3f}" for word, score in zip(self.tokens, self.scores, strict=True))
        return f"PairMap(score {self.score:.3f}, {words})"

    @property
    def scores(self) -> Floats:
        """The score of each word with all patches, (S,)."""
        return np.asarray(self.map.sum(axis=(1, 2)))

    def region(self, box: Sequence[float]) -> Floats:
        """Return the score of each word with the patches in a box, (S,). A patch counts by its share inside.

        Args:
            box: x0, y0, x1, y1 in pixels of the photo.

        Raises:
            OptionError: If there is no such box.
        """
        x0, y0, x1, y1 = require_box(box, self.image)
        height, width = self.image.shape[:2]
        rows, columns = self.map.shape[1:]
        across, down = _covered(x0, x1, width, columns), _covered(y0, y1, height, rows)
        return np.asarray(np.einsum("syx,y,x->s", self.map, down, across))

    def span(self, text: str) -> Floats:
        """Return the map (h, w) of several consecutive words of the caption.

        Raises:
            LabelError: If it is not a string, or these words are not consecutive in the caption.
        """
        if not isinstance(text, str):
            raise LabelError(f"the words are a {type(text).__name__}; give part of the caption as one string")
        asked = "".join(text.casefold().split())
        for start in range(len(self.tokens)):
            for stop in range(start + 1, len(self.tokens) + 1):
                if asked and "".join(self.tokens[start:stop]).casefold() == asked:
                    return np.asarray(self.map[start:stop].sum(axis=0))
        raise LabelError(f"{text[:60]!r} is not part of the caption; its words are {' '.join(self.tokens)}")

    def overlay(self) -> npt.NDArray[np.uint8]:
        """Draw the photo, the map of the whole caption and one for each word, with the colour bar below: uint8 RGB."""
        photo, whole = self._photo(), self.map.sum(axis=0)
        limit = _limit(self.map)
        words = list(zip(self.tokens, self.map, strict=True))
        left = f" (the first {MOST_WORDS} of {len(words)} words)" if len(words) > MOST_WORDS else ""
        tiles = [photo, draw_signed(photo, whole, limit)]
        titles = [f"score {self.score:.3f}{left}", f"all words {whole.sum():+.3f}"]
        for word, own in words[:MOST_WORDS]:
            tiles.append(draw_signed(photo, own, limit))
            titles.append(f"{word} {own.sum():+.3f}")
        return _above(contact_sheet(tiles, titles, 4, SHEET), limit)

    def facts(self) -> dict[str, Any]:
        """See `Explanation.facts`."""
        rows = [
            {"word": word, "score": float(own.sum()), "map": own.tolist()}
            for word, own in zip(self.tokens, self.map, strict=True)
        ]
        inside = {} if self.box is None else {"region": self._inside(self.box)}
        return {
            "caption": self.caption,
            "score": self.score,
            "words": rows,
            **inside,
            "end": self.end.tolist(),
            "cls": self.cls.tolist(),
            "references": self.references,
            "gap": self.gap,
        }

    def _inside(self, box: tuple[float, float, float, float]) -> dict[str, Any]:
        scores = zip(self.tokens, map(float, self.region(box)), strict=True)
        return {"box": list(box), "words": [{"word": word, "score": score} for word, score in scores]}


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


MAPS = ("map", "end", "cls", "blocks", "mlps")


def _without_maps(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_maps(own) for key, own in value.items() if key not in MAPS}
    return [_without_maps(own) for own in value] if isinstance(value, list) else value


def require_box(box: Sequence[float], image: npt.NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """Check a box x0, y0, x1, y1 in the pixels of an image (H, W, 3), and return it.

    Raises:
        OptionError: If it is not a box, or not inside the image.
    """
    height, width = image.shape[:2]
    try:
        x0, y0, x1, y1 = (float(side) for side in box)
    except (TypeError, ValueError):
        x0 = y0 = x1 = y1 = np.nan
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise OptionError(f"box {box!r} is not in the image of {width}x{height}; give x0, y0, x1, y1 in pixels")
    return x0, y0, x1, y1


def _covered(start: float, stop: float, length: int, cells: int) -> Floats:
    """Return the share of each cell along a side that lies between two positions, 0..1."""
    edges = np.arange(cells + 1) * (length / cells)
    inside = np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start)
    return np.clip(inside, 0, None) * cells / length


def _limit(values: Floats) -> float:
    return float(np.abs(values).max()) or 1.0


def _above(sheet: npt.NDArray[np.uint8], limit: float) -> npt.NDArray[np.uint8]:
    """Put a colour bar below a sheet."""
    return np.concatenate([sheet, signed_bar(limit, sheet.shape[1])])
