"""What naming an image gives back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Classification:
    """Which class an image is.

    Attributes:
        names: of the classes, all different. probabilities: float32 (C,), they sum to 1.
    """

    names: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]

    @property
    def name(self) -> str:
        """The likeliest class."""
        return self.names[int(self.probabilities.argmax())]

    @property
    def score(self) -> float:
        """Its probability."""
        return float(self.probabilities.max())

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The likeliest classes with their probabilities, best first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.names[index], float(self.probabilities[index])) for index in order]

    def __repr__(self) -> str:
        return f"Classification({', '.join(f'{name} {p:.2f}' for name, p in self.top(3))})"
