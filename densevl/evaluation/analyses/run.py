"""The list of analyses, which of them a dataset allows, and running them on one model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from densevl.errors import EvaluationError, ModelError, OptionError, RecipeError, suggest
from densevl.evaluation.analyses.agreement import view_agreement
from densevl.evaluation.analyses.association import Attributes, association, recoloured_pairs
from densevl.evaluation.analyses.background import background_reliance
from densevl.evaluation.analyses.backgrounds import swapped_backgrounds
from densevl.evaluation.analyses.base import Analysis, Left, Show, is_labelled
from densevl.evaluation.analyses.corruption import corruption_robustness
from densevl.evaluation.analyses.looks import ModelLooks
from densevl.evaluation.analyses.photos import GIVEN, open_photos, readable
from densevl.evaluation.analyses.size import size_bias
from densevl.evaluation.analyses.unknown import unknown_classes
from densevl.evaluation.analyses.vocabulary import vocabulary_expansion
from densevl.evaluation.analyses.written import unused_masks, written_words
from densevl.evaluation.benchmarks.base import SEMANTIC
from densevl.evaluation.benchmarks.class_lists import class_list
from densevl.evaluation.experiment import Experiment
from densevl.evaluation.predictors import ConceptPredictor
from densevl.evaluation.tasks.table import task_of
from densevl.files import shown
from densevl.vocabulary import LabelSet

_WARN = logging.getLogger(__name__).warning


@dataclass(frozen=True)
class Analyses:
    """The results of all analyses.

    Attributes:
        title; about, images, words and method; done, the analyses that ran; left, those that did not, with reasons.
        asked: the settings, see `asking`. used: the model, its hash, recipe, protocol and words as resolved.
    """

    title: str
    about: str
    done: tuple[Analysis, ...]
    left: tuple[Left, ...]
    asked: Mapping[str, Any] = field(default_factory=dict)
    used: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Setting:
    """The inputs of analyses."""

    predictor: Any
    dataset: Any
    asked: Experiment
    distractors: Sequence[str]
    text_masks: str | Path | None
    attributes: Attributes | None
    show: Show | None

    @cached_property
    def looks(self) -> ModelLooks:
        return ModelLooks(self.predictor, self.asked)

    @property
    def common(self) -> dict[str, Any]:
        return {"seed": self.asked.seed, "show": self.show}


@dataclass(frozen=True)
class _Kind:
    """An analysis. Attributes: run; truth, background, logits: whether it needs labels, a background class, scores."""

    run: Callable[[_Setting], Analysis]
    truth: bool = False
    background: bool = False
    logits: bool = False


def _association(on: _Setting) -> Analysis:
    if on.attributes is None:
        return association(on.looks, recoloured_pairs(on.dataset, **on.common))
    own = on.attributes
    return association(on.looks, own.examples(on.show), own.values, own.sentence)


KINDS = {
    "vocabulary": _Kind(lambda on: vocabulary_expansion(on.predictor, on.dataset, on.distractors, **on.common)),
    "background": _Kind(
        lambda on: background_reliance(on.predictor, on.dataset, show=on.show), truth=True, background=True
    ),
    "corruption": _Kind(lambda on: corruption_robustness(on.predictor, on.dataset, **on.common)),
    "size": _Kind(lambda on: size_bias(on.looks, on.dataset, on.predictor.labels, **on.common), truth=True),
    "written": _Kind(
        lambda on: written_words(on.looks, on.predictor, on.dataset, on.predictor.labels, on.text_masks, **on.common)
    ),
    "association": _Kind(_association, truth=True),
    "unknown": _Kind(lambda on: unknown_classes(on.predictor, on.dataset, **on.common), truth=True, logits=True),
    "backgrounds": _Kind(
        lambda on: swapped_backgrounds(on.predictor, on.dataset, **on.common), truth=True, background=True
    ),
    "agreement": _Kind(lambda on: view_agreement(on.predictor, on.dataset, show=on.show)),
}
NAMES = tuple(KINDS)


def analyse(
    experiment: Experiment,
    only: Sequence[str] | None = None,
    distractors: LabelSet | str = "",
    *,
    text_masks: str | Path | None = None,
    attributes: str | Path | None = None,
    show: Show | None = None,
    tell: Show = _WARN,
) -> Analyses:
    """Run analyses of an experiment's model on its images.

    Args:
        experiment: of task "semantic".
        only: of `NAMES`; None is all that the benchmark and the model allow.
        distractors: labels to add, as `LabelSet.parse` takes them; "" is ADE20K's.
        text_masks: see `written_words`. attributes: a JSON file, see `Attributes.load`; None recolours the benchmark's
            objects.
        show: called with what is running. tell: called with each warning about the dataset and the words.

    Raises:
        OptionError: an analysis is unknown, the task is another, or an input belongs to no analysis.
        DensevlError: as `Task.predictor`, and as the analyses named by `only`; without `only`, an analysis that cannot
            run is left out with its reason.
    """
    _require(only, experiment)
    given = None if attributes is None else Attributes.load(attributes)
    dataset: Any = experiment.open()
    found = _analyse(experiment, dataset, only, distractors, text_masks, given, show, tell)
    asked = asking(experiment.dataset, "", experiment, only, distractors, text_masks, attributes)
    return replace(found, asked=asked)


def analyse_photos(
    photos: str | Path,
    labels: LabelSet | str | Sequence[Any],
    experiment: Experiment,
    only: Sequence[str] | None = None,
    distractors: LabelSet | str = "",
    *,
    text_masks: str | Path | None = None,
    attributes: str | Path | None = None,
    show: Show | None = None,
    tell: Show = _WARN,
) -> Analyses:
    """Run the analyses that need no truth, on your own photos and labels.

    Args:
        photos: a folder, or anything `find_images` takes. labels: as `LabelSet.parse` takes them.
        experiment: the model and its settings; its dataset is not opened. Others as `analyse`.

    Raises:
        As `analyse`.
        ImageError: there are no photos, or none can be read.
        LabelError: labels are unusable.
    """
    _require(only, experiment)
    given = None if attributes is None else Attributes.load(attributes)
    dataset = replace(open_photos(photos, LabelSet.parse(labels)).subset(experiment.limit), bits=experiment.bits)
    dataset = readable(dataset, tell)
    asked = asking(photos, labels, experiment, only, distractors, text_masks, attributes)
    experiment = replace(experiment, strings=GIVEN)
    return replace(_analyse(experiment, dataset, only, distractors, text_masks, given, show, tell), asked=asked)


def asking(
    what: str | Path,
    labels: LabelSet | str | Sequence[Any],
    experiment: Experiment,
    only: Sequence[str] | None,
    distractors: LabelSet | str,
    text_masks: str | Path | None,
    attributes: str | Path | None,
) -> dict[str, Any]:
    """The settings that decide the results of analyses, ready for JSON."""
    places = {
        "root": experiment.root,
        "weights": experiment.weights,
        "text_masks": text_masks,
        "attributes": attributes,
    }
    return {
        "of": str(what),
        "analyses": list(only or NAMES),
        "labels": list(labels.queries) if isinstance(labels, LabelSet) else labels,
        "distractors": list(distractors.queries) if isinstance(distractors, LabelSet) else distractors,
        **{name: None if place is None else str(Path(place).absolute()) for name, place in places.items()},
        "experiment": experiment.facts(),
    }


def _require(only: Sequence[str] | None, experiment: Experiment) -> None:
    for name in only or ():
        if name not in NAMES:
            raise OptionError(f"no analysis '{name}'{suggest(name, NAMES)}; there are {', '.join(NAMES)}")
    if experiment.task != SEMANTIC:
        raise OptionError(f"analyses go with task semantic, not with task {experiment.task}")


def _analyse(
    experiment: Experiment,
    dataset: Any,
    only: Sequence[str] | None,
    distractors: LabelSet | str,
    text_masks: str | Path | None,
    attributes: Attributes | None,
    show: Show | None,
    tell: Show,
) -> Analyses:
    words = LabelSet.parse(distractors).names if distractors else class_list("ade150").names
    task = task_of(experiment, dataset)
    seen = task.look if is_labelled(dataset) else None
    asked = list(dict.fromkeys(only or NAMES))
    for flag, value, name in (
        ("--distractors", distractors or None, "vocabulary"),
        ("--text-masks", text_masks, "written"),
        ("--attributes", attributes, "association"),
    ):
        if value is not None and name not in asked:
            raise OptionError(f"{flag} is for analysis '{name}', which is not asked for; leave it out")
    if text_masks is not None and (unused := unused_masks(text_masks, dataset)):
        tell(
            f"{len(unused)} text masks in {shown(text_masks)} belong to no photo that is analysed, such as "
            f"{shown(unused[0])}; they are left out"
        )
    for _ in attributes.examples() if attributes is not None else ():
        pass  # checks each box before the model loads
    left = [Left(name, reason) for name in asked if (reason := _why_not(name, dataset, attributes))]
    if only and left:
        raise OptionError(f"analysis '{left[0].name}' cannot be run: {left[0].reason}; leave it out of --only")
    predictor: Any = task.predictor()
    oddities = (*seen.warnings, *seen.of_sample) if seen is not None else ()
    for warning in dict.fromkeys((*oddities, *predictor.facts()["warnings"])):
        tell(warning)
    on = _Setting(predictor, dataset, experiment.resolved(), words, text_masks, attributes, show)
    done = []
    for name in asked:
        if name in {own.name for own in left}:
            continue
        try:
            if KINDS[name].logits and isinstance(predictor, ConceptPredictor):
                raise OptionError("a model that judges each text for itself has no scores that compete")
            done.append(KINDS[name].run(on))
        except (OptionError, EvaluationError, RecipeError, ModelError) as error:
            if only:
                raise
            left.append(Left(name, str(error)))
    if not done:
        raise EvaluationError(f"nothing can be analysed: {'; '.join(f'{own.name}: {own.reason}' for own in left)}")
    title = f"Analyses of {predictor.segmenter.backbone.name} on {dataset.name}"
    facts = predictor.facts()
    about = f"{len(dataset)} images, {len(predictor.labels)} labels, recipe {facts.get('recipe') or 'none'}"
    about = f"{about}, background {facts['background']}."
    return Analyses(title, about, tuple(done), tuple(left), used={"images": len(dataset), **facts})


def _why_not(name: str, dataset: Any, attributes: Attributes | None) -> str:
    """Why a dataset does not allow an analysis; "" where it does."""
    kind = KINDS[name]
    if name == "association" and attributes is not None:
        return ""
    if kind.truth and not is_labelled(dataset):
        other = ", or a JSON file of photos (--attributes)" if name == "association" else ""
        return f"it needs to know where objects are, which photos without labels do not say: give a benchmark{other}"
    if kind.background and not dataset.classes.background:
        return f"'{dataset.name}' has no background class: nothing says where objects end"
    return ""
