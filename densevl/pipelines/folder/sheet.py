"""A picture of a result as a contact sheet shows it: without its legend, and what stands below it instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from PIL import Image

from densevl.anomaly.result import COLOURS
from densevl.drawing import palette
from densevl.drawing.overlays import percent
from densevl.drawing.sheets import Key
from densevl.results.base import UNLABELLED

LEAST = 0.0005
"""A smaller share of an image is not named."""


def without_legend(picture: Image.Image, told: Mapping[str, Any]) -> Image.Image:
    """The photo of an overlay, which may be smaller than the image, and has a legend below.

    Args:
        told: what the JSON of the result says.
    """
    height, width = told["size"]["height"], told["size"]["width"]
    scale = min(1.0, picture.width / width)
    across, down = round(width * scale), max(1, round(height * scale))
    left = (picture.width - across) // 2
    return picture.crop((left, 0, left + across, min(down, picture.height)))


def key(told: Mapping[str, Any]) -> Key:
    """The names that a result has with their shares or counts, the largest first, and their colours.

    For an anomaly map, what its two ends mean: each map has a scale of its own, unless there is a threshold.
    """
    if "map" in told:
        judged = told["is_anomalous"]
        if judged is not None:
            return [("anomalous", COLOURS[-1]) if judged else ("normal", COLOURS[0])]
        return [(f"{told['map']['min']:.3g}", COLOURS[0]), (f"{told['map']['max']:.3g}", COLOURS[-1])]
    if "probabilities" in told:
        return _key(told["names"], zip(told["names"], told["probabilities"], strict=True), percent)
    if "fractions" in told:
        return _key(told["names"], told["fractions"].items(), percent) or [(UNLABELLED, None)]
    counts = Counter(region["category_name"] for region in told["regions"])
    return _key(told["names"], counts.items(), str) or [(UNLABELLED, None)]


def _key(names: list[str], amounts: Iterable[tuple[str, Any]], shown: Callable[[Any], str]) -> Key:
    colours = dict(zip(names, palette(len(names)).tolist(), strict=True))
    known = [(name, amount) for name, amount in amounts if amount > LEAST and name in colours]
    ranked = sorted(known, key=lambda pair: -pair[1])
    return [(f"{name} {shown(amount)}", tuple(colours[name])) for name, amount in ranked]
