"""Results of many photos as one data set: COCO's JSON, COCO's panoptic PNGs and JSON, LabelMe's JSON with polygons.

An exporter is opened on a folder, given one result after the other, and closed: `open_export("coco", "out", names)`.
What is written per photo is written at once; lists of all photos are held until `close`. Every file is whole or absent.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from densevl import __version__
from densevl.errors import DensevlError, OptionError, OutputError, suggest
from densevl.files import renew, shown, unique_stems
from densevl.images import encode_png
from densevl.regions.polygons import polygons

if TYPE_CHECKING:
    from densevl.proposals.base import Proposals
    from densevl.regions.resolve import Panoptic

#: The version of LabelMe whose files ours are like.
LABELME_VERSION = "5.5.0"
MOST_SEGMENTS = 2**24 - 1


def coco_categories(vocabulary: Sequence[str], stuff: Collection[str] | None = None) -> list[dict[str, Any]]:
    """COCO's "categories": ids from 1, in the order of the classes; `isthing` where `stuff` names those that are not.

    Raises:
        DensevlError: a name of `stuff` that is no class.
    """
    unknown = set(stuff or ()) - set(vocabulary)
    if unknown:
        raise DensevlError(f"no class {min(unknown)!r} to be stuff{suggest(min(unknown), vocabulary)}")
    entries: list[dict[str, Any]] = []
    for number, name in enumerate(vocabulary, start=1):
        kind = {} if stuff is None else {"isthing": int(name not in stuff)}
        entries.append({"id": number, "name": name, "supercategory": "", **kind})
    return entries


def panoptic_png(ids: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
    """A map of segment ids (H, W) as COCO stores it: uint8 RGB (H, W, 3), id = R + 256 G + 65536 B.

    Raises:
        DensevlError: an id that needs more than 24 bits, or is negative.
    """
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) <= MOST_SEGMENTS:
        raise DensevlError(f"segment ids span {ids.min()} to {ids.max()}; a panoptic PNG holds 0 to {MOST_SEGMENTS}")
    wide = ids.astype(np.uint32)
    return np.stack([wide & 255, wide >> 8 & 255, wide >> 16 & 255], axis=-1).astype(np.uint8)


def panoptic_annotation(panoptic: Panoptic, image_id: int = 0, file_name: str = "panoptic.png") -> dict[str, Any]:
    """COCO's panoptic annotation of one photo.

    Returns:
        image_id, file_name (of the PNG) and segments_info: id, category_id (class index + 1), area, bbox [x, y, width,
        height], iscrowd 0 and score for each segment; pixels of no segment have id 0.
    """
    ids = panoptic.ids
    segments = []
    for segment in panoptic.segments:
        rows, columns = (np.flatnonzero((ids == segment["id"]).any(axis=axis)) for axis in (1, 0))
        top, left = int(rows[0]), int(columns[0])
        segments.append(
            {
                "id": segment["id"],
                "category_id": segment["label"] + 1,
                "area": segment["area"],
                "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                "iscrowd": 0,
                "score": segment["score"],
            }
        )
    return {"image_id": image_id, "file_name": file_name, "segments_info": segments}


def labelme_content(
    regions: Proposals,
    names: Sequence[str],
    scores: Sequence[float] | npt.NDArray[Any],
    image_path: str,
    *,
    tolerance: float = 0.0,
    min_area: int = 1,
) -> dict[str, Any]:
    """One photo's regions as LabelMe's JSON, a polygon for each connected part.

    LabelMe's polygons have no holes: a hole is joined to the outline by a cut, there and back, which fills as a hole;
    the shape's description says so. Parts of one region share a `group_id`. Vertices are centres of pixels, the outline
    belongs to the shape: that is how LabelMe itself fills polygons.

    Args:
        regions: R masks. names, scores: of each. image_path: of the photo, as LabelMe looks for it: from the JSON's
            folder. tolerance, min_area: see `polygons`.
    """
    shapes = []
    for index, (name, score) in enumerate(zip(names, scores, strict=True)):
        parts = polygons(regions.mask(index), tolerance=tolerance, min_area=min_area)
        for part in parts:
            cuts = f"; {part.holes} hole{'s' * (part.holes > 1)}, joined to the outline by cuts" if part.holes else ""
            shapes.append(
                {
                    "label": name,
                    "points": part.points.tolist(),
                    "group_id": index if len(parts) > 1 else None,
                    "description": f"score {score:.3f}{cuts}",
                    "shape_type": "polygon",
                    "flags": {},
                    "mask": None,
                }
            )
    height, width = regions.size
    return {
        "version": LABELME_VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


class Export(ABC):
    """One data set of many results.

    Args:
        folder: where it is written. vocabulary: the class names, the same for every result.
        stuff: for "panoptic", names whose regions are one segment together.
        overwrite: replace files of photos that are there and hold something else.

    Attributes:
        file: what is written in the folder itself, if anything; part, ending: the subfolder and the ending of files
            for each photo, if any.
    """

    file: str | None = None
    part: str | None = None
    ending = ""

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
        self.paths: list[Path] = []
        self.sizes: list[tuple[int, int]] = []
        self.annotations: list[dict[str, Any]] = []
        self._stems: set[str] = set()
        self._name: str | None = None

    def add(self, path: str | os.PathLike[str], result: Any, name: str | None = None) -> None:
        """Take the result of one photo, a `RegionResult` (for COCO a `SegmentationResult` too).

        Args:
            name: of the photo's own files, without ending; None takes the photo's, made different from the others.

        Raises:
            DensevlError: a result of other classes. OutputError: the disk refuses, the photo lies where files for
            each photo are written, or a file there is other than what would be written: somebody may have edited it.
        """
        own = tuple(result.names)
        if own != self.vocabulary:
            raise DensevlError(f"the result of {shown(path)} is of other classes than the export")
        if self.part is not None and Path(path).resolve().parent == (self.folder / self.part).resolve():
            raise OutputError(f"{shown(path)} lies where the export writes; name another folder for results")
        self._name = name
        self.paths.append(Path(path))
        self.sizes.append(result.image.shape[:2])
        self._take(len(self.paths), result)

    @abstractmethod
    def _take(self, image_id: int, result: Any) -> None:
        """Keep or write what the result of photo `image_id`, from 1, holds."""

    @abstractmethod
    def close(self) -> list[Path]:
        """Write what was held.

        Returns:
            The files, and folders of files, of the data set.

        Raises:
            OutputError: the disk refuses.
        """

    def images(self) -> list[dict[str, Any]]:
        """COCO's "images": ids from 1; file names from the folder that all photos have in common."""
        files = [path.absolute() for path in self.paths]
        try:
            root = os.path.commonpath([path.parent for path in files]) if files else ""
            names = [path.relative_to(root).as_posix() for path in files]
        except ValueError:  # on several drives
            names = [path.as_posix() for path in files]
        return [
            {"id": number, "file_name": name, "height": height, "width": width}
            for number, (name, (height, width)) in enumerate(zip(names, self.sizes, strict=True), start=1)
        ]

    def _stem(self) -> str:
        """A file name for the newest photo: its own, with its number behind it where another photo has that name."""
        if self._name is not None:
            return self._name
        stem = unique_stems(self.paths[-1:])[0]
        while stem.casefold() in self._stems:
            stem = f"{stem}-{len(self.paths)}"
        self._stems.add(stem.casefold())
        return stem

    def _put(self, path: Path, data: bytes) -> None:
        if not self.overwrite and path.exists() and path.read_bytes() != data:
            raise OutputError(f"{shown(path)} was edited, or is somebody else's; move it, or allow it with --overwrite")
        renew(path, data)

    def _write(self, name: str, content: dict[str, Any]) -> Path:
        info = {"description": "regions named by densevl", "version": __version__}
        return renew(self.folder / name, _as_json({"info": info, "licenses": [], **content}))


class CocoExport(Export):
    """`coco.json`: images, categories, and an annotation with RLE for each named region."""

    file = "coco.json"

    def _take(self, image_id: int, result: Any) -> None:
        for annotation in result.to_coco(image_id):
            self.annotations.append({"id": len(self.annotations) + 1, **annotation})

    def close(self) -> list[Path]:
        """See `Export.close`."""
        plain = coco_categories(self.vocabulary)
        content = {"images": self.images(), "annotations": self.annotations, "categories": plain}
        return [self._write(self.file, content)]


class PanopticExport(Export):
    """`panoptic.json`, and a PNG for each photo in `panoptic/`, as panopticapi reads them."""

    file, part, ending = "panoptic.json", "panoptic", ".png"

    def _take(self, image_id: int, result: Any) -> None:
        name = f"{self._stem()}.png"
        png, annotation = result.to_panoptic(image_id, name, stuff=self.stuff)
        self._put(self.folder / self.part / name, encode_png(png))
        self.annotations.append(annotation)

    def close(self) -> list[Path]:
        """See `Export.close`."""
        content = {"images": self.images(), "annotations": self.annotations, "categories": self.categories}
        return [self._write(self.file, content), self.folder / self.part]


class LabelMeExport(Export):
    """A JSON of polygons for each photo, in `labelme/`; open that folder with LabelMe."""

    part, ending = "labelme", ".json"

    def _take(self, image_id: int, result: Any) -> None:
        path = self.folder / self.part / f"{self._stem()}.json"
        photo = self.paths[-1].absolute()
        try:
            seen = Path(os.path.relpath(photo, path.parent.absolute())).as_posix()
        except ValueError:  # on another drive
            seen = photo.as_posix()
        self._put(path, _as_json(result.to_labelme(seen)))

    def close(self) -> list[Path]:
        """See `Export.close`; nothing was held."""
        return [self.folder / self.part]


EXPORTS: dict[str, type[Export]] = {"coco": CocoExport, "panoptic": PanopticExport, "labelme": LabelMeExport}


def open_export(
    kind: str,
    folder: str | os.PathLike[str],
    vocabulary: Sequence[str],
    *,
    stuff: Collection[str] = (),
    overwrite: bool = False,
) -> Export:
    """Open an export by name: "coco", "panoptic" or "labelme"; see `Export`.

    Raises:
        OptionError: an unknown kind. DensevlError: a name of `stuff` that is no class.
    """
    if kind not in EXPORTS:
        raise OptionError(f"no export {kind!r}{suggest(kind, EXPORTS)}; there are {', '.join(EXPORTS)}")
    return EXPORTS[kind](folder, vocabulary, stuff, overwrite)


def _as_json(content: dict[str, Any]) -> bytes:
    # A file name that is not UTF-8 holds lone surrogates; as escapes they are valid JSON and read back the same.
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace")
