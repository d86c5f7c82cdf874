"""Masks to polygons with vertices on pixels and holes cut open: LabelMe draws them and fills them back to the mask.

A boundary is traced along the cracks between pixels inside and outside. The pixels on its inner side are the ring, so a
polygon goes through the centres of the outermost pixels, as OpenCV's do, and an outline one pixel wide belongs to it.
Pixels that touch at a corner are connected.

A polygon of one ring cannot have a hole. A cut, there and back along one line, joins each hole to the outline: the
nearest hole first, so that no cut crosses another hole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from densevl.lazy import ndimage

Ring = npt.NDArray[np.float64]
#: Steps (row, column) along a crack: east, south, west, north; the pixel inside lies on the right-hand side.
_AHEAD = ((0, 1), (1, 0), (0, -1), (-1, 0))


@dataclass(frozen=True, eq=False)
class Polygon:
    """One connected part of a mask.

    Attributes:
        points: float64 (N, 2), x and y in pixels, pixel centres at whole numbers; a ring, first point not repeated.
        holes: number of holes joined to the outline by cuts.
        area: area in pixels.
    """

    points: Ring
    holes: int
    area: int


def polygons(mask: npt.NDArray[np.bool_], *, tolerance: float = 0.0, min_area: int = 1) -> list[Polygon]:
    """Outline every connected part of a mask, the largest first.

    Args:
        mask: bool (H, W).
        tolerance: vertices may be dropped if the outline moves by at most this many pixels (Douglas-Peucker, 1973).
            With 0 only those on a straight line are dropped, and filling restores the mask except for pixels beside a
            cut.
        min_area: parts of fewer pixels are left out.

    Returns:
        Polygons; filled and with their outline drawn they restore the mask, up to the tolerance.
    """
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    outlines: dict[int, Ring] = {}
    holes: dict[int, list[Ring]] = {}
    for ring, outside in _rings(mask):
        part = int(parts[int(ring[0, 1]), int(ring[0, 0])])
        if areas[part] < min_area:
            continue
        slim = simplified(ring, tolerance)
        if outside:
            outlines[part] = slim
        else:
            holes.setdefault(part, []).append(slim)
    order = sorted(outlines, key=lambda part: (-areas[part], part))
    return [
        Polygon(_joined(outlines[part], holes.get(part, [])), len(holes.get(part, [])), int(areas[part]))
        for part in order
    ]


def outlined(mask: npt.NDArray[np.bool_]) -> list[list[Ring]]:
    """Trace every connected part of a mask along the edges of its pixels: first its outline, then its holes.

    Pixels that touch at a corner are not connected here, so that no ring meets itself along a line.

    Args:
        mask: bool (H, W).

    Returns:
        Rings float64 (N, 2), x and y of pixel corners, (0, 0) the top left one; the first point is not repeated.
        Outlines run clockwise as seen, holes the other way; areas are exact.
    """
    parts, _ = ndimage.label(mask)
    found: dict[int, list[Ring]] = {}
    for ring, pixel, outside in _edges(mask):
        rings = found.setdefault(int(parts[pixel]), [])
        rings.insert(0 if outside else len(rings), ring)
    return list(found.values())


def _edges(mask: npt.NDArray[np.bool_]) -> list[tuple[Ring, tuple[int, int], bool]]:
    """All boundaries along cracks: corners (N, 2), a pixel (row, column) inside, and whether it is an outline."""
    padded = np.pad(mask, 1)
    width = padded.shape[1]
    inside = padded.ravel().tolist()
    steps = [row * width + column for row, column in _AHEAD]
    corner = ((0, 0), (0, 1), (1, 1), (1, 0))  # (row, column) of a crack's start, from the pixel, by direction
    seen: set[int] = set()
    found = []
    for start in (np.flatnonzero(padded[1:-1] & ~padded[:-2]) + width).tolist():
        if start in seen:
            continue
        pixel, way, turns, turned = start, 0, 0, True  # the first of its row in the scan, so it is a corner
        corners: list[tuple[int, int]] = []
        while True:
            if way == 0:
                seen.add(pixel)
            if turned:
                row, column = divmod(pixel, width)
                corners.append((column - 1 + corner[way][1], row - 1 + corner[way][0]))
            ahead = pixel + steps[way]
            if not inside[ahead]:
                way, turns, turned = (way + 1) % 4, turns + 1, True
            elif inside[ahead + steps[way - 1]]:
                pixel, way, turns, turned = ahead + steps[way - 1], (way - 1) % 4, turns - 1, True
            else:
                pixel, turned = ahead, False
            if pixel == start and way == 0:
                break
        row, column = divmod(start, width)
        found.append((np.array(corners, np.float64), (row - 1, column - 1), turns > 0))
    return found


def simplified(ring: Ring, tolerance: float) -> Ring:
    """Drop vertices of a ring (N, 2) that lie within `tolerance` of the line between those kept."""
    if len(ring) < 4:
        return ring
    far = int(((ring - ring[0]) ** 2).sum(axis=1).argmax())
    closed = np.concatenate([ring, ring[:1]])
    kept = np.zeros(len(closed), bool)
    kept[[0, far, -1]] = True
    stack = [(0, far), (far, len(ring))]
    while stack:
        first, last = stack.pop()
        if last - first < 2:
            continue
        inner = closed[first + 1 : last] - closed[first]
        along = closed[last] - closed[first]
        length = float(np.hypot(*along))
        # Distance to the segment, not to its line: a spike that runs back over itself is kept.
        share = np.clip(inner @ along / length**2, 0, 1) if length else np.zeros(len(inner))
        away = np.hypot(*(inner - share[:, None] * along).T)
        worst = int(away.argmax())
        if away[worst] > max(tolerance, 1e-9):
            middle = first + 1 + worst
            kept[middle] = True
            stack += [(first, middle), (middle, last)]
    return ring[kept[:-1]]


def _rings(mask: npt.NDArray[np.bool_]) -> list[tuple[Ring, bool]]:
    """All boundaries: their pixels (N, 2) as x, y, and whether it is an outline."""
    padded = np.pad(mask, 1)
    width = padded.shape[1]
    inside = padded.ravel().tolist()
    steps = [row * width + column for row, column in _AHEAD]
    ends = np.flatnonzero(padded[1:-1] & ~padded[:-2]) + width  # every boundary runs east somewhere, along a top side
    seen: set[int] = set()
    found = []
    for start in ends.tolist():
        if start in seen:
            continue
        pixel, way, passed, turns = start, 0, [], 0
        while True:
            if way == 0:
                seen.add(pixel)
            passed.append(pixel)
            left = pixel + steps[way] + steps[way - 1]  # across the corner, on the outer side
            if inside[left]:
                pixel, way, turns = left, (way - 1) % 4, turns - 1
            elif inside[pixel + steps[way]]:
                pixel += steps[way]
            else:
                way, turns = (way + 1) % 4, turns + 1
            if pixel == start and way == 0:
                break
        row, column = np.divmod(np.array(passed), width)
        ring = np.stack([column - 1, row - 1], axis=1).astype(np.float64)
        moved = (ring != np.roll(ring, -1, axis=0)).any(axis=1)
        moved[0] |= not moved.any()
        found.append((ring[moved], turns > 0))
    return found


def _joined(outline: Ring, holes: list[Ring]) -> Ring:
    """One ring around the outline and, through cuts, around every hole."""
    from scipy.spatial import cKDTree

    rings = [outline, *holes]
    path = [(0, index) for index in range(len(outline))]  # (ring, vertex), rings numbered from the outline on
    points = np.concatenate(holes) if holes else np.zeros((0, 2))  # of all holes; find each one's nearest on the path
    first = np.cumsum([0, *(len(ring) for ring in holes)])
    distance, place = np.full(len(points), np.inf), np.zeros((len(points), 2), int)
    left = np.ones(len(points), bool)
    new = 0
    while left.any():
        free = np.flatnonzero(left)
        gap, vertex = cKDTree(rings[new]).query(points[free])
        closer = gap < distance[free]
        distance[free[closer]] = gap[closer]
        place[free[closer]] = np.stack([np.full(len(free), new), vertex], axis=1)[closer]
        best = int(distance.argmin())
        new = int(np.searchsorted(first, best, side="right"))
        start = best - int(first[new - 1])
        round_trip = [(new, (start + index) % len(rings[new])) for index in range(len(rings[new]) + 1)]
        cut = (int(place[best, 0]), int(place[best, 1]))
        at = path.index(cut) + 1
        path[at:at] = [*round_trip, cut]
        own = slice(first[new - 1], first[new])
        left[own], distance[own] = False, np.inf
    way = np.array([rings[number][index] for number, index in path])
    return way if len(way) > 2 else np.concatenate([way, way[-1:].repeat(3 - len(way), axis=0)])
