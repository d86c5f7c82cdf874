"""The operators by name: a photo and its masks to one unit vector a region, in the joint space of image and text.

All have the signature (backbone, pixels (1, 3, H, W) normalised, masks, **options) -> (R, E) float32 unit rows, zeros
for empty masks. They differ in what they read and cost:

    pool        mean of dense features over the mask                            one pass
    roi         RoIAlign of the box on dense features                           one pass
    cls_mask    a copy of CLS that sees the mask only                           one pass and R tokens
    cls_bias    a copy of CLS that looks more at the box                        one pass and R tokens
    crop        the mask cut out, filled and encoded                            R passes
    visual_prompt   the photo with the region pointed out                       R passes
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from densevl.errors import LabelError, ModelError, suggest
from densevl.regions.crop import crop
from densevl.regions.dense import pool, roi
from densevl.regions.prompt import visual_prompt
from densevl.regions.queries import cls_bias, cls_mask


@dataclass(frozen=True)
class Operator:
    """A way to embed regions.

    Attributes:
        run: the function. dense: whether it reads dense features, with recipe and hints. windows: whether the tower
            looks through windows; else the photo is given at its own size.
    """

    run: Callable[..., torch.Tensor]
    dense: bool = False
    windows: bool = True


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "pool": Operator(pool, dense=True),
        "roi": Operator(roi, dense=True),
        "cls_mask": Operator(cls_mask),
        "cls_bias": Operator(cls_bias),
        "crop": Operator(crop, windows=False),
        "visual_prompt": Operator(visual_prompt, windows=False),
    }
)
UNTRAINED = MappingProxyType(
    {
        "crop_prompted": "the mask prompt tokens of OVSeg",
        "alpha": "the alpha channel's patch embedding of Alpha-CLIP",
    }
)
"""Operators of papers that are nothing without weights densevl does not have."""


def parse(spec: str | Mapping[str, float]) -> dict[str, float]:
    """Operators and their weights: "cls_mask", "pool+cls_mask", or {"pool": 0.3, "cls_mask": 0.7}.

    Raises:
        LabelError: an unknown operator, one named twice, or a weight that is not above 0. ModelError: it needs weights.
    """
    names = [name.strip() for name in spec.split("+")] if isinstance(spec, str) else list(spec)
    for name in names:
        if name in UNTRAINED:
            raise ModelError(
                f"operator '{name}' needs trained weights, {UNTRAINED[name]}, which no model here has; "
                "use 'crop', 'cls_mask' or 'pool'"
            )
        if name not in OPERATORS:
            known = ", ".join(OPERATORS)
            raise LabelError(f"no region operator '{name}'{suggest(name, OPERATORS)}; known: {known}")
    found = dict.fromkeys(names, 1 / max(1, len(names))) if isinstance(spec, str) else dict(spec)
    if not found or len(found) < len(names) or not all(weight > 0 for weight in found.values()):
        raise LabelError(f"operators {spec!r}: name at least one, each once, with a weight above 0")
    return found
