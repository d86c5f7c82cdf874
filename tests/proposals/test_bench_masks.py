"""The benchmark of automatic masks measures both sides on the same image and finds the same masks."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("segment_anything", reason="SAM needs the extra 'sam'")

from tools.bench_masks import SCENE, best_iou, measure, sides_of


@pytest.mark.skipif(sys.platform != "linux" or not SCENE.is_file(), reason="memory is read as Linux tells it")
def test_both_sides_find_the_same_masks() -> None:
    package, ours = (measure(side, "tiny", (48, 64), 3) for side in sides_of("tiny"))
    assert len(package.packed) == len(ours.packed) > 0
    assert min(best_iou(mask, ours.packed) for mask in package.packed) > 0.999
