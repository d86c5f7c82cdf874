"""Pictures without a truth: a candidate is counted against itself under another view, plan and other words.

What a method says of a picture should not hang on which way it is turned, where its windows lie and which sentence a
label stands in. How much it does is seen without labels, and tells something of how good it is; how little, measured
where labels are known, stands in docs/tune.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from densevl.tuning.candidates import Candidate
from densevl.tuning.counting import PixelCounter

Cells = dict[Candidate, tuple[npt.NDArray[np.int64], float]]


class AgreementCounter(PixelCounter):
    """Label maps by pixels, against those of the same candidate otherwise asked."""

    measure: ClassVar[str] = "agreement"

    def counted(self, rgb: npt.NDArray[np.uint8], truth: Any, together: Sequence[Candidate]) -> Cells:
        plain = self.maps(rgb, together)
        mirrored = self.maps(np.ascontiguousarray(rgb[:, ::-1]), together)
        found: Cells = {}
        for candidate in together:
            labels, seconds = plain[candidate]
            found[candidate] = self.against(labels, mirrored[candidate][0][:, ::-1]), seconds
        return found
