"""Labels of places: which class each token of a tower shows, by the pixels of a label map that lie in it.

Shape letters: H/W pixels, Y/X tokens of all windows.
"""

from __future__ import annotations

import numpy as np
import torch

from densevl.errors import OptionError
from densevl.fewshot.choosing import spread
from densevl.inference.windows import WindowGrid
from densevl.regions.operators.pull import reaches, token_plan

COVERAGE = 0.7  # of a token that its class covers, at least
MOST = 256  # tokens of an image and class


def token_labels(
    label_map: np.ndarray, windows: WindowGrid, coverage: float = COVERAGE
) -> tuple[torch.Tensor, torch.Tensor]:
    """The class that covers most of each token, where it covers enough.

    Args:
        label_map: integers (H, W), negative where there is none. windows: where the tokens lie.
        coverage: the share of a token that a class must cover, above 0 up to 1.

    Returns:
        labels (Y, X) int64, -1 for no class; and the shares covered (Y, X) float32, 0..1.

    Raises:
        OptionError: a coverage out of range.
    """
    if not 0 < coverage <= 1:
        raise OptionError(f"coverage is {coverage}: it is a share of a token, above 0 up to 1")
    rows_HY, cols_WX = token_plan(windows, (label_map.shape[0], label_map.shape[1]))
    share_YX = torch.zeros(rows_HY.shape[1], cols_WX.shape[1])
    label_YX = torch.full(share_YX.shape, -1)
    for index in np.unique(label_map[label_map >= 0]).tolist():
        own_YX = rows_HY.mT @ torch.from_numpy(label_map == index).float() @ cols_WX
        label_YX[~reaches(share_YX, own_YX)] = index  # of equal shares the smaller index has it
        share_YX = torch.maximum(share_YX, own_YX)
    enough = reaches(share_YX, coverage)
    return torch.where(enough, label_YX, -1), share_YX * enough


def chosen_tokens(labels_YX: torch.Tensor, most: int = MOST) -> torch.Tensor:
    """Flat indices of the tokens with a class, int64; of more than `most` of a class, evenly spread ones.

    A large thing then counts no more than `most` tokens.
    """
    flat = labels_YX.flatten()
    kept = []
    for index in flat[flat >= 0].unique().tolist():
        own = (flat == index).nonzero().flatten()
        kept.append(own[spread(len(own), most).to(own.device)])
    return torch.cat(kept) if kept else flat.new_zeros(0)
