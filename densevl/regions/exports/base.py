"""The base of all exported data sets: an export is opened on a folder, given results, and closed.

`open_export("coco", "out", names)` of `kinds` opens one. Files of one photo are written at once; lists of all photos
are held until `close`. Every file is complete or absent.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from densevl import __version__
from densevl.errors import DensevlError, OutputError
from densevl.files import renew, shown, unique_stems
from densevl.images.addresses import TAR, is_address, local
from densevl.proposals.base import Proposals
from densevl.regions.exports.contents import as_json, coco_categories
from densevl.regions.result import RegionResult
from densevl.results import SegmentationResult


def as_regions(result: RegionResult | SegmentationResult) -> RegionResult:
    """A label map as one region for each class present, or the named regions of a region result."""
    if isinstance(result, RegionResult):
        return result.select(result.labels >= 0)
    present = np.unique(result.labels[result.labels >= 0])
    names, image = result.names, result.image
    shares = [float(result.confidence[result.labels == label].mean()) for label in present]
    scores = np.zeros((len(present), len(names)), np.float32)
    scores[np.arange(len(present)), present] = shares
    masks = result.labels == present[:, None, None]
    found = Proposals.from_masks(masks) if len(present) else Proposals.from_masks(np.zeros((0, *image.shape[:2]), bool))
    nothing, confidence = np.zeros(len(present), np.float32), np.array(shares, np.float32)
    labels = present.astype(np.int64)
    return RegionResult(found, names, scores, nothing, labels, confidence, image, meta=result.meta)


class Export(ABC):
    """One data set of many results.

    Args:
        folder: the folder to write. vocabulary: the class names, the same for every result.
        stuff: for "panoptic", names whose regions form one segment.
        overwrite: replace photos' files that exist with other contents.

    Attributes:
        file: the file written in the folder itself, if any. others: further files there. part, ending: the subfolder
            and the ending of each photo's file, if any. wants_photo: whether results must have their photo.
    """

    file: str | None = None
    others: tuple[str, ...] = ()
    part: str | None = None
    ending = ""
    wants_photo = False

    def __init__(
        self,
        folder: str | os.PathLike[str],
        vocabulary: Sequence[str],
        stuff: Collection[str] = (),
        overwrite: bool = False,
    ) -> None:
        self.overwrite = overwrite
        self.folder, self.vocabulary, self.stuff = Path(folder), tuple(vocabulary), tuple(stuff)
        self.categories = coco_categories(self.vocabulary, self.stuff)
        self.images_of: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.annotations: list[dict[str, Any]] = []
        self._stems: set[str] = set()
        self._name: str | None = None

    def add(self, path: str | os.PathLike[str], result: Any, name: str | None = None) -> None:
        """Add the result of one photo, a `RegionResult` or a `SegmentationResult`.

        Args:
            name: stem of the photo's own files; None takes the photo's, made unique.

        Raises:
            DensevlError: the result has other classes.
            OutputError: the disk refuses, the photo lies where photos' files are written, or a file there differs from
                what would be written, as somebody may have edited it.
        """
        own = tuple(result.names)
        if own != self.vocabulary:
            raise DensevlError(f"the result of {shown(path)} has other classes than the export")
        place = os.fspath(path)
        inside = self.part is not None and not is_address(place)
        if inside and Path(local(place)).resolve().parent == (self.folder / str(self.part)).resolve():
            raise OutputError(f"{shown(path)} lies where the export writes; name another folder for results")
        self._name = name
        self.images_of.append(place if is_address(place) else Path(local(place)).absolute().as_posix())
        self.sizes.append(result.image.shape[:2])
        self._take(len(self.images_of), result)

    @abstractmethod
    def _take(self, image_id: int, result: Any) -> None:
        """Keep or write the result of photo `image_id`, counted from 1."""

    @abstractmethod
    def close(self) -> list[Path]:
        """Write what was held.

        Returns:
            The files and folders of the data set.

        Raises:
            OutputError: the disk refuses.
        """

    def images(self) -> list[dict[str, Any]]:
        """COCO's "images": ids from 1; file names relative to the folder that all photos share."""
        names = _below_common(self.images_of)
        return [
            {"id": number, "file_name": name, "height": height, "width": width}
            for number, (name, (height, width)) in enumerate(zip(names, self.sizes, strict=True), start=1)
        ]

    def _stem(self) -> str:
        """A file name for the newest photo: its own, with its number appended where another photo has that name."""
        if self._name is not None:
            return self._name
        stem = unique_stems(self.images_of[-1:])[0]
        while stem.casefold() in self._stems:
            stem = f"{stem}-{len(self.images_of)}"
        self._stems.add(stem.casefold())
        return stem

    @classmethod
    def name_of(cls, photo: str, folder: str, name: str) -> str:
        """The name of a photo's own file: that of its result, or made from the photo's folder."""
        return name

    @classmethod
    def own_file(cls, name: str) -> str:
        """Where in the folder the file of this name is; "" where photos have no files of their own."""
        return f"{cls.part}/{name}{cls.ending}" if cls.part else ""

    def _own_path(self) -> Path:
        """The path of the newest photo's own file."""
        return self.folder / self.own_file(self._stem())

    def _put(self, path: Path, data: bytes) -> None:
        if not self.overwrite and path.exists() and path.read_bytes() != data:
            raise OutputError(f"{shown(path)} was edited, or is somebody else's; move it, or allow it with --overwrite")
        renew(path, data)

    def _write(self, name: str, content: dict[str, Any]) -> Path:
        info = {"description": "named by densevl", "version": __version__}
        return self._renew(name, as_json({"info": info, "licenses": [], **content}))

    def _renew(self, name: str, data: bytes) -> Path:
        return renew(self.folder / name, data)


def twins(file: str) -> str:
    """The error for two photos with one file name, where a tool pairs files with photos by name."""
    return f"two photos would share {shown(file)}, for files go with photos by their names; rename one of the photos"


def _below_common(places: Sequence[str]) -> list[str]:
    """Absolute paths and addresses relative to the folder or address they share; members of archives by their names."""
    members = [place.partition("::")[0] if place.startswith(TAR) else place for place in places]
    if len(set(members)) < len(set(places)):  # several archives have a member of the same name
        return list(places)
    split = [member.split("/") for member in members]
    levels = zip(*(parts[:-1] for parts in split), strict=False)
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, levels))
    return ["/".join(parts[shared:]) for parts in split]
