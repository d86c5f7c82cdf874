"""Posed photos: `View`, which projects points, and the `transforms.json` files of nerfstudio and instant-ngp.

Shape letters: N points, H/W pixels of the photo. Pixel (0, 0) is centred at (0.5, 0.5).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import DatasetError, ImageError, OptionError, one_of
from densevl.files import shown
from densevl.images import EXTENSIONS, UInt8Array, header, read_image, read_values
from densevl.saved import Kind, read_array, read_json

CONVENTIONS = ("opengl", "opencv")
DEPTH_SCALE = 1e-3
"""Default for depth in whole numbers: millimetres."""
TRANSFORMS = Kind("transforms file", DatasetError, "write it as nerfstudio does")
DEPTH = Kind("depth", DatasetError, "give an .npy array, or a PNG or TIFF")
MASK = Kind("mask", DatasetError, "give an .npy array, or a PNG or TIFF")
PINHOLES = ("PERSPECTIVE", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
DISTORTION = ("k1", "k2", "p1", "p2", "k3")
FARTHER = ("k4", "k5", "k6")
"""Coefficients of other lens models, or of one whose meaning differs between writers of these files."""


@dataclass(frozen=True, eq=False)
class View:
    """A photo with its camera.

    Attributes:
        image: any that `densevl.images.read_image` accepts. The camera belongs to the pixels as stored: the EXIF
            orientation is not applied, as in COLMAP and nerfstudio.
        matrix: (3, 3) intrinsics in pixels of a photo of `size`, or of the photo itself if that is None.
        pose: (4, 4) or (3, 4) camera to world, a rotation and a translation in the unit of the points.
        convention: axes of the camera, "opengl" (x right, y up, looking along -z, as in NeRF and Blender) or "opencv"
            (x right, y down, looking along z, as in COLMAP).
        depth: None, an array (h, w) or its file: distance along the viewing axis; 0 or not finite where unknown.
        depth_scale: factor from depth to the unit of the points. None is 0.001 for whole numbers, which are usually
            millimetres, and 1 for others.
        distortion: (k1, k2, p1, p2) or (k1, k2, p1, p2, k3) of OpenCV's model; None for no distortion.
        size: (H, W) that the matrix belongs to.
        mask: None, an array (h, w) or its file: 0 where the photo must not be used.

    Raises:
        OptionError: If a value is impossible.
    """

    image: Any
    matrix: npt.NDArray[np.float64]
    pose: npt.NDArray[np.float64]
    convention: str = "opengl"
    depth: Any = None
    depth_scale: float | None = None
    distortion: Sequence[float] | None = None
    size: tuple[int, int] | None = None
    mask: Any = None

    def __post_init__(self) -> None:
        one_of(self.convention, CONVENTIONS, "convention", OptionError)
        matrix, pose = _floats(self.matrix, "a camera matrix"), _floats(self.pose, "a pose")
        sound = matrix.shape == (3, 3) and np.isfinite(matrix).all() and (matrix[2] == (0, 0, 1)).all()
        if not sound or min(matrix[0, 0], matrix[1, 1]) <= 0:
            raise OptionError(
                "a camera matrix must be (3, 3) with focal lengths above 0, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]"
            )
        if pose.shape not in ((3, 4), (4, 4)) or not np.isfinite(pose).all():
            raise OptionError(f"a pose must be finite, (4, 4) or (3, 4), camera to world; got {pose.shape}")
        turn = pose[:3, :3]
        if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-2) or np.linalg.det(turn) < 0:
            raise OptionError(
                "the first three columns of a pose must be a rotation; give camera to world, without a scale"
            )
        object.__setattr__(self, "distortion", _lens(self.distortion))
        object.__setattr__(self, "size", None if self.size is None else _sides(self.size))
        if self.depth_scale is not None and not (_number(self.depth_scale) and self.depth_scale > 0):
            raise OptionError(f"depth scale is {self.depth_scale!r}; it must be a number above 0")
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "pose", pose[:3])

    def photo(self) -> UInt8Array:
        """Read the photo as uint8 RGB (H, W, 3), with its pixels as stored.

        Raises:
            ImageError: If it cannot be read.
        """
        return read_image(self.image, exif=False)

    def project(
        self, points_N3: npt.NDArray[np.float64], size: tuple[int, int]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Project points into the photo of a size (H, W).

        Returns:
            Places (N, 2), x and y in pixels; depth (N,) along the viewing axis; and which points are in front of the
            camera and inside the photo.

        Raises:
            ImageError: If the photo's aspect ratio differs from its camera's, for example because it was turned.
        """
        height, width = size
        given = self.size or size
        across, down = width / given[1], height / given[0]
        if abs(across / down - 1) > 0.02:
            raise ImageError(
                f"photo {_named(self.image)} has {height}x{width} pixels and its camera {given[0]}x{given[1]}: it was "
                "turned or cropped after its camera was found; give the one that belongs to the camera"
            )
        seen = (points_N3 - self.pose[:, 3]) @ self.pose[:, :3]
        if self.convention == "opengl":
            seen = seen * (1.0, -1.0, -1.0)
        z = seen[:, 2]
        before = z > 1e-9
        x, y = (np.divide(seen[:, axis], z, out=np.zeros_like(z), where=before) for axis in (0, 1))
        x, y, straight = _distorted(x, y, self.distortion or ())
        flat = np.stack([x, y, np.ones_like(x)], axis=1) @ self.matrix.T
        places = flat[:, :2] * (across, down)
        with np.errstate(invalid="ignore"):
            within = (places >= 0).all(axis=1) & (places[:, 0] < width) & (places[:, 1] < height)
        return places, z, before & straight & within

    def depths(self, places_N2: npt.NDArray[np.float64], size: tuple[int, int]) -> npt.NDArray[np.float64] | None:
        """Return the depth (N,) at places of the photo, of the pixel containing each; NaN where unknown, None without.

        Raises:
            DatasetError: If the depth cannot be read.
        """
        if self.depth is None:
            return None
        values = _plane(self.depth, DEPTH, "iuf")
        scale = self.depth_scale
        if scale is None:
            scale = DEPTH_SCALE if values.dtype.kind in "iu" else 1.0
        found = _held(values, places_N2, size).astype(np.float64) * scale
        return np.where(np.isfinite(found) & (found > 0), found, np.nan)

    def usable(self, places_N2: npt.NDArray[np.float64], size: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Return whether the mask allows places of the photo to be used (N,). Without a mask, all are.

        Raises:
            DatasetError: If the mask cannot be read.
        """
        if self.mask is None:
            return np.ones(len(places_N2), bool)
        return _held(_plane(self.mask, MASK, "biuf"), places_N2, size) != 0


def _floats(given: Any, what: str) -> npt.NDArray[np.float64]:
    try:
        return np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise OptionError(f"{what} is {type(given).__name__} and does not hold only numbers") from error


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_) and math.isfinite(value)


def _lens(given: Any) -> tuple[float, ...]:
    values = np.zeros(0) if given is None else _floats(given, "distortion").ravel()
    if len(values) not in (0, 4, 5) or not np.isfinite(values).all():
        raise OptionError(
            f"distortion is {values.tolist()}; it must be (k1, k2, p1, p2) or (k1, k2, p1, p2, k3); undistort the "
            "photos of other lenses first"
        )
    return tuple(np.pad(values, (0, 5 - len(values))).tolist())


def _sides(given: Any) -> tuple[int, int]:
    sides = tuple(given) if isinstance(given, Sequence | np.ndarray) else ()
    if len(sides) != 2 or not all(isinstance(side, Integral) and int(side) > 0 for side in sides):
        raise OptionError(f"size is {given!r}; it must be (H, W) in pixels, both above 0")
    return int(sides[0]), int(sides[1])


def _held(values: npt.NDArray[Any], places_N2: npt.NDArray[np.float64], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Look up pixels at places of a photo of size (H, W). The values may have another size."""
    h, w = values.shape
    cols = np.clip(places_N2[:, 0] / size[1] * w, 0, w - 1).astype(int)
    rows = np.clip(places_N2[:, 1] / size[0] * h, 0, h - 1).astype(int)
    return values[rows, cols]


def _distorted(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], distortion: Sequence[float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Distort points on the image plane like a lens. Also return where the radius still grows; beyond, it folds."""
    if not any(distortion):
        return x, y, np.ones(len(x), bool)
    k1, k2, p1, p2, k3 = distortion
    with np.errstate(over="ignore", invalid="ignore"):
        r2 = x * x + y * y
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        grows = 1 + r2 * (3 * k1 + r2 * (5 * k2 + r2 * 7 * k3)) > 0
        moved_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        moved_y = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return moved_x, moved_y, grows & np.isfinite(moved_x) & np.isfinite(moved_y)


def _plane(given: Any, kind: Kind, kinds: str) -> npt.NDArray[Any]:
    """Return one number per pixel (h, w), from an array or its file."""
    if not isinstance(given, str | os.PathLike):
        values = np.asarray(given)
    elif Path(given).suffix == ".npy":
        values = read_array(given, kind)
    else:
        try:
            values = read_values(given)
        except ImageError as error:
            raise DatasetError(f"{kind.what} cannot be read: {error}") from error
    values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if values.ndim != 2 or not values.size or values.dtype.kind not in kinds:
        raise DatasetError(f"{kind.what} {_named(given)} is {values.dtype} {values.shape}; give numbers (h, w)")
    return values


def read_views(
    path: str | os.PathLike[str], *, convention: str = "opengl", depth_scale: float | None = None
) -> list[View]:
    """Read the views of a transforms.json of nerfstudio, instant-ngp or NeRF's Blender scenes.

    Args:
        path: the file, or its folder. convention, depth_scale: see `View`. Without a scale, the file's own
            "depth_unit_scale_factor" is used.

    Raises:
        DatasetError: If it is missing, damaged or without frames, or its cameras have another lens model.
        OptionError: If a camera is impossible.
    """
    path = Path(path)
    path = path / "transforms.json" if path.is_dir() else path
    content = read_json(path, TRANSFORMS, ("frames",))
    with TRANSFORMS.sense(path):
        frames = [
            {**{key: value for key, value in content.items() if key != "frames"}, **own} for own in content["frames"]
        ]
        scale = content.get("depth_unit_scale_factor") if depth_scale is None else depth_scale
        if not frames:
            raise ValueError("it lists no frames")
        found = [_view(frame, path.parent, convention, scale) for frame in frames]
    if missing := [view.image for view in found if not os.path.isfile(view.image)]:
        raise DatasetError(f"{shown(path)} names {len(missing)} photos that are not there, such as {shown(missing[0])}")
    return found


def _view(frame: Mapping[str, Any], folder: Path, convention: str, scale: float | None) -> View:
    if (lens := frame.get("camera_model", "OPENCV")) not in PINHOLES or frame.get("is_fisheye"):
        raise DatasetError(
            f"its cameras are {lens}, but only {', '.join(PINHOLES)} are supported; undistort the photos first"
        )
    if farther := [name for name in FARTHER if float(frame.get(name, 0))]:
        raise DatasetError(
            f"its lenses have {farther[0]}, but only {', '.join(DISTORTION)} are supported; undistort the photos first"
        )
    image = _photo(folder / frame["file_path"])
    size = (int(frame["h"]), int(frame["w"])) if "h" in frame and "w" in frame else header(image).size
    height, width = _sides(size)
    if "fl_x" in frame:
        across = float(frame["fl_x"])
        down = float(frame.get("fl_y", across))
    else:
        across = 0.5 * width / math.tan(0.5 * float(frame["camera_angle_x"]))
        down = 0.5 * height / math.tan(0.5 * float(frame["camera_angle_y"])) if "camera_angle_y" in frame else across
    centre = float(frame.get("cx", width / 2)), float(frame.get("cy", height / 2))
    matrix = np.array([[across, 0, centre[0]], [0, down, centre[1]], [0, 0, 1]])
    depth, mask = (frame.get(name) for name in ("depth_file_path", "mask_path"))
    return View(
        image,
        matrix,
        np.array(frame["transform_matrix"], np.float64),
        convention,
        folder / depth if depth else None,
        scale,
        tuple(float(frame.get(name, 0)) for name in DISTORTION),
        size,
        folder / mask if mask else None,
    )


def _photo(path: Path) -> str:
    """Return the file of a photo. NeRF's Blender scenes omit its extension."""
    tried = (path, *(path.with_name(path.name + ending) for ending in sorted(EXTENSIONS)))
    return str(next((one for one in tried if one.is_file()), path))


def _named(source: Any) -> str:
    return shown(source) if isinstance(source, str | os.PathLike) else f"({type(source).__name__})"
