"""Confidence calibrated on images of known classes: one temperature, and sets of classes that hold the true one.

The temperature is of Guo et al., ICML 2017; the sets are split-conformal. Shape letters: N images, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from densevl.errors import ModelError, OptionError

TEMPERATURES = torch.logspace(-2, 2, 401, dtype=torch.float64)


@dataclass(frozen=True)
class Calibration:
    """What was learned of a head's logits.

    Attributes:
        temperature: divides them before the softmax. margin: a class is plausible if its probability is at least
            1 - margin; None if that was not asked for. alpha: the share of images whose class may be missed.
    """

    temperature: float = 1.0
    margin: float | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise OptionError(f"temperature is {self.temperature}: it is above 0, and finite")

    @classmethod
    def of(cls, logits_NC: torch.Tensor, classes_N: torch.Tensor, alpha: float) -> Calibration:
        """Fit to images that the head has not learned from.

        With n images no alpha below 1 / (n + 1) can be had: then all classes are plausible.

        Raises:
            OptionError: an impossible alpha.
            ModelError: no images.
        """
        if not isinstance(alpha, (int, float)) or not 0 < alpha < 1:
            raise OptionError(f"alpha is {alpha}: it is a share between 0 and 1, such as 0.1")
        if not len(logits_NC):
            raise ModelError("no images to calibrate on: give at least one")
        if not torch.isfinite(logits_NC).all():
            raise ModelError("logits are NaN or infinite: there is nothing to calibrate")
        classes = classes_N.cpu()
        scaled = logits_NC.double().cpu()[None] / TEMPERATURES[:, None, None]
        true = classes[None, :, None].expand(len(TEMPERATURES), -1, 1)
        likelihood = scaled.log_softmax(dim=-1).gather(2, true).mean(dim=(1, 2))
        found = cls(float(TEMPERATURES[int(likelihood.argmax())]))
        missing = (1 - found.probabilities(logits_NC.cpu()).gather(1, classes[:, None])[:, 0]).sort().values
        rank = math.ceil((len(missing) + 1) * (1 - alpha))
        margin = float(missing[rank - 1]) if rank <= len(missing) else 1.0  # too few: every class stays plausible
        return cls(found.temperature, margin, float(alpha))

    def probabilities(self, logits_NC: torch.Tensor) -> torch.Tensor:
        """(N, C), rows sum to 1."""
        return (logits_NC / self.temperature).softmax(dim=-1)
