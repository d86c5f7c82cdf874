"""Label maps as COCO run-length codes: one pass over the map for all classes, without building a mask per class."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class ClassRuns(NamedTuple):
    """Where one class lies, in COCO's terms.

    Attributes:
        counts: int64 (N,), lengths of alternating runs outside and inside the class, down the columns. The first run is
            outside (so it may be 0).
        area: number of pixels of the class.
        box: (x, y, width, height) in pixels, tight.
    """

    counts: npt.NDArray[np.int64]
    area: int
    box: tuple[int, int, int, int]


def class_runs(labels: npt.NDArray[np.integer[Any]]) -> dict[int, ClassRuns]:
    """Split a label map into runs, by class.

    Args:
        labels: integer (H, W); negative where there is no class.

    Returns:
        The runs of each class present, in ascending order of class index.
    """
    height = labels.shape[0]
    column_order = labels.ravel(order="F")
    cuts = np.flatnonzero(column_order[1:] != column_order[:-1]) + 1
    starts = np.concatenate([[0], cuts])
    ends = np.concatenate([cuts, [labels.size]])
    values = column_order[starts]

    order = np.argsort(values, kind="stable")
    starts, ends, values = starts[order], ends[order], values[order]
    classes, first = np.unique(values, return_index=True)
    bounds = [*first.tolist(), len(values)]
    return {
        int(index): _runs_of_one(starts[begin:stop], ends[begin:stop], height, labels.size)
        for index, begin, stop in zip(classes.tolist(), bounds[:-1], bounds[1:], strict=True)
        if index >= 0
    }


def coco_segmentation(counts: npt.NDArray[np.int64], height: int, width: int, *, compressed: bool) -> dict[str, Any]:
    """Return run lengths as a COCO "segmentation" entry, ready for JSON.

    Args:
        counts: int64 (N,) of `ClassRuns`.
        height, width: size of the map in pixels.
        compressed: write COCO's short string instead of a list of integers.

    Returns:
        {"size": [height, width], "counts": str or list[int]}
    """
    plain = {"size": [height, width], "counts": counts.tolist()}
    if not compressed:
        return plain
    from pycocotools import mask

    packed = mask.frPyObjects(plain, height, width)
    return {"size": [height, width], "counts": packed["counts"].decode("ascii")}


def _runs_of_one(starts: npt.NDArray[np.intp], ends: npt.NDArray[np.intp], height: int, pixels: int) -> ClassRuns:
    edges = np.empty(2 * len(starts) + 1, np.int64)
    edges[0] = 0
    edges[1::2] = starts
    edges[2::2] = ends
    counts = np.diff(edges, append=np.array([pixels] if ends[-1] < pixels else [], np.int64))

    left, right = starts[0] // height, (ends[-1] - 1) // height
    one_column = starts // height == (ends - 1) // height
    if one_column.all():
        top, bottom = (starts % height).min(), ((ends - 1) % height).max()
    else:  # a run that continues in the next column touches the bottom of one and the top of the other
        top, bottom = 0, height - 1
    box = (int(left), int(top), int(right - left + 1), int(bottom - top + 1))
    return ClassRuns(counts, int((ends - starts).sum()), box)
