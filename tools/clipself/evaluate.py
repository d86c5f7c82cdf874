"""Region accuracy before and after distillation: objects of the rendered benchmark in their true masks, 20 nouns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from densevl.backbones.open_clip_model import OpenClipBackbone
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.regions.scores import default_operators
from tools.bench_regions import Benchmark

CEILING = "crop of the box"
"""The student's target for a box: the teacher's embedding of its crop."""


def settings(model: OpenClipBackbone) -> dict[str, dict[str, Any]]:
    """The compared ways: keywords of `RegionClassifier` by name."""
    own = model.default_recipe or "vanilla"
    recipes = [own] if own == "vanilla" else dict.fromkeys(["vanilla", "maskclip", own])
    ways: dict[str, dict[str, Any]] = {
        f"{operator}, {recipe}": {"operator": operator, "recipe": recipe}
        for operator in ("pool", "roi")
        for recipe in recipes
    }
    if "cls_mask" in default_operators(model):
        ways["cls_mask"] = {"operator": "cls_mask"}
    ways[CEILING] = {"operator": "crop", "options": {"crop": {"fill": "keep"}}}
    return ways


def accuracy(model: OpenClipBackbone, benchmark: Benchmark, way: dict[str, Any]) -> float:
    """Return the per cent of objects named right, in their true masks, without background."""
    classify = RegionClassifier(model, proposals=None, background="none", **way)
    right = total = 0
    for number in range(len(benchmark.images)):
        truth, classes = benchmark.truth(number)
        named = classify(benchmark.photo(number), benchmark.names, regions=truth)
        right, total = right + int((named.labels == classes).sum()), total + len(classes)
    return 100 * right / total


def compare(models: Sequence[OpenClipBackbone], benchmark: Benchmark) -> dict[str, list[float]]:
    """Evaluate every way with every model, the first of which is the teacher: per cent by the way's name."""
    return {name: [accuracy(model, benchmark, way) for model in models] for name, way in settings(models[0]).items()}
