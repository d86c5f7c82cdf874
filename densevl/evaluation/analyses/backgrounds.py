"""Objects moved to the background of another photo."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from densevl.errors import EvaluationError
from densevl.evaluation.analyses.background import require_background
from densevl.evaluation.analyses.base import Analysis, Finding, Row, Show, each, percent, points
from densevl.evaluation.analyses.objects import moved
from densevl.evaluation.benchmarks.base import Dataset
from densevl.evaluation.metrics.confusion import confusion, mean, per_class
from densevl.evaluation.predictors import Predictor

LOST, INVENTED = 0.1, 0.1
"""Loss of recall, and share of the background with an object's label, before advice is given."""
CONDITIONS = ("as it is", "swapped")


def swapped_backgrounds(predictor: Predictor, dataset: Dataset, *, seed: int = 0, show: Show | None = None) -> Analysis:
    """Measure recall of objects moved to another photo's background, and what is hallucinated around them.

    The other photo is drawn at random; its own objects are filled in from their surroundings. Hallucinated pixels are
    background pixels with an object's label; "of the place" counts labels of the other photo's removed objects only,
    if they are not in the new picture.

    Raises:
        EvaluationError: the benchmark has no background class, or fewer than two images.
    """
    require_background(dataset)
    if len(dataset) < 2:
        raise EvaluationError("backgrounds are swapped between photos, and there is one; give two or more")
    classes = len(dataset.names)
    order = np.random.default_rng(seed).permutation(len(dataset))
    other = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))  # no photo gets its own
    total = np.zeros((len(CONDITIONS), classes + 1, classes + 1), np.int64)
    of_place = np.zeros(len(CONDITIONS), np.int64)
    for index, sample in enumerate(each(dataset, show, "backgrounds")):
        place = dataset[other[index]]
        gone = np.setdiff1d(place.truth[place.truth > 0], sample.truth)
        for at, picture in enumerate((sample.image, moved(sample, place))):
            found = predictor(picture).labels
            total[at] += confusion(sample.truth, found, classes)
            of_place[at] += int((np.isin(found, gone) & (sample.truth == 0)).sum())
    return _as_analysis(total, of_place, dataset)


def _as_analysis(total: npt.NDArray[np.int64], of_place: npt.NDArray[np.int64], dataset: Dataset) -> Analysis:
    recall = [per_class(own)["accuracy"][1:] for own in total]
    ground = [max(1, int(own[0].sum())) for own in total]
    invented = [float(own[0, 1:-1].sum() / area) for own, area in zip(total, ground, strict=True)]
    rows: list[Row] = [
        {
            "condition": name,
            "recall of objects": mean(recall[at]),
            "background named an object": invented[at],
            "of the place": float(of_place[at] / ground[at]),
        }
        for at, name in enumerate(CONDITIONS)
    ]
    classes: list[Row] = [
        {"class": name, **{condition: float(recall[at][c]) for at, condition in enumerate(CONDITIONS)}}
        for c, name in enumerate(dataset.names[1:])
        if total[0, c + 1].any()
    ]
    text = (
        "Objects cut out by their masks on another photo's background, whose own objects are filled from around. "
        "Recall: mean over classes of the share of pixels that get their label. Background named an object: share "
        "of the background that gets an object's label; of the place: one of the other photo's objects, now gone."
    )
    lost = float(rows[0]["recall of objects"]) - float(rows[1]["recall of objects"])
    worst = sorted(classes, key=lambda row: float(row[CONDITIONS[1]]) - float(row[CONDITIONS[0]]))
    names = ", ".join(str(row["class"]) for row in worst[:3])
    sentence = f"On other backgrounds recall of objects changes by {points(-lost)} (threshold {points(-LOST)})."
    advice = (
        f"Surroundings decide the names of objects, {names} most. Name them by masks (densevl regions, operator crop, "
        "whose surroundings are blanked)."
    )
    around = (
        f"{percent(invented[0])} of the background gets an object's label, {percent(invented[1])} when swapped, "
        f"{percent(float(rows[1]['of the place']))} that of an object gone from there (threshold {percent(INVENTED)})."
    )
    remedy = "Give the surroundings words that compete: --background with a list of what is there, or a threshold."
    findings = [
        Finding(sentence, advice if lost > LOST else ""),
        Finding(around, remedy if max(invented) > INVENTED else ""),
    ]
    return Analysis("Swapped backgrounds", text, {"": rows, "by class": classes}, findings=findings)
