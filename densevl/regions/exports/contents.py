"""One photo's regions as the data of other tools' files: COCO, LabelMe, Label Studio, YOLO, GeoJSON."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from densevl.errors import DensevlError, suggest
from densevl.regions.exports.brush import brush
from densevl.regions.polygons import outlined, polygons

if TYPE_CHECKING:
    from densevl.proposals.base import Proposals
    from densevl.regions.resolve import Panoptic

#: The version of LabelMe whose format is written.
LABELME_VERSION = "5.5.0"
#: The names of labels and picture in Label Studio's labelling interface.
STUDIO_LABELS, STUDIO_IMAGE = "label", "image"
MOST_SEGMENTS = 2**24 - 1


def coco_categories(vocabulary: Sequence[str], stuff: Collection[str] | None = None) -> list[dict[str, Any]]:
    """COCO's "categories": ids from 1, in the order of the classes; `isthing` is 0 for the names in `stuff`.

    Raises:
        DensevlError: a name in `stuff` is not a class.
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
        DensevlError: an id is negative or needs more than 24 bits.
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

    LabelMe's polygons have no holes. A cut, there and back, joins each hole to the outline and fills as a hole; the
    shape's description says so. Parts of one region share a `group_id`. Vertices are centres of pixels and the outline
    belongs to the shape, which is how LabelMe itself fills polygons.

    Args:
        regions: R masks. names, scores: of each. image_path: path of the photo, relative to the JSON's folder as
            LabelMe reads it. tolerance, min_area: see `polygons`.
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


def labelstudio_task(
    regions: Proposals,
    names: Sequence[str],
    scores: Sequence[float] | npt.NDArray[Any],
    image: str,
    model: str,
) -> dict[str, Any]:
    """One photo as a task of Label Studio, with a prediction of brush masks, pixel by pixel.

    Args:
        regions: R masks. names, scores: of each. image: the address or path by which Label Studio finds the photo.
        model: what made them, shown as the model's version.
    """
    height, width = regions.size
    frame = {"original_width": width, "original_height": height, "image_rotation": 0}
    found = [
        {
            "id": f"r{index}",
            "type": "brushlabels",
            "from_name": STUDIO_LABELS,
            "to_name": STUDIO_IMAGE,
            **frame,
            "score": float(score),
            "value": {"format": "rle", "rle": brush(regions.mask(index)), "brushlabels": [name]},
        }
        for index, (name, score) in enumerate(zip(names, scores, strict=True))
    ]
    mean = sum(map(float, scores)) / max(1, len(found))
    return {"data": {"image": image}, "predictions": [{"model_version": model, "score": mean, "result": found}]}


def yolo_rows(regions: Proposals, labels: Sequence[int], *, min_area: int = 1) -> str:
    """One photo's regions as the text of a YOLO segmentation file: a line "class x y x y ..." for each connected part.

    Coordinates are pixel centres as fractions of width and height. Cuts join holes to the outline.
    """
    height, width = regions.size
    rows = []
    for index, label in enumerate(labels):
        for part in polygons(regions.mask(index), min_area=min_area):
            places = (part.points + 0.5) / (width, height)
            rows.append(" ".join([str(label), *(f"{number:.6f}" for number in places.ravel())]) + "\n")
    return "".join(rows)


def geojson_content(
    regions: Proposals, names: Sequence[str], scores: Sequence[float] | npt.NDArray[Any]
) -> dict[str, Any]:
    """One photo's regions as GeoJSON: a MultiPolygon with holes for each, in pixels, x to the right and y down.

    Rings run along the edges of pixels, so areas are those of the masks; (0, 0) is the photo's top left corner.
    """
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "MultiPolygon",
                "coordinates": [
                    [[*ring.tolist(), ring[0].tolist()] for ring in part] for part in outlined(regions.mask(index))
                ],
            },
            "properties": {"name": name, "score": float(score), "area": int(regions.areas[index])},
        }
        for index, (name, score) in enumerate(zip(names, scores, strict=True))
    ]
    return {"type": "FeatureCollection", "features": features}


def as_json(content: Any) -> bytes:
    """JSON in UTF-8, without NaN."""
    # A file name that is not UTF-8 holds lone surrogates; as escapes they are valid JSON and read back the same.
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace")
