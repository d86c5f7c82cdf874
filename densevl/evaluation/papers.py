"""Protocols of the papers by recipe and benchmark: resize, windows, strings, background, thresholds.

A published figure belongs to all of these together. Only recipes whose protocol is known completely are here; for
others an evaluation takes the model's own protocol, and its report says that no published figure applies. The common
protocol is SCLIP's: short side 336, windows 224 with stride 112, scores times 40, raw cosines averaged at pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from densevl import recipes
from densevl.evaluation.vocabularies import class_list, listed

Settings = Mapping[str, Any]
MODEL = "ViT-B-16/openai"
"""The model of published figures, unless a recipe's source says otherwise."""

_SCLIP = {"short_side": 336, "crop": 224, "stride": 112, "logit_scale": 40.0, "strings": "sclip@1"}
_NACLIP = {**_SCLIP, "threshold": 0.1}
_PROXYCLIP = {"short_side": 336, "crop": 336, "stride": 112, "logit_scale": 40.0, "strings": "proxyclip@1"}
_CLEARCLIP = {"short_side": 448, "crop": 448, "stride": 224, "logit_scale": 50.0, "strings": "proxyclip@1"}
_CITY = {"short_side": 560}

_TABLE: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    # recipe: what holds for all benchmarks, and what a benchmark changes
    "sclip": (
        _SCLIP,
        {
            "voc21": {"logit_scale": 65.0, "threshold": 0.1, "min_share": 0.1},
            "context60": {"logit_scale": 50.0, "threshold": 0.1},
            "coco-object": {"logit_scale": 50.0, "threshold": 0.1},
            "coco-stuff": {"short_side": 448},
            "cityscapes": _CITY,
        },
    ),
    "naclip": (_NACLIP, {"voc20": {"crop": None}, "voc21": {"crop": None}, "cityscapes": _CITY}),
    "sc_clip": (
        _SCLIP,
        {
            "voc21": {"logit_scale": 50.0, "threshold": 0.15, "min_share": 0.1},
            "context60": {"threshold": 0.15},
            "coco-object": {"logit_scale": 55.0, "threshold": 0.35},
            "cityscapes": _CITY,
        },
    ),
    "clearclip": (
        _CLEARCLIP,
        {
            "voc21": {"threshold": 0.5, "background": "context@1"},
            "context60": {"threshold": 0.15},
            "coco-object": {"threshold": 0.4, "background": "context@1"},
            "cityscapes": {"crop": 224, "stride": 224},
        },
    ),
    "proxyclip": (
        _PROXYCLIP,
        {
            "voc21": {"threshold": 0.2},
            "context60": {"threshold": 0.15},
            "coco-object": {"threshold": 0.25},
            "ade150": {"short_side": 448},
            "ade847": {"short_side": 448},
            "pc459": {"short_side": 448},
            "cityscapes": {"short_side": 448, "crop": 224},
        },
    ),
}
PROTOCOL_FIELDS = ("short_side", "crop", "stride", "logit_scale")


def known() -> tuple[str, ...]:
    """Recipes whose protocol is here."""
    return tuple(_TABLE)


def protocol(recipe: str, benchmark: str) -> Settings | None:
    """Settings of a paper for a benchmark, None where it is not known.

    Returns:
        short_side, crop, stride, logit_scale, strings, background (a policy as `Background.parse` reads it) and
        min_share; ready for an `Experiment`.
    """
    if recipe not in _TABLE or benchmark not in listed():
        return None
    base, changes = _TABLE[recipe]
    settings = {**base, **changes.get(benchmark, {})}
    classes = class_list(benchmark)
    if settings["strings"] not in classes.variants:
        settings["strings"] = "sclip@1" if "sclip@1" in classes.variants else "names"
    threshold, words = settings.pop("threshold", 0.0), settings.pop("background", None)
    words = words or classes.words.get(settings["strings"], "")
    parts = [part for part in (words, f"{threshold:g}" if threshold else "") if part]
    settings["background"] = ", ".join(parts) if classes.background else "none"
    settings.setdefault("min_share", 0.0)
    return MappingProxyType(settings)


def published(recipe: str, benchmark: str) -> float | None:
    """The mIoU in per cent that the paper reports, where the protocol is known too; else None."""
    source = recipes.get(recipe).source if recipe in _TABLE else None
    return None if source is None else source.miou.get(benchmark)
