"""Read pictures of any size by rows with rasterio (GDAL): GeoTIFF and TIFF, PNG, JPEG and JPEG 2000."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from densevl.errors import ImageError, MissingExtraError, OptionError
from densevl.files import shown
from densevl.images import UInt8Array, header
from densevl.images.addresses import is_address
from densevl.images.opening import reader
from densevl.images.pixels import from_array, reason

DRIVERS: Final = {
    "GTiff": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "PNG": re.compile(rb"\x89PNG"),
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "JP2OpenJPEG": re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
}
"""GDAL drivers that read a single file and never follow names inside it, with the first bytes of their files."""
CACHE: Final = 32 * 2**20  # bytes of decoded tiles that GDAL keeps
MOST_CACHE: Final = 128 * 2**20  # limit if one row of tiles takes more than `CACHE`
PREVIEWED: Final = 1024  # pixels along the long side for estimating the range of values
Range = tuple[float, float]


class Raster:
    """A picture that is read by rows. Use it as a context manager.

    Attributes:
        path: of the file. size: (height, width). crs, transform, gcps: georeference as in rasterio; None if the file
            has none. bands: the bands that are read, from 1. notes: what a user should know about it, one sentence
            each.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, bands: Sequence[int] | None = None, value_range: Range | None = None
    ) -> None:
        """Open a file.

        Args:
            bands: one for grey, or three for red, green and blue, counted from 1. None takes the bands marked so in the
                file, or its only one or three.
            value_range: the values that become 0 and 255; None is that of 8-bit values.

        Raises:
            ImageError: If the file is missing, damaged or of another format, or its bands or values have no known
                colours.
            OptionError: If bands or range do not fit the file.
            MissingExtraError: If rasterio is not installed.
        """
        try:
            import rasterio
        except ImportError as error:
            raise MissingExtraError("rasterio", "geo", f"segmenting {shown(path)} block by block") from error
        self.path, self._what = os.fspath(path).removeprefix("file://"), shown(path)
        if is_address(self.path):
            raise ImageError(f"{self._what} is an address, but block by block files must be local: copy it first")
        with reader(self.path, None) as (content, _):  # explains what is wrong with a path
            head = content.read(16)
        driver = next((name for name, begin in DRIVERS.items() if begin.match(head)), None)
        if driver is None:
            raise ImageError(f"{self._what} is not a TIFF, PNG, JPEG or JPEG 2000, as block by block needs")
        self._require_upright()
        self._cache = CACHE
        with self._told("is damaged"):
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            self._file = rasterio.open(os.path.abspath(self.path), driver=driver)
        file = self._file
        self.size: tuple[int, int] = (file.height, file.width)
        self._cache = min(max(CACHE, self._tile_row() * 5 // 4), MOST_CACHE)
        self.gcps = file.gcps if file.gcps[0] else None
        self.crs = file.crs
        placed = file.crs is not None or not file.transform.is_identity
        self.transform = file.transform if placed and self.gcps is None else None
        try:
            self.bands = self._chosen(bands)
            self.range = self._checked(value_range)
        except BaseException:
            file.close()
            raise
        pages = len(file.subdatasets)
        self.notes = (f"the file has {pages} pages, and only the first is used",) if pages > 1 else ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    @property
    def georeferenced(self) -> bool:
        """Whether the file has a georeference."""
        return self.crs is not None and (self.transform is not None or self.gcps is not None)

    def rows(self, start: int, stop: int) -> UInt8Array:
        """Read rows as uint8 RGB (stop - start, W, 3).

        Raises:
            ImageError: If they cannot be read.
        """
        return self._rgb(self._read(self.bands, (start, stop)), self._alpha(start, stop))

    def valid(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Return where rows have values, by the file's mask, alpha or nodata value: bool (stop - start, W)."""
        if not self._masked:
            return np.ones((stop - start, self.size[1]), bool)
        with self._told():
            return self._file.dataset_mask(window=((start, stop), (0, self.size[1]))) > 0

    def middle(self, side: int) -> UInt8Array:
        """Return the middle of the picture, at most `side` pixels high and wide: uint8 RGB."""
        height, width = self.size
        top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
        part = (top, min(top + side, height)), (left, min(left + side, width))
        return self._rgb(self._read(self.bands, *part), None)

    def small(self, side: int) -> UInt8Array:
        """Return the picture subsampled to at most `side` pixels along its long side: uint8 RGB."""
        return self._rgb(self._small(self.bands, side), None)

    def facts(self) -> dict[str, Any]:
        """Return what affects the pixels besides the file, and the georeference, ready for JSON."""
        return {
            "bands": list(self.bands),
            "range": None if self.range is None else list(self.range),
            "crs": None if self.crs is None else self.crs.to_string(),
            "transform": None if self.transform is None else list(self.transform)[:6],
        }

    @cached_property
    def _masked(self) -> bool:
        from rasterio.enums import MaskFlags

        return any(flags != [MaskFlags.all_valid] for flags in self._file.mask_flag_enums)

    @cached_property
    def _colours(self) -> list[str]:
        return [colour.name for colour in self._file.colorinterp]

    def _tile_row(self) -> int:
        """Return the bytes of one row of tiles. With less memory, each tile is decoded again every few rows."""
        wide = {"complex_int16": 4}  # numpy has no such type
        values = sum(wide.get(kind) or np.dtype(kind).itemsize for kind in self._file.dtypes)
        return max(height for height, _ in self._file.block_shapes) * self._file.width * values

    def _require_upright(self) -> None:
        """Refuse pictures that EXIF marks as turned. Without EXIF they are upright."""
        try:
            turn = header(self.path, max_pixels=2**62).turn
        except ImageError:  # a format that only GDAL reads
            return
        if turn != 1:
            raise ImageError(
                f"{self._what} is turned by its EXIF (orientation {turn}), but rows are read as stored: save it "
                "upright first"
            )

    def _chosen(self, bands: Sequence[int] | None) -> tuple[int, ...]:
        count, colours = self._file.count, self._colours
        if bands is not None:
            if len(bands) not in (1, 3) or not all(1 <= band <= count for band in bands):
                raise OptionError(
                    f"bands {','.join(map(str, bands))} of {self._what}, which has {count}: give one, or three for "
                    "red, green and blue, counted from 1"
                )
            return tuple(bands)
        if self._file.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE", "").startswith("CIE"):
            raise ImageError(f"{self._what} has Lab colours: convert it to RGB first")
        if all(name in colours for name in ("red", "green", "blue")):
            return tuple(colours.index(name) + 1 for name in ("red", "green", "blue"))
        plain = [number for number, name in enumerate(colours, 1) if name != "alpha"]
        if len(plain) in (1, 3):
            return tuple(plain)
        raise ImageError(
            f"{self._what} has {count} bands and does not say which are red, green and blue: name three, such as "
            "bands 3,2,1 (--bands 3,2,1)"
        )

    def _checked(self, value_range: Range | None) -> Range | None:
        kinds = {self._file.dtypes[band - 1] for band in self.bands}
        if any(kind.startswith("complex") for kind in kinds):
            raise ImageError(f"{self._what} holds complex numbers: convert it to a picture first")
        if value_range is not None:
            low, high = value_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise OptionError(f"range {low:g},{high:g}: give the values that become black and white, low,high")
            return float(low), float(high)
        if kinds == {"uint8"}:
            bits = int(self._file.tags(self.bands[0], ns="IMAGE_STRUCTURE").get("NBITS", 8))
            return (0.0, 2.0**bits - 1) if bits < 8 and self._colours[self.bands[0] - 1] == "gray" else None
        values = self._small(self.bands, PREVIEWED)
        known = values[:, np.isfinite(values).all(axis=0) & (self._small(None, PREVIEWED) > 0)]
        low, high = np.percentile(known, (2, 98)) if known.size else (0, 1)
        raise ImageError(
            f"{self._what} holds {', '.join(sorted(kinds))} instead of 8-bit colours: say which values become black "
            f"and white, such as range {low:.6g},{high:.6g} (--range {low:.6g},{high:.6g}), its 2nd and 98th "
            "percentile"
        )

    def _read(self, bands: Sequence[int], rows: tuple[int, int], cols: tuple[int, int] | None = None) -> Any:
        with self._told():
            return self._file.read(list(bands), window=(rows, cols or (0, self.size[1])))

    def _small(self, bands: Sequence[int] | None, side: int) -> Any:
        """Read bands (n, h, w), or for None the mask (h, w), subsampled."""
        scale = min(1.0, side / max(self.size))
        shape = tuple(max(1, round(length * scale)) for length in self.size)
        with self._told():
            if bands is None:
                return self._file.dataset_mask(out_shape=shape)
            return self._file.read(list(bands), out_shape=(len(bands), *shape))

    def _alpha(self, start: int, stop: int) -> UInt8Array | None:
        """Read the opacity of 8-bit colours, which are then put on white as by `read_image`."""
        if self.range is not None or "alpha" not in self._colours:
            return None
        return self._read([self._colours.index("alpha") + 1], (start, stop))[0]

    def _rgb(self, values: Any, alpha: UInt8Array | None) -> UInt8Array:
        if self.range is not None:
            low, high = self.range
            scaled = (np.nan_to_num(values.astype(np.float32), nan=low) - np.float32(low)) / np.float32(high - low)
            values = (np.clip(scaled, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8)
        elif self._colours[self.bands[0] - 1] == "palette":
            table = np.zeros((256, 3), np.uint8)
            for number, colour in self._file.colormap(self.bands[0]).items():
                table[number] = colour[:3]
            return table[values[0]]
        rgb = np.broadcast_to(values, (3, *values.shape[1:])).transpose(1, 2, 0)
        if alpha is not None and alpha.dtype == np.uint8:
            return from_array(np.dstack([rgb, alpha]), self._what)
        return np.ascontiguousarray(rgb)

    @contextmanager
    def _told(self, what: str = "cannot be read completely") -> Iterator[None]:
        """Run GDAL with a bounded cache, and turn its errors about the file into `ImageError`."""
        import rasterio

        try:
            with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=self._cache):
                yield
        except (rasterio.errors.RasterioError, OSError, ValueError) as error:
            cause = str(error.__cause__ or error)
            raise ImageError(f"{self._what} {what}: {reason(Exception(cause))}") from error
