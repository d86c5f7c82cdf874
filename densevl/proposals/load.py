"""From a name to a `Proposer`, and from a caller's regions in any form to `Proposals`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densevl import devices
from densevl.errors import ModelError, ProposalError, suggest
from densevl.images import read_image
from densevl.proposals.base import CONCEPTS, Proposals, Proposer

NAMES = ("mini-sam", "sam", "superpixels", "felzenszwalb", "clusters", "grid")


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
        name: "mini-sam", densevl's own, in the package, for flat art; "sam"; "superpixels"; "felzenszwalb", areas of
            similar colour; "clusters" of an encoder's features; "grid"; "concepts:MODEL", instances of some words by a
            concept model (SAM 3, CLIPSeg; see `concepts.load_concepts`).
        checkpoint: for "sam": a file, or one of vit_b (the default), vit_l and vit_h, which are downloaded; for
            "mini-sam": a file instead of the shipped one.
        encoder: for "clusters": a backbone, a proxy or a function; see `ClusterProposer`.
        device: of SAM; None takes CUDA when there is one.
        tile: photos larger than this many pixels are also run in overlapping tiles of that side, see
            `TiledProposer`; None never.
        settings: of the proposer: `AutomaticSettings`, `SuperpixelProposer`, `FelzenszwalbProposer`, `ClusterProposer`,
            `GridProposer`, `ConceptProposer` (words, least).

    Raises:
        ModelError: the name is unknown, or the model is not available.
        WeightsError: a weights file is damaged, or of another model.
        MissingExtraError: a package is not installed.
        ProposalError: a setting is unknown or out of range.
    """
    if tile is not None:
        from densevl.proposals.tiles import TiledProposer

        inner = load_proposer(name, checkpoint=checkpoint, encoder=encoder, device=device, **settings)
        return TiledProposer(inner, tile)
    if is_concepts(name):
        from densevl.proposals.concepts import load_concept_proposer

        if checkpoint is not None or encoder is not None:
            raise ModelError(f"proposer '{name}' takes neither a checkpoint nor an encoder; leave them out")
        try:
            return load_concept_proposer(name, device, **settings)
        except TypeError as error:  # an unknown setting
            raise ProposalError(f"proposer '{name}': {str(error).partition('() ')[2] or error}") from error
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
        from densevl.proposals import simple

        return {
            "grid": simple.GridProposer,
            "superpixels": simple.SuperpixelProposer,
            "felzenszwalb": simple.FelzenszwalbProposer,
        }[name](**settings)
    except TypeError as error:  # an unknown setting
        raise ProposalError(f"proposer '{name}': {str(error).partition('__init__() ')[2] or error}") from error


def asking(proposals: Any, words: Sequence[str], device: str | None = None) -> Any:
    """Proposals as a pipeline takes them: load a concept model that is given by name, and leave others unchanged."""
    return load_proposer(proposals, device=device, words=words) if is_concepts(proposals) else proposals


def is_concepts(name: Any) -> bool:
    """Whether a proposer's name means a concept model."""
    return isinstance(name, str) and name.startswith(CONCEPTS)


def given(image: Any, *, regions: Any = None, boxes: Any = None, rle: Any = None, quality: Any = None) -> Proposals:
    """Make proposals from a caller's regions in any form; each has at least one pixel.

    Args:
        image: the image they belong to, as `read_image` takes it.
        regions: masks, as `Proposals.from_masks` takes them; an integer map (H, W), 0 for no region, as
            `Proposals.from_segments`; ready `Proposals`; or boxes or RLE.
        boxes: (M, 4) x0 y0 x1 y1 in pixels, see `Proposals.from_boxes`. rle: COCO "segmentation" entries, see
            `Proposals.from_rle`. Exactly one of these three is given.
        quality: (M,) floats 0-1; None is 1 everywhere.

    Raises:
        ProposalError: none or several of them are given, they do not fit the image, or a region has no pixel.
    """
    forms = {"regions": regions, "boxes": boxes, "rle": rle}
    named = [key for key, value in forms.items() if value is not None]
    if len(named) != 1:
        raise ProposalError(f"give one of {', '.join(forms)}, not {' and '.join(named) or 'none'}")
    rgb = read_image(image)
    size = (rgb.shape[0], rgb.shape[1])
    form = form_of(regions, size) if regions is not None else named[0]
    value = forms[named[0]]
    if form == "proposals":
        if value.size != size:
            raise ProposalError(f"the proposals are of {value.size}, the image {size}: both are (height, width)")
        found = value
    elif form == "boxes":
        found = Proposals.from_boxes(value, size, quality=quality)
    elif form == "rle":
        found = Proposals.from_rle(value, size, quality=quality)
    elif form == "segments":
        found = Proposals.from_segments(value, size, quality=quality)
    else:
        found = Proposals.from_masks(value, size, quality=quality)
    for index in np.flatnonzero(found.areas == 0)[:1]:
        raise ProposalError(
            f"region {index} of {len(found)} holds no pixel of the image; leave it out: masks[masks.any((1, 2))], or "
            "proposals.select(proposals.areas > 0)"
        )
    return found


def form_of(regions: Any, size: tuple[int, int]) -> str:
    """The form of regions by their type and shape: "proposals", "rle", "boxes", "segments" (an integer map) or "masks".

    Args:
        regions: in any form. size: (H, W) of the image: (H, W) is a map or a mask, (M, 4) otherwise boxes.
    """
    if isinstance(regions, Proposals):
        return "proposals"
    if isinstance(regions, Mapping) or (isinstance(regions, Sequence) and regions and isinstance(regions[0], Mapping)):
        return "rle"
    if isinstance(regions, Sequence) and not isinstance(regions, (str, bytes)):
        first = np.ndim(regions[0]) if len(regions) and isinstance(regions[0], Sequence) else 2
        return "boxes" if first == 1 and len(regions[0]) == 4 and size[1] != 4 else "masks"
    if hasattr(regions, "mode") and hasattr(regions, "convert"):
        return "masks" if regions.mode == "1" else "segments"
    shape = tuple(getattr(regions, "shape", ()))
    if isinstance(regions, (str, bytes, os.PathLike)):
        return "segments"
    if len(shape) == 2 and shape[1] == 4 and shape != size:
        return "boxes"
    return "segments" if len(shape) == 2 and "bool" not in str(regions.dtype) else "masks"
