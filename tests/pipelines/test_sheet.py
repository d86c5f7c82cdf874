"""What a contact sheet shows of a result: the photo without its legend, and names with the shares of its file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from densevl.drawing import draw_overlay, palette
from densevl.pipelines.folder.sheet import key, without_legend

NAMES = ["cat", "dog", "cow"]
CAT, DOG, COW = (tuple(colour) for colour in palette(3).tolist())


@pytest.mark.parametrize(("size", "scale"), [((60, 90), 1.0), ((300, 240), 1.0), ((300, 60), 1.0), ((900, 1200), 0.5)])
def test_a_legend_is_cut_off(size, scale) -> None:
    rng = np.random.default_rng(0)
    small = tuple(round(side * scale) for side in size)
    photo = rng.integers(0, 256, (*small, 3), np.uint8)
    labels = np.full(small, -1, np.int16)
    labels[:2, :2] = 1
    drawn = draw_overlay(photo, labels, NAMES)
    assert drawn.shape[0] > small[0]
    shown = without_legend(Image.fromarray(drawn), {"size": {"height": size[0], "width": size[1]}})
    np.testing.assert_array_equal(np.asarray(shown)[4:], photo[4:])


FRACTIONS = {"cat": 0.004, "dog": 0.5, "cow": 0.0, "nothing": 0.496}
REGIONS = [{"category_name": name} for name in ("cow", "cat", "cow")]
MAP = {"min": 0.25, "max": 0.75}
TOLD: dict[str, tuple[dict[str, Any], list[tuple[str, Any]]]] = {
    "shares": ({"names": NAMES, "fractions": FRACTIONS}, [("dog 50%", DOG), ("cat 0.4%", CAT)]),
    "nothing": ({"names": NAMES, "fractions": {"cat": 0.0, "nothing": 1.0}}, [("nothing", None)]),
    "regions": ({"names": NAMES, "regions": REGIONS}, [("cow 2", COW), ("cat 1", CAT)]),
    "whole": ({"names": NAMES, "probabilities": [0.1, 0.2, 0.7], "regions": []}, [("cow 70%", COW), ("dog 20%", DOG)]),
}


@pytest.mark.parametrize(("told", "shown"), TOLD.values(), ids=TOLD)
def test_a_key_says_what_the_json_says(told, shown) -> None:
    assert list(key(told))[: len(shown)] == shown


def test_each_anomaly_map_says_its_own_scale_or_what_it_was_judged() -> None:
    assert [name for name, _ in key({"map": MAP, "is_anomalous": None})] == ["0.25", "0.75"]
    assert [name for name, _ in key({"map": MAP, "is_anomalous": True})] == ["anomalous"]
    assert [name for name, _ in key({"map": MAP, "is_anomalous": False})] == ["normal"]
