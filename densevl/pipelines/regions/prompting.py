"""Turn a click or a box into a mask with a SAM, ready to be named (Open-Vocabulary SAM, ECCV 2024)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import ProposalError
from densevl.images import read_image
from densevl.proposals import Proposals, load_proposer
from densevl.proposals.checks import image_points
from densevl.proposals.components import components


def prompted(
    image: Any,
    *,
    points: Any = (),
    boxes: Any = (),
    proposer: Any = "mini-sam",
    near: bool = True,
) -> Proposals:
    """Make one mask from each click and each box. The photo is encoded once.

    Examples:
        >>> regions = prompted("scene.png", points=[(116, 108)], boxes=[(20, 120, 75, 185)])
        >>> classify("scene.png", ["elephant", "penguin"], regions=regions).found

    Args:
        image: any that `read_image` accepts. points: (P, 2) x, y in pixels, one click each. boxes: (R, 4) x0, y0, x1,
            y1 in pixels.
        proposer: a SAM, or its name. With any other proposer, boxes stay rectangles.
        near: keep only the connected part of a click's mask that was hit, if any, and the part of a box's mask inside
            the box. Small models put similar things anywhere in the photo into one mask. False keeps whole masks. A box
            in which the SAM finds nothing stays a rectangle.

    Returns:
        Masks of the points, then of the boxes, in order. The boxes of the result are those of the masks.

    Raises:
        ProposalError: If there are clicks but no SAM, it finds nothing at one, or prompts are in 0-1, outside the photo
            or malformed.
        ModelError, MissingExtraError: If the proposer cannot be loaded.
    """
    if isinstance(proposer, str):
        proposer = load_proposer(proposer)
    rgb = read_image(image)
    size = (rgb.shape[0], rgb.shape[1])
    clicks = image_points(points, None, size)[0][:, 0]
    whole = Proposals.from_boxes(boxes, size)
    if not hasattr(proposer, "prompt"):
        if len(clicks):
            raise ProposalError("points need a SAM to turn them into masks; take the proposer mini-sam or sam")
        return whole
    encoded = proposer.encode(rgb)
    found = []
    if len(clicks):
        found.append(proposer.prompt(encoded, points=clicks))
        if near:
            found[-1] = _kept(found[-1], [_part_at(found[-1].mask(i), point) for i, point in enumerate(clicks)])
        for index in np.flatnonzero(found[-1].areas == 0)[:1]:
            x, y = clicks[index]
            raise ProposalError(f"{proposer.name} finds nothing at point {index} ({x:g}, {y:g}); give a box around it")
    if len(whole):
        made = proposer.prompt(encoded, boxes=boxes)
        masks = [made.mask(i) & whole.mask(i) if near else made.mask(i) for i in range(len(whole))]
        found.append(_kept(made, [mask if mask.any() else whole.mask(i) for i, mask in enumerate(masks)]))
    if not found:
        return Proposals.empty(size)
    packed, quality = (np.concatenate([getattr(part, name) for part in found]) for name in ("packed", "quality"))
    return Proposals.from_packed(packed, size, quality)


def _kept(found: Proposals, masks: list[npt.NDArray[np.bool_]]) -> Proposals:
    return Proposals.from_masks(masks, found.size, quality=found.quality)


def _part_at(mask: npt.NDArray[np.bool_], point: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return the connected part of a mask that contains a point, or the whole mask if the point is outside."""
    numbers = components(mask)
    x, y = (min(int(place), length - 1) for place, length in zip(point, mask.shape[::-1], strict=True))
    return numbers == numbers[y, x] if mask[y, x] else mask
