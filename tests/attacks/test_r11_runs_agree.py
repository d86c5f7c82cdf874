"""R11: a run gives what it gave, whatever the threads and the batch; several processes: `evaluation/test_runner.py`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from densevl import Segmenter
from densevl.results import SegmentationResult

SETTINGS = {"short_side": 40, "crop": 32, "stride": 16}
LABELS = ["cat", "dog | puppy", "sky"]


def runs(clip, threads: int, batch: int) -> list[SegmentationResult]:
    """Three runs over three pictures of two sizes."""
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, (*size, 3), np.uint8) for size in ((40, 48), (40, 48), (48, 40))]
    torch.set_num_threads(threads)
    try:
        segment = Segmenter(clip, templates="photo", protocol=SETTINGS)
        return [result for _ in range(3) for result in segment.many(pictures, LABELS, batch=batch)]
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(("threads", "batch"), [(1, 1), (1, 8), (2, 1), (2, 8)])
def test_three_runs_agree_with_the_first(tiny, threads: int, batch: int) -> None:
    first, found = runs(tiny, 1, 1)[:3], runs(tiny, threads, batch)
    for index, got in enumerate(found):
        want, again = first[index % 3], found[index % 3]
        assert np.array_equal(got.labels, again.labels), "a run differs from the same run before it"
        assert np.array_equal(got.confidence, again.confidence)
        assert np.array_equal(got.labels, want.labels)
        assert np.abs(got.scores - want.scores).max() <= 1e-5
