"""Read point clouds from PLY and .npy, and write PLY with a label, its colour, confidence and count for each point."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import DatasetError, MissingExtraError
from densevl.files import shown
from densevl.saved import Kind, read_array, read_bytes

CLOUD = Kind("point cloud", DatasetError, "give a .ply file, or an .npy array (N, 3)")
MOST_BYTES = 1 << 33
MOST_COLUMNS = 32
"""Limit for arrays: coordinates, colours, normals and what scanners add. More is a depth map, or a transposed cloud."""
VERTEX = np.dtype(
    [
        *((axis, "<f8") for axis in "xyz"),
        *((colour, "u1") for colour in ("red", "green", "blue")),
        *(("label", "<i2"), ("confidence", "<f4"), ("seen", "<i4")),
    ]
)
_PLY = {"<f8": "double", "u1": "uchar", "<i2": "short", "<f4": "float", "<i4": "int", "|u1": "uchar"}


def read_cloud(source: Any) -> npt.NDArray[np.float64]:
    """Read the points of a cloud in their order: (N, 3) float64.

    Args:
        source: a .ply file of points or of a mesh, whose vertices are used; an .npy file; or an array (N, 3 to 32) with
            x, y, z first.

    Raises:
        DatasetError: If it is missing, damaged or of another form, has no points, or coordinates that are not finite.
        MissingExtraError: If it is a PLY file and trimesh is not installed.
    """
    what = shown(source) if isinstance(source, str | os.PathLike) else f"the array {np.shape(source)}"
    if not isinstance(source, str | os.PathLike):
        points = np.asarray(source)
    elif Path(source).suffix.lower() == ".npy":
        points = read_array(source, CLOUD)
    elif Path(source).suffix.lower() == ".ply":
        points = _ply(Path(source))
    else:
        raise CLOUD.bad(source, "is neither .ply nor .npy")
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "iuf" or not len(points):
        raise DatasetError(f"{what} is {points.dtype} {points.shape}; points must be numbers (N, 3), at least one")
    if points.shape[1] > MOST_COLUMNS:
        hint = "one row per point: transpose it" if len(points) <= MOST_COLUMNS else "points, not a depth map"
        raise DatasetError(f"{what} is {points.shape[0]} x {points.shape[1]} numbers; points must be (N, 3), {hint}")
    points = points[:, :3].astype(np.float64)
    if bad := int((~np.isfinite(points)).any(axis=1).sum()):
        raise DatasetError(f"{what} has {bad} points with NaN or infinite coordinates; remove them")
    return points


def _ply(path: Path) -> npt.NDArray[Any]:
    data = read_bytes(path, CLOUD, MOST_BYTES)
    try:
        import trimesh
    except ImportError as error:
        raise MissingExtraError("trimesh", "points", "a PLY file") from error
    import io

    with CLOUD.sense(path):
        # Keep vertices as stored: neither merged nor duplicated for textures.
        how: dict[str, Any] = {"process": False, "fix_texture": False, "skip_materials": True}
        found: Any = trimesh.load(io.BytesIO(data), file_type="ply", **how)
        return np.asarray(found.vertices)


def ply_bytes(
    points_N3: npt.NDArray[np.float64],
    colours_N3: npt.NDArray[np.uint8],
    labels_N: npt.NDArray[np.int16],
    confidence_N: npt.NDArray[np.float32],
    seen_N: npt.NDArray[np.int32],
) -> bytes:
    """Return a binary PLY of points with `VERTEX`'s properties, in their order."""
    table = np.zeros(len(points_N3), VERTEX)
    for column, axis in enumerate("xyz"):
        table[axis] = points_N3[:, column]
    for column, colour in enumerate(("red", "green", "blue")):
        table[colour] = colours_N3[:, column]
    table["label"], table["confidence"], table["seen"] = labels_N, confidence_N, seen_N
    rows = [f"property {_PLY[VERTEX[name].str]} {name}" for name in VERTEX.names or ()]
    head = ["ply", "format binary_little_endian 1.0", "comment densevl", f"element vertex {len(table)}", *rows]
    return "\n".join([*head, "end_header", ""]).encode() + table.tobytes()
