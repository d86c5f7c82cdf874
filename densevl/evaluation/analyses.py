"""What a single score hides: more words, another background, worse photos.

Each analysis runs a predictor over a dataset under several conditions and gives points to draw and a table.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from densevl.errors import EvaluationError, OptionError, suggest
from densevl.evaluation.benchmarks.base import SEMANTIC, Dataset, Sample
from densevl.evaluation.benchmarks.class_lists import class_list
from densevl.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from densevl.evaluation.experiment import Experiment
from densevl.evaluation.metrics.confusion import Counts, confusion, mean, measures, per_class
from densevl.evaluation.predictors import Predictor
from densevl.evaluation.tasks.table import task_of
from densevl.vocabulary import LabelSet

Show = Callable[[str], None]
GREY = 124


@dataclass(frozen=True)
class Analysis:
    """Attributes: name; text, what it tells; across, the x axis; series, (x, y) by name, y 0..1; rows, a table."""

    name: str
    text: str
    across: str
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    rows: list[dict[str, str | int | float]] = field(default_factory=list)


def vocabulary_expansion(
    predictor: Predictor,
    dataset: Dataset,
    distractors: Sequence[str],
    steps: Iterable[int] = (0, 5, 10, 20, 40),
    *,
    seed: int = 0,
    show: Show | None = None,
) -> Analysis:
    """mIoU as labels are added that the benchmark does not have.

    A pixel that a distractor wins counts as background where the benchmark has one, else as nothing found.

    Args:
        distractors: labels to add, drawn in an order fixed by `seed`; those the benchmark has are left out.

    Raises:
        EvaluationError: no distractor is left.
    """
    own = {word.casefold() for word in predictor.labels.queries} | {name.casefold() for name in dataset.names}
    extra = [word for word in dict.fromkeys(distractors) if word.casefold() not in own]
    if not extra:
        raise EvaluationError("every distractor is a label of the benchmark already; give other words")
    order = [extra[index] for index in np.random.default_rng(seed).permutation(len(extra))]
    points = []
    first = int(dataset.classes.background)
    known = len(dataset.names)
    for step in sorted({min(step, len(order)) for step in steps}):
        _tell(show, f"{step} distractors")
        labels = replace(
            predictor.labels,
            names=(*predictor.labels.names, *order[:step]),
            synonyms=(*predictor.labels.synonyms, *((word,) for word in order[:step])),
        )
        wider = predictor.with_labels(labels)

        def look(sample: Sample, wider: Predictor = wider) -> npt.NDArray[np.int16]:
            found = wider(sample.image).labels
            return np.where(found < known, found, np.int16(first - 1))

        points.append((float(step), measures(_counted(dataset, look))["mIoU"]))
    text = f"mIoU over the benchmark's classes with labels added that it does not have (seed {seed})."
    rows: list[dict[str, str | int | float]] = [{"distractors": int(x), "mIoU": y} for x, y in points]
    return Analysis("Vocabulary expansion", text, "distractor labels", {dataset.name: points}, rows)


def background_reliance(predictor: Predictor, dataset: Dataset, *, show: Show | None = None) -> Analysis:
    """Recall of objects on a grey background, and how often an object is named although it is painted over.

    Raises:
        EvaluationError: the benchmark has no background class.
    """
    if not dataset.classes.background:
        raise EvaluationError(f"'{dataset.name}' has no background class: nothing says where objects end")

    def altered(sample: Sample, grey: npt.NDArray[np.bool_]) -> npt.NDArray[np.int16]:
        return predictor(np.where(grey[..., None], np.uint8(GREY), sample.image)).labels

    conditions: dict[str, Callable[[Sample], npt.NDArray[np.int16]]] = {
        "as it is": lambda sample: predictor(sample.image).labels,
        "background grey": lambda sample: altered(sample, sample.truth <= 0),
        "object grey": lambda sample: altered(sample, sample.truth > 0),
    }
    columns = {}
    for name, look in conditions.items():
        _tell(show, name)
        columns[name] = per_class(_counted(dataset, look))["accuracy"][1:]
    rows: list[dict[str, str | int | float]] = [
        {"class": name, **{key: float(values[index]) for key, values in columns.items()}}
        for index, name in enumerate(dataset.names[1:])
    ]
    means = {name: mean(values) for name, values in columns.items()}
    rows.insert(0, {"class": "mean", **means})
    text = (
        "Share of each class's pixels that get its label: in the photo, with everything but objects painted grey, and "
        "with the objects painted grey, where every hit comes from the surroundings alone."
    )
    return Analysis("Background reliance", text, "", {}, rows)


def corruption_robustness(
    predictor: Predictor,
    dataset: Dataset,
    corruptions: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = (1, 3, 5),
    *,
    seed: int = 0,
    show: Show | None = None,
) -> Analysis:
    """mIoU on worse photos: severity 0 is the photo itself.

    Raises:
        EvaluationError: an unknown corruption or severity.
    """
    for severity in severities:
        if severity not in SEVERITIES:
            raise EvaluationError(f"severity {severity} is none of {SEVERITIES[0]} to {SEVERITIES[-1]}")
    clean = measures(_counted(dataset, lambda sample: predictor(sample.image).labels))["mIoU"]
    series: dict[str, list[tuple[float, float]]] = {}
    rows: list[dict[str, str | int | float]] = []
    numbers = {item.key: index for index, item in enumerate(dataset.items)}
    for name in corruptions:
        series[name] = [(0.0, clean)]
        for severity in severities:
            _tell(show, f"{name} {severity}")

            def look(sample: Sample, name: str = name, severity: int = severity) -> npt.NDArray[np.int16]:
                return predictor(corrupt(sample.image, name, severity, seed + numbers[sample.item.key])).labels

            series[name].append((float(severity), measures(_counted(dataset, look))["mIoU"]))
        rows.append({"corruption": name, **{f"severity {x:g}": y for x, y in series[name]}})
    return Analysis("Corruption robustness", "mIoU by severity of the corruption.", "severity", series, rows)


def _counted(dataset: Dataset, look: Callable[[Sample], npt.NDArray[np.int16]]) -> Counts:
    classes = len(dataset.names)
    total = np.zeros((classes + 1, classes + 1), np.int64)
    for index in range(len(dataset)):
        sample = dataset[index]
        total += confusion(sample.truth, look(sample), classes)
    return total


def _tell(show: Show | None, text: str) -> None:
    if show is not None:
        show(text)


NAMES = ("vocabulary", "background", "corruption")


def analyse(
    experiment: Experiment,
    only: Sequence[str] | None = None,
    distractors: LabelSet | str = "",
    *,
    show: Show | None = None,
    tell: Show = logging.getLogger(__name__).warning,
) -> tuple[str, list[Analysis]]:
    """Run analyses of an experiment's model on its images.

    Args:
        experiment: of task "semantic".
        only: of `NAMES`; None is all that the benchmark allows.
        distractors: labels to add, as `LabelSet.parse` takes them; "" is ADE20K's.
        show: told what is run. tell: told each warning about the dataset and the words.

    Returns:
        A title, and the analyses.

    Raises:
        OptionError: an unknown analysis, or another task. DensevlError: as `Task.predictor` and the analyses.
    """
    for name in only or ():
        if name not in NAMES:
            raise OptionError(f"no analysis '{name}'{suggest(name, NAMES)}; there are {', '.join(NAMES)}")
    if experiment.task != SEMANTIC:
        raise OptionError(f"analyses go with task semantic, not with task {experiment.task}")
    dataset: Any = experiment.open()
    wanted = only or [name for name in NAMES if name != "background" or dataset.classes.background]
    words = LabelSet.parse(distractors).names if distractors else class_list("ade150").names
    task = task_of(experiment, dataset)
    seen = task.look
    predictor: Any = task.predictor()
    for warning in dict.fromkeys((*seen.warnings, *seen.of_sample, *predictor.facts()["warnings"])):
        tell(warning)
    run: dict[str, Callable[[], Analysis]] = {
        "vocabulary": lambda: vocabulary_expansion(predictor, dataset, words, show=show),
        "background": lambda: background_reliance(predictor, dataset, show=show),
        "corruption": lambda: corruption_robustness(predictor, dataset, show=show),
    }
    title = f"Analyses of {predictor.segmenter.backbone.name} on {dataset.name}"
    return title, [run[name]() for name in dict.fromkeys(wanted)]
