"""`DenseMap`: dense features of one photo, their grid, and their cosines with words."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from densevl import digest, fitted
from densevl.backbones import Backbone, load_backbone
from densevl.errors import DensevlError, MissingExtraError, ModelError, OptionError, OutputError, one_of
from densevl.files import save_all, shown, target_of
from densevl.results.base import VOLATILE, from_json, to_json
from densevl.saved import Kind, read_array
from densevl.vocabulary import LabelSet
from densevl.vocabulary.text_classifier import TextClassifier
from densevl.weights import require_finite

FORMATS: Mapping[str, str] = {"npy": ".npy", "safetensors": ".safetensors", "zarr": ".zip"}
"""File extensions by format."""
DTYPES = ("float16", "float32")
TENSOR = "features"
FEATURES = Kind("dense map", DensevlError, "save it again")


@dataclass(frozen=True, eq=False)
class DenseMap:
    """Dense features of a photo on a regular grid that covers it.

    Cell (i, j) is sampled at x = (j + 0.5) * W / w, y = (i + 0.5) * H / h, in pixels from the photo's upper left
    corner. Pixel (0, 0) is centred at (0.5, 0.5).

    Attributes:
        features: (h, w, E) float16 or float32. Without a layer they are means of unit vectors in the joint space of
            image and text, not normalised again: products with unit text rows are the photo's scores.
        size: (H, W) of the photo in pixels.
        meta: what it was made with. warnings: one sentence each.
        text: text classifier of the model that made it; None if the map was read from a file.
    """

    features: npt.NDArray[np.floating[Any]]
    size: tuple[int, int]
    meta: dict[str, Any]
    warnings: tuple[str, ...] = ()
    text: TextClassifier | None = field(default=None, repr=False)

    @property
    def pitch(self) -> tuple[float, float]:
        """Pixels between cells, down and across."""
        return self.size[0] / self.features.shape[0], self.size[1] / self.features.shape[1]

    def score(self, labels: Any, *, model: str | Backbone | None = None) -> npt.NDArray[np.float32]:
        """Return cosines with the labels: (C, h, w) float32. A label with several words has their maximum.

        Args:
            labels: as for `LabelSet.parse`. model: the model of these features. None takes the one that made the map;
                for a map read from a file, it loads the model named in its JSON.

        Raises:
            LabelError: If the labels are unusable.
            ModelError: If these are features of a layer or of another model, or the model cannot be loaded.
        """
        asked = LabelSet.parse(labels)
        text = self._text(model).encode(asked)
        rows_TE, classes = text.vectors.float().cpu(), text.classes.cpu()
        scores_hwT = torch.from_numpy(self.features.astype(np.float32)) @ rows_TE.T
        found = torch.full((*scores_hwT.shape[:2], len(asked)), -torch.inf)
        owned = classes >= 0
        found.scatter_reduce_(2, classes[owned].expand(*scores_hwT.shape[:2], -1), scores_hwT[..., owned], "amax")
        return found.permute(2, 0, 1).contiguous().numpy()

    def at(self, places_N2: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Interpolate features bilinearly at places (N, 2), x and y in pixels: (N, E) float32.

        Outside the centres of the outermost cells, their values are repeated.

        Raises:
            OptionError: If the places have another shape, or contain NaN.
        """
        h, w = self.features.shape[:2]
        try:
            places = np.asarray(places_N2, np.float64)
        except (TypeError, ValueError):
            places = np.zeros(0)
        if places.ndim != 2 or places.shape[1] != 2 or np.isnan(places).any():
            raise OptionError(
                f"places are {np.shape(places)}; give numbers (N, 2), x and y in pixels, none of them NaN"
            )
        x, y = (np.clip(places[:, axis] / step - 0.5, 0, n - 1) for axis, step, n in self._axes())
        left, top = np.minimum(x.astype(int), w - 1), np.minimum(y.astype(int), h - 1)
        right, low = np.minimum(left + 1, w - 1), np.minimum(top + 1, h - 1)
        a, b = (x - left)[:, None].astype(np.float32), (y - top)[:, None].astype(np.float32)
        upper = (1 - a) * self.features[top, left] + a * self.features[top, right]
        lower = (1 - a) * self.features[low, left] + a * self.features[low, right]
        return ((1 - b) * upper + b * lower).astype(np.float32)

    def grid(self) -> dict[str, Any]:
        """Describe the grid of cells, ready for JSON. Coordinates are in pixels from the photo's upper left corner."""
        (down, across), (h, w, width) = self.pitch, self.features.shape
        return {
            "rows": h,
            "columns": w,
            "width": width,
            "pitch": {"x": across, "y": down},
            "first_centre": {"x": across / 2, "y": down / 2},
        }

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
        """Write the features, and a JSON of the same stem that describes the grid and what made them.

        Args:
            path: ends in .npy, .safetensors (tensor "features") or .zip (one Zarr array, for
                `zarr.storage.ZipStore`).
            overwrite: allow replacing files that densevl did not write.

        Raises:
            OutputError: If the extension is another one, a file is the photo or was not written by densevl, or the
                files cannot be written.
            MissingExtraError: If zarr is needed and not installed.
        """
        stem, form = _parted(path)
        facts = {
            "size": {"height": self.size[0], "width": self.size[1]},
            "dtype": str(self.features.dtype),
            "sha256": digest.of_bytes(np.ascontiguousarray(self.features).tobytes()),
            "grid": self.grid(),
            "meta": {key: value for key, value in self.meta.items() if key not in VOLATILE},
            "warnings": list(self.warnings),
        }
        data = _WRITERS[form](np.ascontiguousarray(self.features))
        contents = {Path(path): data, stem.with_name(f"{stem.name}.json"): to_json(facts)}
        return save_all(contents, inputs=[self.meta.get("image")], overwrite=overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DenseMap:
        """Read what `save` wrote.

        Raises:
            DensevlError: If a file is missing, damaged, or of another kind.
            MissingExtraError: If zarr is needed and not installed.
        """
        stem, form = _parted(FEATURES.path(path))
        facts = from_json(stem.with_name(f"{stem.name}.json"), ("grid", "dtype", "sha256"))
        features = _READERS[form](Path(path))
        with FEATURES.sense(path, inner=True):
            grid, size = facts["grid"], facts["size"]
            claimed = (grid["rows"], grid["columns"], grid["width"]), facts["dtype"]
            if (features.shape, str(features.dtype)) != claimed or facts["dtype"] not in DTYPES:
                raise ValueError(f"its features are {features.dtype} {features.shape}, not what its JSON says")
            if digest.of_bytes(np.ascontiguousarray(features).tobytes()) != facts["sha256"]:
                raise ValueError("its features do not match the checksum in its JSON")
            require_finite(torch.from_numpy(features), "its features")
        return cls(features, (size["height"], size["width"]), facts["meta"], tuple(facts["warnings"]))

    def _axes(self) -> tuple[tuple[int, float, int], tuple[int, float, int]]:
        """Return for x and y: the column in places, the pitch and the number of cells."""
        (down, across), (h, w) = self.pitch, self.features.shape[:2]
        return (0, across, w), (1, down, h)

    def _text(self, model: str | Backbone | None) -> TextClassifier:
        if self.meta["layer"] is not None:
            raise ModelError(
                f"these are tokens of layer {self.meta['layer']}, which cannot be compared with words; leave layer out "
                "for features that can"
            )
        if model is None and self.text is not None:
            return self.text
        backbone = model if isinstance(model, Backbone) else load_backbone(model or self.meta["model"])
        if fitted.fingerprint(backbone) != self.meta["weights"]:
            raise ModelError(
                f"the features were made with weights other than those of '{backbone.name}'; give the model that made "
                f"them ('{self.meta['model']}') with model="
            )
        return TextClassifier(backbone)


def require_format(form: str) -> None:
    """Refuse a format that cannot be written, before any work is done.

    Raises:
        OptionError: If there is no such format.
        MissingExtraError: If its package is not installed.
    """
    one_of(form, FORMATS, "format", OptionError)
    if form == "zarr":
        _zarr()


def _parted(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """Return a path without its extension, and the format of that extension."""
    text = os.fspath(target_of(path))
    for form, ending in FORMATS.items():
        if text.endswith(ending) and Path(text).name != ending:
            return Path(text.removesuffix(ending)), form
    raise OutputError(
        f"a dense map cannot be named {shown(path)}: give a name that ends in {', '.join(FORMATS.values())}"
    )


def _npy(features: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, features, allow_pickle=False)
    return buffer.getvalue()


def _safetensors(features: npt.NDArray[Any]) -> bytes:
    from safetensors.numpy import save

    return save({TENSOR: features}, {"format": "densevl"})


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise MissingExtraError("zarr", "zarr", "features as Zarr") from error
    return zarr


def _zarr_zip(features: npt.NDArray[Any]) -> bytes:
    zarr = _zarr()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "features.zip")
        store = zarr.storage.ZipStore(place, mode="w")
        chunks = (min(64, features.shape[0]), min(64, features.shape[1]), features.shape[2])
        zarr.create_array(store, data=features, chunks=chunks)
        store.close()
        return place.read_bytes()


def _read_safetensors(path: Path) -> npt.NDArray[Any]:
    from densevl.weights import read_checkpoint

    with FEATURES.sense(path):
        return read_checkpoint(path).tensors[TENSOR].numpy()


def _read_zarr(path: Path) -> npt.NDArray[Any]:
    zarr = _zarr()
    with FEATURES.sense(path):
        store = zarr.storage.ZipStore(path, mode="r")
        try:
            return np.asarray(zarr.open_array(store, mode="r")[:])
        finally:
            store.close()


_WRITERS = {"npy": _npy, "safetensors": _safetensors, "zarr": _zarr_zip}
_READERS = {"npy": lambda path: read_array(path, FEATURES), "safetensors": _read_safetensors, "zarr": _read_zarr}
