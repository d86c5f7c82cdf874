"""The operators by name: from a photo and its masks to a unit vector per region, in CLIP's joint space.

All have the signature (backbone, pixels (1, 3, H, W) normalised, masks, **options) -> (R, E) float32 unit rows, zeros
for empty masks. They differ in what they read and in cost:

    pool        mean of dense features over the mask                            one pass
    roi         RoIAlign of the box on dense features                           one pass
    cls_mask    a copy of CLS that sees only the mask                           one pass and R tokens
    cls_bias    a copy of CLS that attends more to the box                      one pass and R tokens
    balanced    the image's tokens, which see only the mask in the last blocks  one pass and R sixths of one
    crop        the mask cut out, filled and encoded                            R passes
    visual_prompt   the photo with the region marked                            R passes
    alpha       the photo with the mask as fourth channel (Alpha-CLIP)          R passes, weights of its own
    adapter     means over places by learned weights (Mask-Adapter)    one pass and R maps, weights of its own
    crop_prompted   the mask cut out, learned tokens around it (OVSeg)          R passes, weights of its own
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import Any

import torch

from densevl.errors import ModelError, OptionError, suggest
from densevl.regions.operators.adapter import adapter
from densevl.regions.operators.alpha import alpha
from densevl.regions.operators.balanced import balanced
from densevl.regions.operators.crop import crop, crop_prompted
from densevl.regions.operators.dense import pool, roi
from densevl.regions.operators.prompt import visual_prompt
from densevl.regions.operators.queries import cls_bias, cls_mask

GIVEN = ("windows", "recipe", "hints", "proxy_scope")
"""Keywords that the classifier sets itself."""


@dataclass(frozen=True)
class Operator:
    """A way to embed regions.

    Attributes:
        run: the function. dense: whether it reads dense features, with recipe and hints. windows: whether the tower
            uses windows; otherwise it gets the photo at its own size.
        weights: the file it needs as its option "weights", in words; empty if it needs none.
    """

    run: Callable[..., torch.Tensor]
    dense: bool = False
    windows: bool = True
    weights: str = ""

    def check(self, name: str, options: Mapping[str, Any]) -> None:
        """Refuse keywords that the function does not have, and values of the wrong type.

        Raises:
            OptionError: there are some.
        """
        known = {
            key: each.default
            for key, each in inspect.signature(self.run).parameters.items()
            if each.kind is each.KEYWORD_ONLY and key not in GIVEN
        }
        for key, value in options.items():
            if key not in known:
                listed = ", ".join(known) or "none"
                raise OptionError(f"operator '{name}' has no option '{key}'{suggest(key, known)}; it has {listed}")
            numbers = value if isinstance(value, (tuple, list)) else [value]
            if isinstance(known[key], (int, float)) and not all(
                isinstance(number, Real) and not isinstance(number, bool) for number in numbers
            ):
                raise OptionError(f"option '{key}' of operator '{name}' is {value!r}; it must be a number")


OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "pool": Operator(pool, dense=True),
        "roi": Operator(roi, dense=True),
        "cls_mask": Operator(cls_mask),
        "cls_bias": Operator(cls_bias),
        "balanced": Operator(balanced),
        "crop": Operator(crop, windows=False),
        "visual_prompt": Operator(visual_prompt, windows=False),
        "alpha": Operator(alpha, windows=False, weights="the image tower of Alpha-CLIP"),
        "adapter": Operator(adapter, windows=False, weights="the network of Mask-Adapter"),
        "crop_prompted": Operator(crop_prompted, windows=False, weights="the image tower and mask prompts of OVSeg"),
    }
)


def weights_of(spec: str | Mapping[str, float] | None, weights: Any) -> dict[str, dict[str, Any]]:
    """One weights file as the option of the operators that need weights of their own.

    Raises:
        OptionError: none of them does.
    """
    if weights is None:
        return {}
    names = [name.strip() for name in spec.split("+")] if isinstance(spec, str) else list(spec or ())
    found = {name: {"weights": weights} for name in names if name in OPERATORS and OPERATORS[name].weights}
    if not found:
        able = ", ".join(name for name, what in OPERATORS.items() if what.weights)
        raise OptionError(f"only {able} take weights of their own; the operator is {spec or 'left out'}")
    return found


def parse(spec: str | Mapping[str, float], options: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, float]:
    """Operators and their weights: "cls_mask", "pool+cls_mask", or {"pool": 0.3, "cls_mask": 0.7}.

    Args:
        options: keywords by operator, including the files of operators that need trained weights.

    Raises:
        OptionError: an operator is unknown or repeated, or a weight is not above 0.
        ModelError: an operator needs a file, and none is given.
    """
    names = [name.strip() for name in spec.split("+")] if isinstance(spec, str) else list(spec)
    for name in names:
        if name not in OPERATORS:
            known = ", ".join(OPERATORS)
            raise OptionError(f"no region operator '{name}'{suggest(name, OPERATORS)}; known: {known}")
        needed = OPERATORS[name].weights
        if needed and not (options or {}).get(name, {}).get("weights"):
            raise ModelError(
                f"operator '{name}' needs {needed}, which no model here has: give its file, "
                f"options={{\"{name}\": {{\"weights\": FILE}}}}, or use 'crop', 'cls_mask' or 'pool'"
            )
    found = dict.fromkeys(names, 1 / max(1, len(names))) if isinstance(spec, str) else dict(spec)
    if not found or len(found) < len(names) or not all(weight > 0 for weight in found.values()):
        raise OptionError(f"operators {spec!r}: name at least one, each once, with a weight above 0")
    return found
