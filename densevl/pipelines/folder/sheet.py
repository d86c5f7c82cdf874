"""Pictures of results for a contact sheet: without the legend, and with the text that replaces it below."""

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
"""Smaller shares of an image are not named."""


def without_legend(picture: Image.Image, told: Mapping[str, Any]) -> Image.Image:
    """Return the photo of an overlay, which may be smaller than the image, without the legend below it.

    Args:
        told: the JSON of the result.
    """
    height, width = told["size"]["height"], told["size"]["width"]
    scale = min(1.0, picture.width / width)
    across, down = round(width * scale), max(1, round(height * scale))
    left = (picture.width - across) // 2
    return picture.crop((left, 0, left + across, min(down, picture.height)))


def key(told: Mapping[str, Any]) -> Key:
    """Return the names of a result with their shares or counts, largest first, and their colours.

    For an anomaly map, the meaning of its two ends: each map has its own scale, unless there is a threshold.
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
