"""Protocols of the papers by recipe and benchmark: resize, windows, strings, background, thresholds.

A published figure belongs to all of these together. Only recipes with a completely known protocol are listed. For the
others, an evaluation takes the model's own protocol, and its report says that no published figure applies. The common
protocol is SCLIP's: short side 336, windows 224 with stride 112, scores times 40, raw cosines averaged at pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from densevl import recipes
from densevl.evaluation.benchmarks.class_lists import class_list, listed
from densevl.recipes import Recipe
from densevl.recipes.catalogue.published import miou

Settings = Mapping[str, Any]
MODEL = "ViT-B-16/openai"
"""The model behind the figures in a recipe's source; other rows are in `_ROWS`."""

_SCLIP: dict[str, Any] = {"short_side": 336, "crop": 224, "stride": 112, "logit_scale": 40.0, "strings": "sclip@1"}
_NACLIP: dict[str, Any] = {**_SCLIP, "threshold": 0.1}
_PROXYCLIP = {"short_side": 336, "crop": 336, "stride": 112, "logit_scale": 40.0, "strings": "proxyclip@1"}
_CLEARCLIP = {"short_side": 448, "crop": 448, "stride": 224, "logit_scale": 50.0, "strings": "proxyclip@1"}
_CITY: dict[str, Any] = {"short_side": 560}

_SC_CLIP: dict[str, dict[str, Any]] = {
    "voc21": {"logit_scale": 50.0, "threshold": 0.15, "min_share": 0.1},
    "context60": {"threshold": 0.15},
    "coco-object": {"logit_scale": 55.0, "threshold": 0.35},
    "cityscapes": _CITY,
}
_WHOLE: dict[str, dict[str, Any]] = {"voc20": {"crop": None}, "voc21": {"crop": None}, "cityscapes": _CITY}

_TABLE: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {
    # recipe: the settings for all benchmarks, and the changes for each
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
    "naclip": (_NACLIP, _WHOLE),
    "resclip": (_NACLIP, _WHOLE),
    "sc_clip": (_SCLIP, _SC_CLIP),
    "sfp": (_SCLIP, {**_SC_CLIP, "ade150": {"short_side": 384}}),
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

_ROWS: dict[tuple[str, str, str], Mapping[str, float]] = {
    # recipe, model, refinement: further rows of the paper in the recipe's source
    ("naclip", MODEL, "pamr"): miou(64.1, 35.0, 36.2, 83.0, 38.4, 25.7, 38.3, 19.1),
    ("proxyclip", "ViT-L-14/openai", ""): miou(60.6, 34.5, 39.2, 83.2, 37.7, 25.6, 40.1, 22.6),
    ("proxyclip", "ViT-H-14/laion2b_s32b_b79k", ""): miou(65.0, 35.4, 38.6, 83.3, 39.6, 26.8, 42.0, 24.2),
}


def known() -> tuple[str, ...]:
    """Recipes with a known protocol."""
    return tuple(_TABLE)


def rows() -> tuple[tuple[str, str, str], ...]:
    """Recipe, model and refinement ("" for none) of every published row with a known protocol."""
    return (*((name, MODEL, "") for name in _TABLE), *_ROWS)


def recipe(name: str, benchmark: str) -> Recipe:
    """The recipe with the paper's settings for a benchmark, or the general one if the paper has none.

    Raises:
        RecipeError: there is no recipe of that name.
    """
    plain = recipes.get(name)
    return plain.on(benchmark) if benchmark in plain.settings else plain


def protocol(recipe: str, benchmark: str) -> Settings | None:
    """Settings of a paper for a benchmark, None if they are not known.

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


def published(recipe: str, benchmark: str, model: str = MODEL, refine: str = "") -> float | None:
    """The mIoU in per cent that the paper reports, if the protocol is known too, otherwise None."""
    if recipe not in _TABLE:
        return None
    source = recipes.get(recipe).source
    usual: Mapping[str, float] = source.miou if source is not None and (model, refine) == (MODEL, "") else {}
    return _ROWS.get((recipe, model, refine), usual).get(benchmark)
