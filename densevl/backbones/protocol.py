"""`InferenceProtocol`: how a photo is fed to a tower, as plain numbers; `inference.windows` makes windows of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from densevl.errors import ProtocolError, one_of

BLENDS = ("pixel", "patch")


@dataclass(frozen=True)
class InferenceProtocol:
    """How a photo is fed to the tower: resize, then windows.

    Raises:
        ProtocolError: a value is impossible.

    Attributes:
        short_side: the short side is resized to this many pixels, keeping the aspect ratio; None keeps the size.
        long_side: the long side never exceeds this many pixels (mmcv's keep-ratio rule).
        crop: side of the square windows in pixels; None means one window, the whole image.
        stride: step between windows in pixels; the last window is moved back inside the image. None lays tiles: as
            few windows of at most `crop` as cover the image, evenly sized, with a patch of overlap. The papers take a
            stride of half the crop, which runs the tower about twice as often (docs/speed.md).
        blend: where overlapping windows are averaged: "pixel", each upsampled first (SCLIP and most papers), or
            "patch", on one patch grid for the whole image to which window offsets are snapped (Trident).
        logit_scale: factor on scores before the softmax that makes probabilities.
        calibration: slope and offset of confidence (Platt 1999): if the softmax gives a pixel's best string p,
            confidence is sigmoid(slope * logit(p) + offset). (1, 0) keeps p; scores and labels do not change.
    """

    short_side: int | None = 336
    long_side: int = 2048
    crop: int | None = 224
    stride: int | None = None
    blend: str = "pixel"
    logit_scale: float = 40.0
    calibration: tuple[float, float] = (1.0, 0.0)

    def __post_init__(self) -> None:
        for name in ("short_side", "long_side", "crop", "stride"):
            value = getattr(self, name)
            optional = value is None and name in ("short_side", "crop", "stride")
            if not optional and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ProtocolError(f"{name} is {value!r}; it is a number of pixels, at least 1")
        if self.crop is not None and self.stride is not None and self.stride > self.crop:
            raise ProtocolError(
                f"stride {self.stride} leaves gaps between windows of crop {self.crop}; take a stride up to {self.crop}"
            )
        one_of(self.blend, BLENDS, "blend", ProtocolError)
        if not (isinstance(self.logit_scale, (int, float)) and 0 < self.logit_scale < math.inf):
            raise ProtocolError(f"logit_scale is {self.logit_scale!r}; it is a number above 0, and finite")
        slope, offset = _pair(self.calibration)
        if not (0 < slope < math.inf and math.isfinite(offset)):
            raise ProtocolError(
                f"calibration is {self.calibration!r}; it is a slope above 0 and an offset, both finite"
            )
        object.__setattr__(self, "calibration", (slope, offset))


def _pair(value: Any) -> tuple[float, float]:
    try:
        slope, offset = map(float, value)
    except (TypeError, ValueError) as error:
        raise ProtocolError(f"calibration is {value!r}; it is two numbers, a slope and an offset") from error
    return slope, offset
