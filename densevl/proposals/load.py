"""From a name to a `Proposer`, and from what a caller has (masks, boxes, RLE, points) to `Proposals`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from densevl import devices
from densevl.errors import ModelError, ProposalError, suggest
from densevl.images import read_image
from densevl.proposals.base import Proposals, Proposer

NAMES = ("mini-sam", "sam", "superpixels", "clusters", "grid")


def load_proposer(
    name: str = "mini-sam",
    *,
    checkpoint: str | Path | None = None,
    encoder: Any = None,
    device: str | None = None,
    tile: int | None = None,
    **settings: Any,
) -> Proposer:
    """Load a mask proposer by name.

    Args:
        name: "mini-sam", ours, in the package, for flat art; "sam"; "superpixels"; "clusters" of an encoder's
            features; "grid".
        checkpoint: of "sam": a file, or one of vit_b (taken if None), vit_l and vit_h, which are downloaded; of
            "mini-sam": a file in place of the shipped one.
        encoder: of "clusters": a backbone, a proxy or a function; see `ClusterProposer`.
        device: where SAM runs; None takes CUDA when there is one.
        tile: photos larger than this many pixels are looked at in overlapping tiles of that side too, see
            `TiledProposer`; None never.
        settings: of the proposer: `AutomaticSettings`, `SuperpixelProposer`, `ClusterProposer`, `GridProposer`.

    Raises:
        ModelError: unknown name, or a model that cannot be had. WeightsError: a damaged or foreign weights file.
        MissingExtraError: a package is not installed. ProposalError: a setting unknown or out of range.
    """
    if tile is not None:
        from densevl.proposals.tiles import TiledProposer

        inner = load_proposer(name, checkpoint=checkpoint, encoder=encoder, device=device, **settings)
        return TiledProposer(inner, tile)
    if name not in NAMES:
        raise ModelError(f"no proposer '{name}'{suggest(name, NAMES)}; known: {', '.join(NAMES)}")
    if checkpoint is not None and name not in ("sam", "mini-sam"):
        raise ModelError(f"proposer '{name}' has no checkpoint; leave it out, or name 'sam'")
    if encoder is not None and name != "clusters":
        raise ModelError(f"proposer '{name}' takes no encoder; leave it out, or name 'clusters'")
    if name in ("sam", "mini-sam"):
        from densevl.proposals.sam.automatic import SamProposer

        where = devices.choose(device)
        if name == "mini-sam":
            from densevl.proposals.sam.mini_sam import AUTOMATIC, load_mini_sam

            own = {"points_per_side": 16, **AUTOMATIC}
            sam = load_mini_sam(None if checkpoint is None else Path(checkpoint), device=where)
            return SamProposer(sam, name=name, **{**own, **settings})
        from densevl.proposals.sam.checkpoint import load_sam

        return SamProposer(load_sam(checkpoint or "vit_b", device=where), name=name, **settings)
    try:
        if name == "clusters":
            from densevl.proposals.clusters import ClusterProposer

            return ClusterProposer(encoder, **settings)
        from densevl.proposals.simple import GridProposer, SuperpixelProposer

        return GridProposer(**settings) if name == "grid" else SuperpixelProposer(**settings)
    except TypeError as error:  # an unknown setting
        raise ProposalError(f"proposer '{name}': {str(error).partition('__init__() ')[2] or error}") from error


def given(
    image: Any,
    *,
    masks: Any = None,
    boxes: Any = None,
    rle: Any = None,
    points: Any = None,
    proposals: Proposals | Proposer | str | None = None,
    quality: Any = None,
) -> Proposals:
    """Make proposals of what the caller has, in whatever form.

    Args:
        image: what they belong to, as `read_image` takes it.
        masks: (M, H, W). boxes: (M, 4) x0 y0 x1 y1 in pixels. rle: COCO "segmentation" entries.
        points: (M, 2) x and y in pixels; masks are made of them by `proposals`, a `SamProposer` or its name.
        proposals: ready ones, a `Proposer`, or the name of one. Besides `points`, one of all these is given.
        quality: (M,) floats 0-1 of masks, boxes or RLE.

    Raises:
        ProposalError: none or several of them, or anything that does not fit the image.
    """
    forms = {"masks": masks, "boxes": boxes, "rle": rle, "points": points, "proposals": proposals}
    named = [key for key, value in forms.items() if value is not None]
    if len(named) != 1 and named != ["points", "proposals"]:
        raise ProposalError(f"give one of {', '.join(forms)}, not {' and '.join(named) or 'none'}")
    if isinstance(proposals, str) or (points is not None and proposals is None):
        proposals = load_proposer(proposals or "mini-sam")
    if points is not None:
        prompt = getattr(proposals, "prompt", None)
        if prompt is None:
            raise ProposalError("points need a SAM to make masks of them: proposals='mini-sam' or 'sam'")
        return prompt(image, points=points)
    if isinstance(proposals, Proposer):
        return proposals(image)
    size = read_image(image).shape[:2]
    if isinstance(proposals, Proposals):
        if proposals.size != size:
            raise ProposalError(
                f"the proposals are of {proposals.size[0]}x{proposals.size[1]} pixels, the image of {size[0]}x{size[1]}"
            )
        return proposals
    if masks is not None:
        return Proposals.from_masks(masks, size, quality=quality)
    if boxes is not None:
        return Proposals.from_boxes(boxes, size, quality=quality)
    return Proposals.from_rle(rle, size, quality=quality)
