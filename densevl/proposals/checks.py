"""Checks of boxes, points, masks and qualities from callers: convert to one form, or say in one line what is wrong.

All input passes here: calls with regions, prompts of a SAM, examples, detections, and `Proposals` made by hand.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import ProposalError
from densevl.images.notes import say

Floats = npt.NDArray[np.float64]
NEAR = 0.05  # how far normalised boxes of a detector may exceed the edge
THIN = 0.3  # fraction of equal neighbours in a soft mask; superpixels of 2x2 pixels have 0.5
VOID = 255
"""The value for unknown in a map of fewer than 256 classes or segments."""
WAYS = "torchvision.ops.box_convert(boxes, 'xywh', 'xyxy'), or 'cxcywh', converts"


def as_array(given: Any, what: str, form: str) -> npt.NDArray[Any]:
    """Convert an array, a tensor, a PIL image, a list of lists, or an object that holds one as `.tensor` to an array.

    Args:
        what: its name in messages, "boxes". form: the expected form, "(M, 4), x0 y0 x1 y1 in pixels".

    Raises:
        ProposalError: it is anything else.
    """
    if type(given).__module__.startswith("detectron2."):
        given = given.tensor  # detectron2's Boxes
    wrong = f"{what} are a {type(given).__name__}; give an array {form}"
    if given is None or isinstance(given, (str, bytes, os.PathLike, Mapping, set, frozenset)):
        raise ProposalError(wrong)
    if not isinstance(given, Sequence) and not any(
        hasattr(given, name) for name in ("__array__", "__array_interface__")
    ):
        raise ProposalError(wrong)
    try:
        if hasattr(given, "detach"):
            given = given.detach().cpu()
            given = given.float() if given.is_floating_point() else given  # numpy has no bfloat16
        elif isinstance(given, Sequence):
            given = [one.detach().cpu().tolist() if hasattr(one, "detach") else one for one in given]
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as error:  # rows of unequal length, tensors without values
        raise ProposalError(f"{what} cannot be read as one array ({str(error).splitlines()[0]}): {form}") from error
    if array.dtype.kind not in "biuf" and array.size:
        raise ProposalError(f"{what} hold {_kind(array)}, not numbers; give an array {form}")
    return array


def image_boxes(boxes: Any, size: tuple[int, ...], *, what: str = "box") -> Floats:
    """Boxes clipped to their image: float64 (M, 4), x0 y0 x1 y1, each with area.

    Args:
        boxes: (M, 4), or (4,) for one, in pixels of the image. torchvision's `BoundingBoxes` know their own format and
            are converted. size: (H, W). what: name of one box in messages.

    Raises:
        ProposalError: the shape is wrong, values are not finite numbers, all lie within 0-1, or a box has no area or is
            wholly outside; the message has its number, its corners and the way out.

    Warns:
        ImageWarning: more than half of a box is outside.
    """
    array = box_corners(boxes, what=what)
    refuse_normalised(array, size, what=what)
    cut = _cut(array, size)
    _refuse_first(array, _no_area(cut), size, what)
    _say_cut(array, cut, size, what)
    return cut


def detected_boxes(boxes: Any, size: tuple[int, ...]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Boxes of a detector or a tracker, some of which may be empty or outside the image.

    Returns:
        Boxes clipped to the image, float64 (M, 4), and which have area, bool (M,).

    Raises:
        ProposalError: as `image_boxes`, but for boxes without area only if x1 is below x0 or y1 below y0, and for boxes
            outside only if none is inside, as if they belonged to another image.
    """
    array = box_corners(boxes)
    refuse_normalised(array, size)
    cut = _cut(array, size)
    seen = ~_no_area(cut)
    wrong = (array[:, 2:] < array[:, :2]).any(axis=1) | (~_no_area(array) & (not seen.any()))
    _refuse_first(array, wrong, size, "box")
    return cut, seen


def _cut(boxes: Floats, size: tuple[int, ...]) -> Floats:
    return np.clip(boxes, 0, [size[1], size[0]] * 2)


def _say_cut(boxes: Floats, cut: Floats, size: tuple[int, ...], what: str) -> None:
    """Note that boxes (M, 4) were cut to less than half of their area: they may be of a larger copy of the image."""
    far = np.flatnonzero(_areas(cut) < _areas(boxes) / 2)
    for index in far[:1]:
        more = f" ({len(far) - 1} more like it)" * (len(far) > 1)
        say(
            "the image",
            f"{what} {index} is {_numbers(boxes[index])}{more}: more than half of it is beyond the picture of "
            f"{size[1]}x{size[0]} pixels, and was cut off; boxes of a larger copy must be scaled",
        )


def _areas(boxes: Floats) -> Floats:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _no_area(boxes: Floats) -> npt.NDArray[np.bool_]:
    return np.asarray((boxes[:, 2:] <= boxes[:, :2]).any(axis=1))


def _refuse_first(boxes: Floats, wrong: npt.NDArray[np.bool_], size: tuple[int, ...], what: str) -> None:
    """Report the first of some boxes (M, 4) that have no area within the image."""
    height, width = size
    low, high = boxes[:, :2], boxes[:, 2:]
    for index in np.flatnonzero(wrong)[:1]:
        this = f"{what} {index} is {_numbers(boxes[index])}"
        of = f"an image of {width}x{height} pixels"
        if (high[index] < low[index]).any():
            raise ProposalError(f"{this} on {of}: x1 is below x0 or y1 below y0; if it is x, y, width, height, {WAYS}")
        if (high[index] == low[index]).any():
            raise ProposalError(
                f"{this} on {of}: it has no area; leave it out, or add 1 if x1 and y1 are the last pixels: they are "
                "exclusive"
            )
        # Most of them reach over the edge and none is inside, so this is not one object that left the image.
        over = ((low < 0) | (high > [width, height])).any(axis=1)
        turned = boxes[:, [1, 0, 3, 2]]
        swapped = len(boxes) > 1 and over.mean() > 0.5 and ((turned >= 0) & (turned <= [width, height] * 2)).all()
        raise ProposalError(
            f"{this}, outside {of}; boxes are in pixels of the image as given: leave it out, or scale those of another "
            "size" + "; with x and y swapped all would be inside" * bool(swapped)
        )


def box_corners(boxes: Any, *, what: str = "box") -> Floats:
    """Boxes as finite float64 (M, 4), for any image.

    Raises:
        ProposalError: the shape is wrong, or values are not finite numbers.
    """
    form = "(M, 4), x0 y0 x1 y1 in pixels"
    if type(boxes).__module__.startswith("torchvision.tv_tensors"):
        boxes = _converted(boxes)
    array = as_array(boxes, _plural(what), form)
    array = array.reshape(0, 4) if array.size == 0 else array
    array = array[None] if array.shape == (4,) else array
    if array.dtype == np.bool_:
        raise ProposalError(f"{_plural(what)} are bool; give an array {form}")
    if array.ndim != 2 or array.shape[1] != 4:
        raise ProposalError(f"{_plural(what)} of shape {array.shape}: {form}{_box_hint(array.shape)}")
    array = array.astype(np.float64)
    for index in np.flatnonzero(~np.isfinite(array).all(axis=1))[:1]:
        raise ProposalError(f"{what} {index} is {_numbers(array[index])}: corners must be finite")
    return array


def refuse_normalised(boxes: Floats, size: tuple[int, ...], *, what: str = "box") -> None:
    """Refuse corners (M, 4) that all lie within 0-1 on a larger image.

    Raises:
        ProposalError: they do.
    """
    height, width = size
    if boxes.any() and max(size) > 1 and boxes.min() >= -NEAR and boxes.max() <= 1 + NEAR:
        centred = (boxes[:, 2:] < boxes[:, :2]).any()
        raise ProposalError(
            f"{_plural(what)} lie within 0-1 on an image of {width}x{height} pixels, the first {_numbers(boxes[0])}: "
            f"they look normalised; multiply them by [{width}, {height}, {width}, {height}]"
            + ", after converting them if they are centre, width and height"
            * bool(centred)
        )


def box_edges(boxes: Floats) -> npt.NDArray[np.int64]:
    """The pixels of boxes from `image_boxes`: int64 (M, 4), right and bottom exclusive, at least one pixel.

    A pixel belongs to a box that contains its centre; a box too thin for that takes the pixel of its own centre.
    """
    edges = np.ceil(boxes - 0.5).astype(np.int64)
    middle = ((boxes[:, :2] + boxes[:, 2:]) / 2).astype(np.int64)
    middle = np.minimum(middle, np.ceil(boxes[:, 2:]).astype(np.int64) - 1)  # a sum may round up to the far side
    for low, high in ((0, 2), (1, 3)):
        thin = edges[:, high] <= edges[:, low]
        edges[thin, low], edges[thin, high] = middle[thin, low], middle[thin, low] + 1
    return edges


def image_points(points: Any, labels: Any, size: tuple[int, int]) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Points as float64 (P, K, 2) and their labels as int64 (P, K).

    Args:
        points: (P, 2), (P, K, 2), or (2,) for one; x and y in pixels. labels: 0 or 1 for each; None is 1. size: (H, W).

    Raises:
        ProposalError: shapes differ, a label is not 0 or 1, all points lie within 0-1, or one is outside the image.
    """
    form = "(P, 2) or (P, K, 2), x and y in pixels"
    array = as_array(points, "points", form)
    array = array.reshape(0, 1, 2) if array.size == 0 else array
    array = array[None] if array.shape == (2,) else array
    array = array[:, None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] != 2 or array.dtype == np.bool_:
        raise ProposalError(f"points of shape {array.shape}: {form}")
    array = array.astype(np.float64)
    height, width = size
    if array.size and array.min() >= 0 and array.max() <= 1 and (array % 1).any() and max(size) > 1:
        raise ProposalError(
            f"points lie within 0-1 on an image of {width}x{height} pixels, the first at {_numbers(array[0, 0])}: they "
            f"look normalised; multiply them by [{width}, {height}]"
        )
    outside = ~((array >= 0) & (array <= [width, height])).all(axis=2)
    if outside.any():
        index, place = np.argwhere(outside)[0]
        turned = ((array[..., ::-1] >= 0) & (array[..., ::-1] <= [width, height])).all()
        raise ProposalError(
            f"point {_numbers(array[index, place])} of prompt {index} is outside the image of {width}x{height} pixels"
            + "; with x and y swapped all points would be inside" * bool(turned)
        )
    if labels is None:
        return array, np.ones(array.shape[:2], np.int64)
    marks = as_array(labels, "labels of points", "(P, K) of 0 and 1")
    marks = marks[:, None] if marks.ndim == 1 else marks
    if marks.shape != array.shape[:2] or not np.isin(marks, (0, 1)).all():
        raise ProposalError(f"labels of shape {marks.shape} for points {array.shape[:2]}: a 0 or 1 for each point")
    return array, marks.astype(np.int64)


def each_mask(masks: Any, size: tuple[int, ...] | None = None) -> Sequence[Any]:
    """Masks one by one, from any container: (M, H, W), (H, W), (M, 1, H, W), (1, M, H, W), or a list.

    Args:
        masks: of one image. size: its (H, W), if it is known.

    Raises:
        ProposalError: these are not masks, or have the order (H, W, M).
    """
    if hasattr(masks, "convert") and hasattr(masks, "mode"):
        return [masks]  # one PIL image
    if isinstance(masks, (str, bytes, os.PathLike, Mapping)) or not hasattr(masks, "__len__"):
        raise ProposalError(f"masks are a {type(masks).__name__}; give an array (M, H, W) or a list of (H, W)")
    rank = getattr(masks, "ndim", None)
    if rank == 2:
        return [masks]
    if rank == 4 and masks.shape[1] == 1:
        return list(masks[:, 0])
    if rank == 4 and masks.shape[3] == 1:
        return list(masks[..., 0])
    if rank == 4 and masks.shape[0] == 1:
        return list(masks[0])
    if rank is not None and rank not in (0, 3):
        raise ProposalError(f"masks of shape {tuple(masks.shape)}: (M, H, W), of one image")
    shape = tuple(getattr(masks, "shape", ()))
    if rank == 3 and size is not None and shape[:2] == tuple(size) and shape[2] in (3, 4) and shape[1:] != tuple(size):
        raise ProposalError(
            f"masks are {shape}, a colour picture: give masks (M, H, W), or an integer map (H, W); of a mask saved in "
            "colour picture[..., 0] > 127"
        )
    if rank == 3 and size is not None and shape[:2] == tuple(size) != shape[1:] and shape[2] not in (3, 4):
        raise ProposalError(f"masks are {shape} on an image {tuple(size)}: masks come first, (M, H, W)")
    return masks  # an array, a list, or a CompactMask, which is read one at a time


def image_mask(mask: Any, size: tuple[int, ...], index: int) -> npt.NDArray[np.bool_]:
    """Convert one mask of an image to bool (H, W), without a copy if it already is.

    Args:
        mask: bool, 0 and 1, or 0 and 255; an array, a tensor, or a PIL image of one channel. size: (H, W).
        index: its number, for messages.

    Raises:
        ProposalError: the size differs, or values are not a mask, such as soft masks, logits and label maps.
    """
    if isinstance(mask, Mapping):
        raise ProposalError(f"mask {index} is a dict; give COCO's run lengths as rle=")
    array = as_array(mask, f"the values of mask {index}", "(H, W)")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.shape != tuple(size) or array.ndim != 2:
        raise ProposalError(f"mask {index} is {array.shape}, the image {tuple(size)}{_mask_hint(array, tuple(size))}")
    if array.dtype == np.bool_:
        return array
    values = np.unique(array)
    if not (np.isin(values, (0, 1)).all() or np.isin(values, (0, 255)).all()):
        hint = _value_hint(array, values)
        raise ProposalError(f"mask {index} holds values from {values[0]:g} to {values[-1]:g}: {hint}")
    return array != 0


def checked_quality(quality: Any, count: int) -> npt.NDArray[np.float32]:
    """Qualities as float32 (M,), 1 if none are given.

    Raises:
        ProposalError: the length differs, or values are outside 0-1.
    """
    if quality is None:
        return np.ones(count, np.float32)
    array = as_array(quality, "quality", "(M,) of numbers from 0 to 1").astype(np.float32)
    if array.shape != (count,):
        raise ProposalError(f"quality of shape {array.shape} for {count} masks: ({count},)")
    if not ((array >= 0) & (array <= 1)).all():
        raise ProposalError(f"quality spans {array.min():.4g} to {array.max():.4g}: numbers from 0 to 1")
    return array


def _kind(array: npt.NDArray[Any]) -> str:
    return {"O": "objects", "c": "complex numbers"}.get(array.dtype.kind, "text")


def _numbers(row: Floats) -> str:
    return f"({', '.join(f'{number:g}' for number in row)})"


def _plural(what: str) -> str:
    return f"{what}es" if what.endswith("x") else f"{what}s"


def _converted(boxes: Any) -> Any:
    """Convert torchvision's `BoundingBoxes` to corners."""
    form = str(getattr(boxes, "format", "XYXY")).rpartition(".")[2]
    if form in ("XYWH", "CXCYWH"):
        from torchvision.ops import box_convert

        return box_convert(boxes.data, form.lower(), "xyxy")
    if form != "XYXY":
        raise ProposalError(f"boxes are rotated ({form}): give upright ones, x0 y0 x1 y1 in pixels")
    return boxes.data


def _box_hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 2 and shape[1] in (6, 7):
        return "; if scores and classes follow the corners, give boxes[:, :4]"
    if len(shape) == 2 and shape[1] == 5:
        return "; give boxes[:, :4] if a score follows, upright boxes if an angle does"
    if shape[-1:] == (8,) or shape[1:] == (4, 2):
        return "; of four corners take the least and the largest x and y"
    if len(shape) == 2 and shape[0] == 4:
        return "; boxes.T if each row is one of the four numbers"
    if shape[1:] == (2, 2):
        return "; boxes.reshape(-1, 4) of pairs of corners"
    return "; those of one image" if len(shape) == 3 and shape[2] == 4 else ""


def _mask_hint(array: npt.NDArray[Any], size: tuple[int, ...]) -> str:
    if array.shape == size[::-1]:
        return ": it looks transposed; give mask.T"
    if array.ndim == 3 and array.shape[:2] == size and array.shape[2] in (3, 4):
        return ": it is a colour picture; a mask has one channel"
    if array.ndim == 2 and min(array.shape, default=0) > 1:
        return ": both are (height, width); enlarge it with the nearest value, or give the image it belongs to"
    return ": give masks (M, H, W)"


def soft_cut(array: npt.NDArray[Any], values: npt.NDArray[Any] | None = None) -> str | None:
    """The threshold that makes a mask of soft numbers (H, W): "> 0.5", "> 127", or "> 0" for logits.

    None if they are not a soft mask, but class numbers or segments.

    Args:
        array: numbers (H, W). values: `np.unique` of them, if known.
    """
    values = np.unique(array) if values is None else values
    if (len(values) < 3 and not (values % 1).any()) or not np.isfinite(values.astype(np.float64)).all():
        return None
    least, most = float(values[0]), float(values[-1])
    middle = "> 127" if most <= VOID else f"> {most / 2:g}"
    if (values % 1).any():
        return "> 0" if least < 0 else "> 0.5" if most <= 1 else middle
    near = (values <= 15) | (values >= 240)
    if (
        least >= 0
        and most <= VOID
        and near.all()
        and (values < 240).any()
        and ((values >= 240) & (values < VOID)).any()
    ):
        return middle  # a hard mask from a lossy file
    if least < 0 or len(values) < 8 or most < 32 or array.size < 2 * len(values):  # last: every pixel is a segment
        return None
    # Segments have an inside. A soft mask's numbers each lie next to others, or rise step by step.
    beside = []
    for one, other in ((array[:, 1:], array[:, :-1]), (array[1:], array[:-1])):
        both = (one > 0) & (other > 0)
        beside.append(np.searchsorted(values, np.stack([one[both], other[both]])))
    pairs = np.concatenate(beside, axis=1)
    equal = pairs[0] == pairs[1]
    inner = 2 * np.bincount(pairs[0][equal], minlength=len(values))
    edges = np.bincount(pairs[:, ~equal].ravel(), minlength=len(values))
    met = inner + edges > 0
    thin = met.sum() >= 8 and float(np.median(inner[met] / (inner + edges)[met])) < THIN
    steps = np.abs(np.subtract(*values[pairs[:, ~equal]].astype(np.float64)))
    return middle if thin or (len(values) > 100 and len(steps) and float((steps <= 2).mean()) > 0.99) else None


def _value_hint(array: npt.NDArray[Any], values: npt.NDArray[Any]) -> str:
    if not np.isfinite(values.astype(np.float64)).all():
        return "a mask is bool, or 0 and 1"
    if values.tolist() == [0, 1, 255]:
        return "255 beside 1 means unknown; give mask == 1"
    cut = soft_cut(array, values)
    if cut == "> 0":
        return "they look like logits; threshold them, masks > 0"
    if cut is not None:
        return f"it is soft; threshold it, masks {cut}"
    return "a mask is bool, 0 and 1, or 0 and 255; give a label map as an integer map (H, W), or split it (labels == 3)"
