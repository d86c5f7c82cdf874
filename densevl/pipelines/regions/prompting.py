"""A click or a box to a mask: what a SAM makes of it, ready to be named (Open-Vocabulary SAM, ECCV 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import ProposalError
from densevl.images import read_image
from densevl.proposals import Proposals, load_proposer
from densevl.proposals.components import components

Prompt = Sequence[float]


def prompted(
    image: Any,
    *,
    points: Sequence[Prompt] = (),
    boxes: Sequence[Prompt] = (),
    proposer: Any = "mini-sam",
    near: bool = True,
) -> Proposals:
    """Make one mask of each click and each box; the photo is encoded once.

    >>> regions = prompted("scene.png", points=[(116, 108)], boxes=[(20, 120, 75, 185)])
    >>> classify("scene.png", ["elephant", "penguin"], regions=regions).found

    Args:
        image: as `read_image` takes it. points: x, y in pixels, a click each. boxes: x0, y0, x1, y1 in pixels.
        proposer: a SAM, or its name. With one that is none, boxes stay rectangles.
        near: of a click's mask keep the connected part that it hit, if it hit any; of a box's mask what is in the box.
            Small models put things of one look into one mask, wherever they are. False leaves masks as they come.

    Returns:
        Masks of the points, then of the boxes, in order; the boxes of the result are those of the masks.

    Raises:
        ProposalError: clicks without a SAM, points outside the photo, or malformed prompts.
        ModelError, MissingExtraError: the proposer cannot be loaded.
    """
    if isinstance(proposer, str):
        proposer = load_proposer(proposer)
    rgb = read_image(image)
    if not hasattr(proposer, "prompt"):
        if len(points):
            raise ProposalError("points need a SAM to make masks of them; take the proposer mini-sam or sam")
        return Proposals.from_boxes(boxes, rgb.shape[:2])
    encoded = proposer.encode(rgb)
    found = []
    if len(points):
        found.append(proposer.prompt(encoded, points=points))
        if near:
            found[-1] = _kept(found[-1], [_part_at(found[-1].mask(i), point) for i, point in enumerate(points)])
    if len(boxes):
        found.append(proposer.prompt(encoded, boxes=boxes))
        if near:
            inside = Proposals.from_boxes(boxes, rgb.shape[:2])
            found[-1] = _kept(found[-1], [found[-1].mask(i) & inside.mask(i) for i in range(len(boxes))])
    if not found:
        return Proposals.empty(rgb.shape[:2])
    packed, quality = (np.concatenate([getattr(part, name) for part in found]) for name in ("packed", "quality"))
    return Proposals.from_packed(packed, rgb.shape[:2], quality)


def _kept(found: Proposals, masks: list[npt.NDArray[np.bool_]]) -> Proposals:
    return Proposals.from_masks(masks, found.size, quality=found.quality)


def _part_at(mask: npt.NDArray[np.bool_], point: Prompt) -> npt.NDArray[np.bool_]:
    """The connected part of a mask that holds a point; all of it where the point is outside."""
    numbers = components(mask)
    x, y = (min(int(place), length - 1) for place, length in zip(point, mask.shape[::-1], strict=True))
    return numbers == numbers[y, x] if mask[y, x] else mask
