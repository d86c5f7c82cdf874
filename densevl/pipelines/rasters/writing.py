"""Write label maps of any size: tiled GeoTIFF, polygons, and the rows of an unfinished run."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from densevl import __version__, digest
from densevl.drawing import draw_overlay, palette
from densevl.errors import OutputError
from densevl.files import CONFIDENCE_MARK, OVERLAY_MARK, shown, staged
from densevl.images import encode_png
from densevl.pipelines.rasters.source import CACHE, Raster
from densevl.results import UNLABELLED, to_json

TILE = 256
STEP = 256  # rows copied at once
GROUND = "EPSG:4326"
"""Longitude and latitude, as GeoJSON requires (RFC 7946)."""
PRECISION = 7  # decimals of a degree: a centimetre


class KeptRows:
    """A file of the rows decided so far, from which an interrupted run resumes.

    Attributes:
        done: number of rows in the file.
    """

    def __init__(self, path: Path, facts: Any, size: tuple[int, int], dtype: Any, block: int) -> None:
        self.path, self._size, self._dtype = path, size, np.dtype(dtype)
        self._each = size[1] * (self._dtype.itemsize + 1)
        self._head = digest.of_text(json.dumps([facts, size, __version__], default=str)).encode()
        whole = (self._length() - len(self._head)) // self._each
        self.done = whole if whole >= size[0] else max(0, whole // block * block)
        self._file: BinaryIO | None = None

    def __enter__(self) -> KeptRows:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "r+b" if self._length() else "wb")
            if not self._length():
                self._file.write(self._head)
            self._file.seek(len(self._head) + self.done * self._each)
            self._file.truncate()
        except OSError as error:
            raise self._refused(error) from error
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, labels: np.ndarray, confidence: np.ndarray) -> None:
        """Append rows: labels (rows, W) with -1 for nothing, confidence (rows, W) 0-1.

        Raises:
            OutputError: If the file cannot be written.
        """
        rows = np.empty((len(labels), self._each), np.uint8)
        wide = self._size[1] * self._dtype.itemsize
        rows[:, :wide] = labels.astype(self._dtype).view(np.uint8)  # -1 wraps around to the value for nothing
        rows[:, wide:] = np.rint(confidence.clip(0, 1) * 255)
        try:
            if self._file is not None:
                self._file.write(rows.tobytes())
                self._file.flush()
        except OSError as error:
            raise self._refused(error) from error

    def read(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield all rows, `STEP` at a time: index of the first, labels and confidence as stored in files."""
        height, width = self._size
        with open(self.path, "rb") as file:
            file.seek(len(self._head))
            for top in range(0, height, STEP):
                count = min(STEP, height - top)
                rows = np.frombuffer(file.read(count * self._each), np.uint8).reshape(count, self._each)
                wide = width * self._dtype.itemsize
                yield top, np.ascontiguousarray(rows[:, :wide]).view(self._dtype), rows[:, wide:]

    def shares(self, names: Sequence[str]) -> dict[str, float]:
        """Return the share of pixels of each class and of nothing."""
        nothing = np.iinfo(self._dtype).max
        counts = np.zeros(nothing + 1, np.int64)
        for _, labels, _ in self.read():
            counts += np.bincount(labels.ravel(), minlength=nothing + 1)
        found = {name: int(counts[number]) for number, name in enumerate(names)}
        found[UNLABELLED] = found.get(UNLABELLED, 0) + int(counts[nothing])
        return {name: count / counts.sum() for name, count in found.items()}

    def _length(self) -> int:
        """Return the bytes of the file, 0 if it is missing or belongs to something else."""
        try:
            with open(self.path, "rb") as file:
                return os.fstat(file.fileno()).st_size if file.read(len(self._head)) == self._head else 0
        except OSError:
            return 0

    def _refused(self, error: OSError) -> OutputError:
        return OutputError(f"cannot write {shown(self.path)}: {error.strerror}")


@dataclass(frozen=True)
class Target:
    """The files to write for a picture. Attributes: path: of the label map; meta: for the JSON."""

    path: Path
    raster: Raster
    names: tuple[str, ...]
    meta: dict[str, Any]
    polygons: bool = False

    @property
    def nothing(self) -> int:
        """The value that stands for nothing."""
        return 255 if len(self.names) <= 255 else 65535

    @property
    def paths(self) -> list[Path]:
        """The files that `write` writes."""
        stem = self.path.stem
        return [
            self.path,
            self.path.with_name(f"{stem}{CONFIDENCE_MARK}.tif"),
            self.path.with_name(f"{stem}{OVERLAY_MARK}.png"),
            *([self.path.with_name(f"{stem}.geojson")] if self.polygons else []),
            self.path.with_name(f"{stem}.json"),
        ]

    def rows(self, facts: Any, block: int) -> KeptRows:
        """Return the rows that an earlier run of this picture left, if its settings were the same."""
        dtype = np.uint8 if self.nothing == 255 else np.uint16
        return KeptRows(self.path.with_name(f".densevl-{self.path.stem}.rows"), facts, self.raster.size, dtype, block)

    def write(self, kept: KeptRows, shares: dict[str, float], said: Sequence[str], side: int) -> list[Path]:
        """Write all files, or none, and remove the file of rows.

        Raises:
            OutputError: If the files cannot be written.
        """
        paths = self.paths
        with staged(paths) as parts, _refusing(self.path):
            self._tiff(parts[0], (labels for _, labels, _ in kept.read()), self.nothing)
            self._tiff(parts[1], (confidence for *_, confidence in kept.read()), None)
            parts[2].write_bytes(encode_png(self._overlay(kept, side)))
            if self.polygons:
                self._geojson(parts[3], parts[0])
            parts[-1].write_bytes(to_json(self._key(shares, said)))
        kept.path.unlink(missing_ok=True)
        return paths

    def _tiff(self, path: Path, rows: Iterator[np.ndarray], nothing: int | None) -> None:
        """Write one band as a tiled file with the picture's georeference; with `nothing` it is a label map."""
        import rasterio

        height, width = self.raster.size
        how: dict[str, Any] = {
            **{"driver": "GTiff", "height": height, "width": width, "count": 1, "nodata": nothing},
            **{"dtype": "uint8" if nothing != 65535 else "uint16", "crs": self.raster.crs},
            **{"transform": self.raster.transform, "compress": "deflate", "bigtiff": "if_safer"},
            **{"tiled": True, "blockxsize": TILE, "blockysize": TILE},
        }
        how = {name: value for name, value in how.items() if value is not None}
        quiet, env = warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=CACHE, GDAL_PAM_ENABLED="NO")
        with quiet, env:
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path, "w", **how) as file:
                if self.raster.gcps is not None:
                    file.gcps = self.raster.gcps
                if nothing is not None:
                    if nothing == 255:
                        colours = palette(len(self.names)).tolist()
                        file.write_colormap(1, {i: (*colour, 255) for i, colour in enumerate(colours)})
                    file.update_tags(densevl=__version__, names=json.dumps(self.names, ensure_ascii=False))
                top = 0
                for part in rows:
                    file.write(part, 1, window=((top, top + len(part)), (0, width)))
                    top += len(part)

    def _overlay(self, kept: KeptRows, side: int) -> np.ndarray:
        photo = self.raster.small(side)
        height, width = photo.shape[:2]
        down, across = (
            ((np.arange(new) + 0.5) * old / new).astype(int)
            for new, old in zip((height, width), self.raster.size, strict=True)
        )
        labels = np.empty((height, width), np.int64)
        for top, rows, _ in kept.read():
            own = (down >= top) & (down < top + len(rows))
            labels[own] = rows[down[own] - top][:, across]
        labels[labels == self.nothing] = -1
        return draw_overlay(photo, labels.astype(np.int16), self.names)

    def _geojson(self, path: Path, labels: Path) -> None:
        """Write the outlines of connected pixels of a class, which GDAL traces from the file row by row."""
        import rasterio
        from rasterio.features import shapes
        from rasterio.warp import transform_geom

        ground = self.raster.georeferenced and self.raster.gcps is None
        head = {"type": "FeatureCollection", "densevl": __version__, "coordinates": GROUND if ground else "pixels"}
        colours = palette(len(self.names)).tolist()
        with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=CACHE):
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(labels, driver="GTiff") as file, open(path, "w", encoding="utf-8") as out:
                band, between = rasterio.band(file, 1), "\n"
                out.write(f'{json.dumps(head)[:-1]}, "features": [')
                for shape, value in shapes(band, transform=file.transform):
                    number = int(value)
                    if number == self.nothing:
                        continue
                    if ground:
                        shape = transform_geom(self.raster.crs, GROUND, shape, precision=PRECISION)
                    facts = {
                        "name": self.names[number],
                        "number": number,
                        "fill": "#{:02x}{:02x}{:02x}".format(*colours[number]),
                    }
                    row = {"type": "Feature", "properties": facts, "geometry": shape}
                    out.write(between + json.dumps(row, ensure_ascii=False))
                    between = ",\n"
                out.write("\n]}\n")

    def _key(self, shares: dict[str, float], said: Sequence[str]) -> dict[str, Any]:
        height, width = self.raster.size
        return {
            "size": {"height": height, "width": width},
            "names": self.names,
            "colours": palette(len(self.names)).tolist(),
            "fractions": shares,
            "nothing": self.nothing,
            "meta": {key: value for key, value in self.meta.items() if key != "seconds"},
            "warnings": list(said),
        }


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Turn errors of the disk while GDAL writes into `OutputError`."""
    from rasterio.errors import RasterioError

    try:
        yield
    except (OSError, RasterioError) as error:
        reason = getattr(error, "strerror", None) or str(error.__cause__ or error)
        raise OutputError(f"cannot write {shown(path)}: {' '.join(reason.split())}") from error
