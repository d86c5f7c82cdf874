"""An index on disk of the regions of many photos, for finding which of them match a query.

It is one .npz file of plain arrays: unit vectors in half precision, boxes, run lengths, and the photos they belong to.
Photos have their size and modification time, so a second build reads only new ones. Shape letters: N regions of all
photos, E joint space.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import DensevlError, OutputError
from densevl.files import atomic_write, shown
from densevl.proposals.base import Proposals
from densevl.saved import Kind, parse_json, read_arrays

VERSION = 1


class RegionIndexError(DensevlError):
    """An index cannot be read, or belongs to another model."""


INDEX = Kind("region index", RegionIndexError, "build it anew")
_ARRAYS = {"facts": ("u1", 1), "owner": ("i4", 1), "vectors": ("f2", 2), "boxes": ("f4", 2)}
"""Dtype kind and number of dimensions of each array."""


@dataclass(frozen=True)
class Photo:
    """A photo of an index.

    Attributes: path; size (H, W); bytes and changed (nanoseconds) of the file when it was read.
    """

    path: str
    size: tuple[int, int]
    bytes: int
    changed: int


@dataclass(frozen=True, eq=False)
class Hit:
    """A region that a query found.

    Attributes: path of the photo; score; box x0, y0, x1, y1; region: its mask, a `Proposals` of one.
    """

    path: str
    score: float
    box: tuple[float, float, float, float]
    region: Proposals

    def __repr__(self) -> str:
        return f"Hit({self.path}, {self.score:.3f}, box {', '.join(f'{side:.0f}' for side in self.box)})"


@dataclass(frozen=True, eq=False)
class RegionIndex:
    """Regions of many photos.

    Attributes:
        model: what embedded them: model, operator and options, as one line; queries must be embedded the same way.
        photos: the photos. owner: int32 (N,) index into them. vectors: float16 (N, E) unit rows.
        boxes: float32 (N, 4). masks: COCO's short strings, N of them.
    """

    model: str
    photos: tuple[Photo, ...]
    owner: npt.NDArray[np.int32]
    vectors: npt.NDArray[np.float16]
    boxes: npt.NDArray[np.float32]
    masks: tuple[str, ...]

    @classmethod
    def empty(cls, model: str, width: int) -> RegionIndex:
        """An index without photos, of vectors `width` wide."""
        return cls(model, (), np.zeros(0, np.int32), np.zeros((0, width), np.float16), np.zeros((0, 4), np.float32), ())

    def __len__(self) -> int:
        return len(self.owner)

    def __repr__(self) -> str:
        return f"RegionIndex({len(self.photos)} photos, {len(self)} regions, {self.model})"

    def with_photos(self, found: Sequence[tuple[Photo, Proposals, Any]]) -> RegionIndex:
        """Return the index with some photos added, or replaced if it had their paths.

        Each photo has its regions and their vectors (R, E). Empty masks are left out.
        """
        kept = self.without([photo.path for photo, _, _ in found])
        owner, vectors, boxes, masks = [kept.owner], [kept.vectors], [kept.boxes], list(kept.masks)
        for number, (_, regions, rows) in enumerate(found, start=len(kept.photos)):
            filled = np.flatnonzero(regions.areas > 0)
            few = regions.select(filled)
            owner.append(np.full(len(few), number, np.int32))
            vectors.append(np.asarray(rows, np.float32)[filled].astype(np.float16))
            boxes.append(few.boxes)
            masks += [entry["counts"] for entry in few.to_rle()]
        photos = (*kept.photos, *(photo for photo, _, _ in found))
        filled_vectors = [part for part in vectors if len(part)] or vectors[:1]
        return RegionIndex(
            self.model,
            photos,
            np.concatenate(owner),
            np.concatenate(filled_vectors),
            np.concatenate(boxes),
            tuple(masks),
        )

    def without(self, paths: Any) -> RegionIndex:
        """Return the index without the photos at some paths."""
        gone = set(paths)
        stays = [number for number, photo in enumerate(self.photos) if photo.path not in gone]
        if len(stays) == len(self.photos):
            return self
        number = np.full(len(self.photos), -1, np.int32)
        number[stays] = np.arange(len(stays))
        kept = number[self.owner] >= 0
        return RegionIndex(
            self.model,
            tuple(self.photos[index] for index in stays),
            number[self.owner[kept]],
            self.vectors[kept],
            self.boxes[kept],
            tuple(mask for mask, keep in zip(self.masks, kept, strict=True) if keep),
        )

    def nearest(self, query: Any, top: int = 10, *, each: int = 1, against: Any = None) -> list[Hit]:
        """The regions nearest to a unit vector (E,).

        Args:
            query: from the same model. top: most hits in all. each: most hits in one photo.
            against: (K, E) unit rows that hits should not resemble: the largest of their cosines is subtracted.

        Returns:
            Hits, best first; equal scores stay in the order of the index.
        """
        rows = self.vectors.astype(np.float32)
        score = rows @ np.asarray(query, np.float32).reshape(-1)
        if against is not None and len(against):
            score = score - (rows @ np.asarray(against, np.float32).T).max(axis=1)
        found: list[Hit] = []
        count = np.zeros(len(self.photos), np.int64)
        for index in np.argsort(-score, kind="stable"):
            if len(found) >= top:
                break
            owner = int(self.owner[index])
            if count[owner] < each:
                count[owner] += 1
                found.append(self._hit(int(index), float(score[index])))
        return found

    def _hit(self, index: int, score: float) -> Hit:
        photo = self.photos[self.owner[index]]
        x0, y0, x1, y1 = (float(side) for side in self.boxes[index])
        region = Proposals.from_rle([{"size": list(photo.size), "counts": self.masks[index]}])
        return Hit(photo.path, score, (x0, y0, x1, y1), region)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the index, whole or not at all.

        Raises:
            OutputError: the ending is not .npz, or the disk refuses.
        """
        path = Path(path)
        if path.suffix.lower() != ".npz":
            raise OutputError(f"cannot save {shown(path)}: an index is an .npz file, end the name in .npz")
        facts = {
            "version": VERSION,
            "model": self.model,
            "photos": [[p.path, *p.size, p.bytes, p.changed] for p in self.photos],
            "masks": self.masks,
        }
        text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, facts=text, owner=self.owner, vectors=self.vectors, boxes=self.boxes)
        return atomic_write(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RegionIndex:
        """Read what `save` wrote.

        Raises:
            RegionIndexError: the file is missing, damaged or not an index.
        """
        arrays = read_arrays(path, INDEX)
        if missing := _ARRAYS.keys() - arrays:
            raise INDEX.bad(path, f"is of another kind: it lacks '{min(missing)}'")
        with INDEX.sense(path):
            facts = parse_json(arrays["facts"].tobytes())
            if facts["version"] != VERSION:
                raise INDEX.bad(path, f"is of version {str(facts['version'])[:20]}, this densevl reads {VERSION}")
            photos = tuple(Photo(p, (int(h), int(w)), int(b), int(t)) for p, h, w, b, t in facts["photos"])
            found = cls(
                facts["model"],
                photos,
                arrays["owner"],
                arrays["vectors"],
                arrays["boxes"],
                tuple(facts["masks"]),
            )
            if {name: (arrays[name].dtype.str[1:], arrays[name].ndim) for name in _ARRAYS} != _ARRAYS:
                raise ValueError("an array has a wrong dtype or number of dimensions")
            found._require_sound()
        return found

    def _require_sound(self) -> None:
        """Raise a ValueError where the parts contradict each other."""
        count = len(self.masks)
        if (len(self.owner), len(self.vectors), self.boxes.shape) != (count, count, (count, 4)):
            raise ValueError("its arrays have different lengths")
        if count and not 0 <= self.owner.min() <= self.owner.max() < len(self.photos):
            raise ValueError("a region belongs to no photo")
        if not (np.isfinite(self.vectors).all() and np.isfinite(self.boxes).all()):
            raise ValueError("a vector or a box is not finite")
        texts = (self.model, *(photo.path for photo in self.photos), *self.masks)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a path, a mask or the model is not text")
        if not all(min(photo.size) > 0 for photo in self.photos):
            raise ValueError("a photo has no size")
