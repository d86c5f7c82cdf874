"""Scores mixed with their mean over segments, against a plain loop."""

from __future__ import annotations

import pytest
import torch

from conftest import close
from densevl.errors import LabelError
from densevl.refine import pool_in_segments


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_a_segment_shares_its_mean_and_the_rest_stays(share) -> None:
    scores, ids = torch.randn(2, 3, 9, 11), torch.tensor([-5, 0, 3, 10_000])[torch.randint(4, (9, 11))]
    want = scores.clone()
    for segment in (3, 10_000):
        for image in range(2):
            for channel in range(3):
                own = scores[image, channel][ids == segment]
                want[image, channel][ids == segment] = (1 - share) * own + share * own.mean()
    close(pool_in_segments(scores, ids, share=share), want)


def test_without_segments_nothing_changes() -> None:
    scores = torch.randn(1, 2, 4, 5)
    assert torch.equal(pool_in_segments(scores, torch.zeros(4, 5, dtype=torch.int64)), scores)


@pytest.mark.parametrize("segments", [torch.ones(4, 6, dtype=torch.int64), torch.ones(4, 5), torch.ones(4, 5).bool()])
def test_another_map_is_refused(segments) -> None:
    with pytest.raises(LabelError, match="integer map"):
        pool_in_segments(torch.randn(1, 2, 4, 5), segments)
