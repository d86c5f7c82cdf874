"""Quality and cost: models on a labelled folder, their cost per photo, and which fast one to choose."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from densevl.backbones.at_hand import available
from densevl.benchmarking.clock import peak_mib, seconds
from densevl.benchmarking.held import held_mib
from densevl.errors import DatasetError, ModelError, PrecisionError
from densevl.evaluation.benchmarks.base import SEMANTIC
from densevl.evaluation.experiment import Experiment
from densevl.evaluation.runner import count
from densevl.evaluation.tasks.table import task_of

TIMED = 3  # photos that are timed, each in every round
GOOD = 0.95
"""The share of the best mIoU that a fast model must reach to be recommended."""


def at_hand() -> list[str]:
    """The backbones available on this machine without network, best first."""
    return [info.name for info in available() if info.ready and info.backbone]


def measure(
    root: str,
    models: Sequence[str],
    precisions: Sequence[str] = ("float32",),
    *,
    rounds: int = 3,
    tell: Callable[[str], None] = lambda said: None,
    **given: Any,
) -> Iterator[dict[str, Any]]:
    """Evaluate models one after the other on a folder of images and label maps.

    Args:
        root: a folder with images/, labels/ and a list of classes, see `benchmarks.own`. models: names, each once.
        precisions: tried with each model. rounds: in which photos are timed. tell: called for each model that
            runs in float32 only, and is not measured in others. given: further fields of `Experiment`.

    Yields:
        A row per model and precision: model, precision, recipe, images; mIoU, 0-1, NaN where nothing is scored;
        milliseconds: the median processor time (wall time on a GPU) of a photo, from pixels to labels;
        model_mib: tensors and arrays that the model holds. extra_mib: peak memory of the first photo beyond what the
        model holds, None where that cannot be measured.

    Raises:
        DatasetError, EvaluationError: the folder is unusable.
        ModelError: a model is not available, or there is no such precision.
    """
    experiment = Experiment("folder", root, task=SEMANTIC, measures=("iou",), **given)
    dataset = experiment.open()
    if not len(dataset):
        raise DatasetError(f"{root} holds no images with label maps: there is nothing to measure on")
    for model in dict.fromkeys(models):
        for precision in precisions:
            task = task_of(replace(experiment, model=model, precision=precision), dataset)
            try:
                predictor = task.predictor()
            except PrecisionError as error:
                tell(f"not measured in {precision}: {error}")
                continue
            device = predictor.segmenter.backbone.device
            photos = [dataset[index].image for index in range(min(TIMED, len(dataset)))]
            held = held_mib(predictor.segmenter)
            extra = peak_mib(lambda: predictor(photos[0]), device)  # noqa: B023  called at once
            outcome = count(task, predictor)
            taken = [seconds(lambda: predictor(photo), device) for _ in range(rounds) for photo in photos]  # noqa: B023
            yield {
                "model": model,
                "precision": outcome.used.get("precision", precision),
                "recipe": outcome.used.get("recipe"),
                "images": len(dataset),
                "mIoU": outcome.summary["mIoU"],
                "milliseconds": 1000 * statistics.median(taken),
                "model_mib": held,
                "extra_mib": extra,
            }


def recommended(rows: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], str]:
    """The fastest row whose mIoU is at least `GOOD` of the best, and why it was chosen.

    Raises:
        ModelError: no row has an mIoU above 0.
    """
    scored = [row for row in rows if row["mIoU"] > 0]  # drops NaN too
    if not scored:
        raise ModelError("no model found anything of these classes, so none can be recommended")
    best = max(scored, key=lambda row: row["mIoU"])
    taken = min((row for row in scored if row["mIoU"] >= GOOD * best["mIoU"]), key=lambda row: row["milliseconds"])
    score = f"mIoU {100 * taken['mIoU']:.1f} in {taken['milliseconds']:.0f} ms a photo"
    if taken is best:
        return taken, f"{score}: the best here, and none within {1 - GOOD:.0%} of it is faster"
    times = best["milliseconds"] / taken["milliseconds"]
    of_best = f"{named(best)}'s {100 * best['mIoU']:.1f}"
    return taken, f"{score}: within {1 - GOOD:.0%} of {of_best}, {times:.1f} times as fast"


def named(row: Mapping[str, Any]) -> str:
    """A row in words."""
    return f"{row['model']} in {row['precision']}"
