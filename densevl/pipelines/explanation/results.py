"""What `Explainer` gives: numbers on the patch grid that add up to a score, and pictures of them."""

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
from densevl.errors import LabelError, OptionError, OutputError
from densevl.files import atomic_write_all
from densevl.images import encode_png
from densevl.results.base import to_json

Floats = npt.NDArray[np.float64]
SHEET, SHOWN = 1200, 640  # pixels of a sheet across, and of a photo in it along its long side
ACROSS, LEAST, MOST = 160, 640, 2400  # pixels of the map of a head, and of a sheet of them
MOST_WORDS = 19  # of a sheet


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(ABC):
    """What all explanations have.

    Attributes:
        score: what is explained, a cosine or a difference of cosines. image: uint8 RGB (H, W, 3), all of which is fed,
            resized to the trained size. meta: what made it. warnings: a sentence each.
    """

    score: float
    image: npt.NDArray[np.uint8]
    meta: dict[str, Any] = field(default_factory=dict, kw_only=True)
    warnings: tuple[str, ...] = field(default=(), kw_only=True)

    @abstractmethod
    def overlay(self) -> npt.NDArray[np.uint8]:
        """The picture: uint8 RGB."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """All numbers, ready for JSON."""

    def brief(self) -> dict[str, Any]:
        """Its numbers without the maps, and the warnings."""
        return {**_without_maps(self.facts()), "warnings": list(self.warnings)}

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write the picture, and its numbers as a JSON of the same stem, both or none.

        Raises:
            OutputError: it is no name that ends in .png, or the disk refuses.
        """
        try:
            target = Path(path)
        except TypeError as error:
            raise OutputError(f"cannot save to a {type(path).__name__}: give a name that ends in .png") from error
        if target.suffix.lower() != ".png":
            raise OutputError(f"cannot save to {target}: give a name that ends in .png")
        height, width = self.image.shape[:2]
        facts = {"size": {"height": height, "width": width}, **self.facts()}
        facts |= {"meta": self.meta, "warnings": list(self.warnings)}
        return atomic_write_all({target: encode_png(self.overlay()), target.with_suffix(".json"): to_json(facts)})

    def _photo(self) -> npt.NDArray[np.uint8]:
        picture = Image.fromarray(self.image)
        picture.thumbnail((SHOWN, SHOWN))
        if max(picture.size) < SHOWN // 2:  # a small drawing: its maps are to be seen, too
            times = SHOWN // max(picture.size)
            picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.LANCZOS)
        return np.array(picture)


@dataclass(frozen=True, eq=False, repr=False)
class PatchMap(Explanation):
    """What each patch adds to the score of a label: exact, all parts add up to the score.

    Attributes:
        label: the word explained, the best of its synonyms. against: the words whose mean score is taken off.
        map: (h, w), by the attention of all blocks and heads.
        cls: by what CLS sees of itself. mlps: (L,) by the MLP of each block. start: by what enters the first block.
        blocks: (L,) of the map and `cls`, what each block's attention adds.
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
        """What the score is the sum of."""
        return {"patches": float(self.map.sum()), "CLS": self.cls, "MLPs": float(self.mlps.sum()), "input": self.start}

    def overlay(self) -> npt.NDArray[np.uint8]:
        """The photo, beside it the photo under its map, and the bar of colours below: uint8 RGB."""
        photo, limit = self._photo(), _limit(self.map)
        told = ", ".join(f"{name} {value:+.3f}" for name, value in self.parts.items())
        less = f" less {', '.join(self.against)}" if self.against else ""
        titles = (f"score of {self.label}{less}: {self.score:.3f}", f"= {told}")
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
        label, against: as of `PatchMap`. blocks: the numbers of the blocks, from 1.
        maps: (L', A, h, w) by block, head and patch. cls: (L', A) by what CLS sees of itself.
    """

    label: str
    against: tuple[str, ...]
    blocks: tuple[int, ...]
    maps: Floats
    cls: Floats

    def __repr__(self) -> str:
        told = ", ".join(f"{block}.{head} {score:+.3f}" for (block, head), score in self.top(3))
        return f"HeadMaps({self.label!r}, score {self.score:.3f}, {told})"

    @property
    def scores(self) -> Floats:
        """(L', A), what each head adds by all patches and CLS."""
        return np.asarray(self.maps.sum(axis=(2, 3)) + self.cls)

    def top(self, count: int) -> list[tuple[tuple[int, int], float]]:
        """The heads that add or take off most: ((block, head), score), both from 1.

        Raises:
            OptionError: count is not a whole number of at least 1.
        """
        if not is_whole(count) or count < 1:
            raise OptionError(f"count is {count!r}; it is how many heads, at least 1")
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
        """The photo and the sum of all heads, below a map for each, a block a row: uint8 RGB."""
        photo, heads = self._photo(), self.maps.shape[1]
        whole, limit = self.maps.sum(axis=(0, 1)), _limit(self.maps)
        less = f" less {', '.join(self.against)}" if self.against else ""
        titles = [f"score of {self.label}{less}: {self.score:.3f}", f"heads of {self.summed}: {self.scores.sum():+.3f}"]
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
    """What each word of a caption and each patch add together to the score.

    Its sum, with `end` and `cls`, is the score less what text and image have with the other's reference: f(x, x) -
    f(x, r) - f(r, x) + f(r, r), but for `gap`.

    Attributes:
        caption: as given. tokens: its words, of which the tokenizer's parts are joined; punctuation too.
        map: (S, h, w) by word and patch. end: (h, w) by the mark of the end of the text and patch.
        cls: (S + 1,) by word, and last by the mark of the end, with CLS.
        references: f(x, r), f(r, x), f(r, r) by name. gap: of the sum.
        box: x0, y0, x1, y1 in pixels, whose `region` is among the facts; None is no box.
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
        told = ", ".join(f"{word} {score:+.3f}" for word, score in zip(self.tokens, self.scores, strict=True))
        return f"PairMap(score {self.score:.3f}, {told})"

    @property
    def scores(self) -> Floats:
        """(S,) of each word with all patches."""
        return np.asarray(self.map.sum(axis=(1, 2)))

    def region(self, box: Sequence[float]) -> Floats:
        """(S,) of each word with the patches in a box; of one that is partly inside, that part.

        Args:
            box: x0, y0, x1, y1 in pixels of the photo.

        Raises:
            OptionError: no such box.
        """
        x0, y0, x1, y1 = require_box(box, self.image)
        height, width = self.image.shape[:2]
        rows, columns = self.map.shape[1:]
        across, down = _covered(x0, x1, width, columns), _covered(y0, y1, height, rows)
        return np.asarray(np.einsum("syx,y,x->s", self.map, down, across))

    def span(self, text: str) -> Floats:
        """(h, w) of some words of the caption together.

        Raises:
            LabelError: no text, or the caption has no such words, one after the other.
        """
        if not isinstance(text, str):
            raise LabelError(f"the words are a {type(text).__name__}; give some of the caption as one text")
        asked = "".join(text.casefold().split())
        for start in range(len(self.tokens)):
            for stop in range(start + 1, len(self.tokens) + 1):
                if asked and "".join(self.tokens[start:stop]).casefold() == asked:
                    return np.asarray(self.map[start:stop].sum(axis=0))
        raise LabelError(f"{text[:60]!r} is no part of the caption; its words are {' '.join(self.tokens)}")

    def overlay(self) -> npt.NDArray[np.uint8]:
        """The photo, the whole caption's map, and one for each word, with the bar of colours below: uint8 RGB."""
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
    """Whether a value is a whole number."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


MAPS = ("map", "end", "cls", "blocks", "mlps")


def _without_maps(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_maps(own) for key, own in value.items() if key not in MAPS}
    return [_without_maps(own) for own in value] if isinstance(value, list) else value


def require_box(box: Sequence[float], image: npt.NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """A box x0, y0, x1, y1 in the pixels of an image (H, W, 3).

    Raises:
        OptionError: it is none, or not inside.
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
    """How much of each cell along a side lies between two places, 0..1."""
    edges = np.arange(cells + 1) * (length / cells)
    inside = np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start)
    return np.clip(inside, 0, None) * cells / length


def _limit(values: Floats) -> float:
    return float(np.abs(values).max()) or 1.0


def _above(sheet: npt.NDArray[np.uint8], limit: float) -> npt.NDArray[np.uint8]:
    """A sheet with the bar of colours below."""
    return np.concatenate([sheet, signed_bar(limit, sheet.shape[1])])
