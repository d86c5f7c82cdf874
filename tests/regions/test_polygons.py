"""Masks to polygons and back: filled as LabelMe fills them, odd shapes come out as they went in."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from densevl.regions.polygons import polygons, simplified

Y, X = np.mgrid[:60, :80]
FAR, TURN = np.hypot(Y - 30, X - 40), np.arctan2(Y - 30, X - 40)
SHAPES = {
    "disc": FAR < 25,
    "ring": (FAR < 25) & (FAR > 12),
    "ring one pixel wide": np.abs(FAR - 20) < 0.6,
    "ring in a ring": (FAR < 28) & ~((FAR < 22) & (FAR > 12)),
    "many holes": (FAR < 28) & ~(((X % 10 - 5) ** 2 + (Y % 10 - 5) ** 2) < 8),
    "spiral": np.abs((FAR - 3 * TURN / np.pi) % 6 - 3) < 1.2,
    "star": 18 + 9 * np.sin(5 * TURN) > FAR,
    "L to the border": (X < 20) | (Y > 45),
    "all": np.ones(X.shape, bool),
    "one pixel": (X == 5) & (Y == 6),
    "diagonal": X == Y,
    "line": (Y == 3) & (X > 4),
    "two that touch at a corner": ((X < 20) & (Y < 20)) | ((X >= 20) & (X < 30) & (Y >= 20) & (Y < 30)),
    "blobs": gaussian_filter(np.random.default_rng(0).standard_normal(X.shape), 3) > 0,
    "noise": np.random.default_rng(1).random(X.shape) < 0.5,
}


def filled(found, size: tuple[int, int]) -> np.ndarray:
    """LabelMe's rule: each polygon with its outline drawn."""
    out = np.zeros(size, bool)
    for polygon in found:
        picture = Image.new("1", size[::-1])
        ImageDraw.Draw(picture).polygon([tuple(point) for point in polygon.points], fill=1, outline=1)
        out |= np.array(picture)
    return out


@pytest.mark.parametrize("name", SHAPES)
def test_polygons_fill_to_their_mask(name) -> None:
    mask = SHAPES[name]
    found = polygons(mask)
    again = filled(found, mask.shape)
    assert (again & mask).sum() / (again | mask).sum() > 0.99
    assert sum(polygon.area for polygon in found) == mask.sum()
    assert all(len(polygon.points) > 2 for polygon in found), "LabelMe takes no polygon of two points"


@pytest.mark.parametrize(
    ("name", "parts", "holes"),
    [
        ("disc", 1, 0),
        ("ring", 1, 1),
        ("ring in a ring", 2, 1),
        ("two that touch at a corner", 1, 0),
        ("diagonal", 1, 0),
    ],
)
def test_parts_and_holes_are_counted(name, parts, holes) -> None:
    found = polygons(SHAPES[name])
    assert (len(found), sum(polygon.holes for polygon in found)) == (parts, holes)
    assert found == sorted(found, key=lambda polygon: -polygon.area)


def test_a_square_has_four_corners_and_an_empty_mask_no_polygon() -> None:
    square = np.zeros((20, 30), bool)
    square[4:9, 10:25] = True
    (found,) = polygons(square)
    assert found.points.tolist() == [[10, 4], [24, 4], [24, 8], [10, 8]]
    assert polygons(np.zeros((5, 5), bool)) == []


def test_a_tolerance_saves_vertices_and_a_least_area_saves_specks() -> None:
    exact, rough = polygons(SHAPES["disc"])[0], polygons(SHAPES["disc"], tolerance=1)[0]
    assert len(rough.points) < len(exact.points) / 2
    again = filled([rough], X.shape)
    assert (again & SHAPES["disc"]).sum() / (again | SHAPES["disc"]).sum() > 0.95
    assert len(polygons(SHAPES["blobs"], min_area=200)) < len(polygons(SHAPES["blobs"]))


def test_a_spike_that_runs_back_is_kept() -> None:
    ring = np.array([[0, 0], [9, 0], [9, 5], [9, 9], [9, 5], [0, 5]], float)
    assert [9, 9] in simplified(ring, 0.5).tolist()
