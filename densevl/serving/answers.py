"""Results for clients: JSON with maps as PNG, or the files that results write.

A map is an RGB PNG that a canvas reads back exactly: red + 256 * green is the class, 65535 for nothing, and blue is the
confidence in 255 steps. It has no alpha, gamma or profile, which would change values.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from densevl.anomaly.result import AnomalyResult
from densevl.drawing import palette
from densevl.fewshot.result import Classification
from densevl.images import encode_png
from densevl.regions.exports.base import as_regions
from densevl.regions.exports.kinds import EXPORTS, open_export
from densevl.regions.result import RegionResult
from densevl.results import Result, SegmentationResult
from densevl.serving.models import Segmented

NOTHING = 65535
MEDIA = {".json": "application/json", ".geojson": "application/geo+json", ".html": "text/html"}
NAMED = 5  # classes listed for a region


class Size(BaseModel):
    """Size of the upright photo in pixels."""

    height: int
    width: int


class Told(BaseModel):
    """Fields of all answers."""

    size: Size
    names: list[str] = Field(description="the classes, in order")
    meta: dict[str, Any] = Field(description="what made the result: model, recipe, settings, versions")
    warnings: list[str] = Field(description="what a user should know, one sentence each")


class Alternatives(BaseModel):
    """The likeliest classes of a coarse grid over the photo."""

    height: int = Field(description="cells")
    width: int
    count: int = Field(description="classes per cell, best first")
    map: str = Field(description="`count` grids below each other: an RGB PNG in base64, as `map` of the answer")


class Segmentation(Told):
    """A label map."""

    colours: list[tuple[int, int, int]] = Field(description="RGB of each class")
    fractions: dict[str, float] = Field(description='share of the pixels of each class, and of "nothing"')
    map: str = Field(
        description="RGB PNG in base64: red + 256 * green is the class, 65535 nothing; blue / 255 the confidence"
    )
    alternatives: Alternatives


class SessionLabels(Segmentation):
    """A label map of a labelling session."""

    units: str = Field(
        description="RGB PNG in base64: red + 256 * green + 65536 * blue is the number of the unit that a click selects"
    )


class Region(BaseModel):
    """A region and its name."""

    name: str = Field(description='"nothing" if it is none of the classes')
    label: int = Field(description="the number of the class, -1 for nothing")
    score: float
    quality: float = Field(description="of the mask, 0 to 1")
    box: tuple[float, float, float, float] = Field(description="x0, y0, x1, y1 in pixels, the last two exclusive")
    area: int = Field(description="pixels")
    segmentation: dict[str, Any] = Field(description="the mask as COCO's compressed run lengths")
    alternatives: list[tuple[str, float]]


class Regions(Told):
    """Regions and their names."""

    colours: list[tuple[int, int, int]]
    regions: list[Region]


class Anomaly(Told):
    """How anomalous an image is, and where."""

    score: float
    is_anomalous: bool | None = Field(description="null without normal images to set a threshold by")
    threshold: dict[str, float] | None = Field(description="of the image's score, and of pixels")
    range: tuple[float, float] = Field(description="scores of the map's 0 and 65535")
    map: str = Field(description="RGB PNG in base64: red + 256 * green is the score, 0 to 65535 over `range`")


class Naming(Told):
    """The likeliest labels of a whole photo."""

    name: str
    probabilities: list[tuple[str, float]] = Field(description="best first")


class SessionPhoto(BaseModel):
    """A photo of a labelling session."""

    number: int = Field(description="number of the photo in requests")
    name: str
    doubt: float = Field(description="the share of places where words and corrections disagree, 0 to 1")
    corrections: int


class Session(BaseModel):
    """A labelling session."""

    session: str = Field(description="identifier of the session in requests; anyone who has it can see its labels")
    names: list[str]
    colours: list[tuple[int, int, int]] = Field(description="RGB of each class")
    photos: list[SessionPhoto] = Field(description="those to look at next come first")
    corrections: int
    warnings: list[str]
    missing: list[str] = Field(description="photos of a loaded file that are not here")


class Problem(BaseModel):
    """An error, in the same form for all routes."""

    code: str
    message: str


class Failure(BaseModel):
    """The body of every error."""

    error: Problem


@dataclass(frozen=True)
class Answer:
    """A response body. Attributes: media: its media type. ending: file extension for it."""

    body: bytes
    media: str
    ending: str


def segmentation(found: Segmented) -> Segmentation:
    """Return the JSON of a label map."""
    result = found.result
    count, height, width = found.classes.shape
    grids = _map(found.classes.reshape(-1, width), found.chances.reshape(-1, width))
    return Segmentation(
        **_told(result),
        colours=colours(len(result.names)),
        fractions=result.fractions(),
        map=_map(result.labels, result.confidence),
        alternatives=Alternatives(height=height, width=width, count=count, map=grids),
    )


def session_labels(found: Segmented, units: npt.NDArray[np.int32]) -> SessionLabels:
    """Return the JSON of a session's label map. `units`: int (H, W), what a click selects."""
    bits = np.stack([units & 255, units >> 8 & 255, units >> 16 & 255], axis=-1).astype(np.uint8)
    return SessionLabels(**dict(segmentation(found)), units=b64encode(encode_png(bits)).decode())


def regions(result: RegionResult) -> Regions:
    """Return the JSON of named regions, in their order."""
    order = np.argsort(-result.scores, axis=1, kind="stable")[:, :NAMED]
    masks = result.regions
    rows = [
        Region(
            name=result.found[index],
            label=int(result.labels[index]),
            score=float(result.confidence[index]),
            quality=float(masks.quality[index]),
            box=tuple(masks.boxes[index].tolist()),
            area=int(area),
            segmentation=rle,
            alternatives=[(result.names[c], float(result.scores[index, c])) for c in order[index]],
        )
        for index, (rle, area) in enumerate(zip(masks.to_rle(), masks.areas, strict=True))
    ]
    return Regions(**_told(result), colours=colours(len(result.names)), regions=rows)


def anomaly(result: AnomalyResult) -> Anomaly:
    """Return the JSON of an anomaly map."""
    low, high = float(result.map.min()), float(result.map.max())
    steps = np.rint((result.map.astype(np.float64) - low) * (65535 / max(high - low, 1e-12)))
    limits = result.thresholds
    return Anomaly(
        **_told(result),
        score=result.score,
        is_anomalous=result.is_anomalous,
        threshold=None if limits is None else {"image": limits.image, "pixel": limits.pixel, "fpr": limits.fpr},
        range=(low, high),
        map=_map(steps.astype(np.int32), np.zeros(steps.shape)),
    )


def naming(result: Classification) -> Naming:
    """Return the JSON of the likeliest labels."""
    return Naming(**_told(result), name=result.name, probabilities=result.top(len(result.names)))


def as_json(told: BaseModel) -> Answer:
    """Return an answer as JSON."""
    return Answer(told.model_dump_json().encode(errors="backslashreplace"), "application/json", ".json")


def as_file(content: dict[str, Any]) -> Answer:
    """Return COCO content as a file."""
    return Answer(json.dumps(content).encode(), "application/json", ".json")


def _png(picture: npt.NDArray[np.uint8]) -> Answer:
    return Answer(encode_png(picture), "image/png", ".png")


def _written(result: Result, first: str) -> dict[str, bytes]:
    """Return the files that a result writes, by name."""
    with tempfile.TemporaryDirectory(prefix="densevl-") as folder:
        return {path.name: path.read_bytes() for path in result.save(Path(folder) / first)}


def _zip(files: Mapping[str, bytes]) -> Answer:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return Answer(buffer.getvalue(), "application/zip", ".zip")


def _export(kind: str) -> Callable[[SegmentationResult | RegionResult, str], Answer]:
    """Return a dataset of one photo, as `densevl segment --as` writes it: its file, or a ZIP of several."""

    def write(result: SegmentationResult | RegionResult, stem: str) -> Answer:
        with tempfile.TemporaryDirectory(prefix="densevl-") as folder:
            export = open_export(kind, folder, result.names)
            export.add(Path("/") / stem, result)  # readers of the file only know the photo's name
            export.close()
            files = {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in sorted(Path(folder).rglob("*"))
                if path.is_file()
            }
        if len(files) > 1:
            return _zip(files)
        ((name, content),) = files.items()
        return Answer(content, MEDIA.get(Path(name).suffix, "application/octet-stream"), Path(name).suffix)

    return write


def _overlay(result: Result, stem: str) -> Answer:
    return _png(result.overlay())


def _labelme(result: SegmentationResult | RegionResult, stem: str) -> Answer:
    return Answer(json.dumps(as_regions(result).to_labelme(stem)).encode(), "application/json", ".json")


def _label_map(result: SegmentationResult, stem: str) -> Answer:
    return Answer(_written(result, "labels.png")["labels.png"], "image/png", ".png")


def _raw(result: AnomalyResult, stem: str) -> Answer:
    return Answer(_written(result, "map.png")["map.npy"], "application/octet-stream", ".npy")


def _files(ending: str) -> Callable[[Any, str], Answer]:
    return lambda result, stem: _zip(_written(result, f"{Path(stem).stem}{ending}"))


def _of_map(write: Callable[[Any, str], Answer]) -> Callable[[Segmented, str], Answer]:
    return lambda found, stem: write(found.result, stem)


EXPORTED: Mapping[str, Callable[[Any, str], Answer]] = {
    **{kind: _export(kind) for kind in EXPORTS if kind != "png"},
    "labelme": _labelme,
}
SEGMENT: Mapping[str, Callable[[Any, str], Answer]] = {
    "png": _of_map(_label_map),
    "overlay": _of_map(_overlay),
    **{kind: _of_map(write) for kind, write in EXPORTED.items()},
    "zip": _of_map(_files(".png")),
}
REGIONS: Mapping[str, Callable[[Any, str], Answer]] = {
    "overlay": _overlay,
    **EXPORTED,
    "zip": _files(".json"),
}
ANOMALY: Mapping[str, Callable[[Any, str], Answer]] = {"overlay": _overlay, "npy": _raw, "zip": _files(".png")}
CLASSIFY: Mapping[str, Callable[[Any, str], Answer]] = {"overlay": _overlay, "zip": _files(".json")}
"""By route, the forms besides "json" that a client may request: from a result and the photo's name to a body."""


def _told(result: Any) -> dict[str, Any]:
    height, width = result.image.shape[:2]
    meta = {key: value for key, value in result.meta.items() if key != "image"}
    return {
        "size": Size(height=height, width=width),
        "names": list(result.names),
        "meta": json.loads(json.dumps(meta, default=str)),
        "warnings": list(result.warnings),
    }


def colours(count: int) -> list[tuple[int, int, int]]:
    """Return RGB colours of `count` classes."""
    return [(red, green, blue) for red, green, blue in palette(count).tolist()]


def _map(numbers: npt.NDArray[Any], shares: npt.NDArray[Any]) -> str:
    """Return a map as base64, see above. Args: numbers (h, w) below 65536, -1 for nothing; shares (h, w) 0..1."""
    wide = numbers.astype(np.int32) & NOTHING  # -1 is 65535
    steps = np.rint(np.clip(shares, 0, 1) * 255)
    picture = np.stack([wide & 255, wide >> 8, steps], axis=-1).astype(np.uint8)
    return b64encode(encode_png(picture)).decode()
