"""Classes by example: how like an image is to the exemplars of each class, as calibrated probabilities.

The kernel is Tip-Adapter's (Zhang et al., ECCV 2022), exp(-sharpness (1 - cos)), averaged over a class. Confidence is
calibrated on images that are no exemplars: one temperature (Guo et al., ICML 2017), and split-conformal sets of classes
that hold the true one with a chosen probability. Shape letters: N images, M exemplars, C classes, E joint space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from densevl.errors import ModelError
from densevl.kernels import nearest

SHARPNESS = 20.0
TEMPERATURES = torch.logspace(-2, 2, 401, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Exemplars:
    """Unit rows with a class each.

    Attributes:
        rows: (M, E) float32 unit rows. classes: (M,) int64. names: of the C classes.
        sharpness: of the kernel; the larger, the more only the nearest exemplar counts.
        temperature: divides log kernels before the softmax. margin: a class is plausible if its probability is at
            least 1 - margin; None before calibration. alpha: the share of images whose class may be missed.
    """

    rows: torch.Tensor
    classes: torch.Tensor
    names: tuple[str, ...]
    sharpness: float = SHARPNESS
    temperature: float = 1.0
    margin: float | None = None
    alpha: float | None = None

    def closeness(self, features_NE: torch.Tensor, leave_out: bool = False) -> torch.Tensor:
        """Log of the mean kernel of each class, (N, C), 0 for a copy of all its exemplars.

        Args:
            leave_out: the features are the exemplars themselves, in order, and each is compared with the others only;
                a class of one exemplar is then infinitely far from it.
        """
        unit = F.normalize(features_NE.float(), dim=-1).to(self.rows)
        kernel_NM = self.sharpness * (unit @ self.rows.mT - 1)
        if leave_out:
            kernel_NM.fill_diagonal_(-torch.inf)
        is_own = self.classes[None] == torch.arange(len(self.names), device=self.classes.device)[:, None]
        counts_NC = is_own.sum(dim=1).expand(len(unit), -1).clone()
        if leave_out:
            counts_NC[torch.arange(len(unit)), self.classes] -= 1
        by_class = torch.where(is_own[None], kernel_NM[:, None], -torch.inf)
        return by_class.logsumexp(dim=2) - counts_NC.clamp(min=1).log()

    def probabilities(self, features_NE: torch.Tensor) -> torch.Tensor:
        """(N, C), rows sum to 1."""
        return (self.closeness(features_NE) / self.temperature).softmax(dim=-1)

    def distance(self, features_NE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """1 - cosine to the nearest exemplar of any class, 0..2, and its number: (N,) each."""
        cosine, index = nearest(F.normalize(features_NE.float(), dim=-1).to(self.rows), self.rows)
        return 1 - cosine, index

    def calibrated(self, features_NE: torch.Tensor | None, classes_N: torch.Tensor | None, alpha: float) -> Exemplars:
        """With a temperature and a margin fitted to images of known classes; None judges each exemplar by the others.

        Raises:
            ModelError: an impossible alpha, or too few images: each class needs two exemplars without held-out ones.
        """
        if not 0 < alpha < 1:
            raise ModelError(f"alpha is {alpha}: it is a share between 0 and 1, such as 0.1")
        if features_NE is None or classes_N is None:
            closeness, classes = self.closeness(self.rows, leave_out=True), self.classes
        else:
            closeness, classes = self.closeness(features_NE), classes_N.to(self.classes)
        own = closeness.gather(1, classes[:, None])
        if not len(own) or not torch.isfinite(own).all():
            raise ModelError("calibration needs two exemplars of every class, or held-out images")
        scaled = closeness.double().cpu()[None] / TEMPERATURES[:, None, None]
        true = classes.cpu()[None, :, None].expand(len(TEMPERATURES), -1, 1)
        likelihood = scaled.log_softmax(dim=-1).gather(2, true).mean(dim=(1, 2))
        temperature = float(TEMPERATURES[int(likelihood.argmax())])
        p_true = (closeness / temperature).softmax(dim=-1).gather(1, classes[:, None])[:, 0]
        missing = (1 - p_true).sort().values
        rank = math.ceil((len(missing) + 1) * (1 - alpha))
        margin = float(missing[rank - 1]) if rank <= len(missing) else 1.0  # too few: every class stays plausible
        return replace(self, temperature=temperature, margin=margin, alpha=alpha)
