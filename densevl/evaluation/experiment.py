"""`Experiment`: the settings of an evaluation, as plain data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from densevl.errors import EvaluationError, suggest
from densevl.evaluation import papers
from densevl.evaluation.benchmarks.base import ANOMALY, INSTANCE, PANOPTIC, SEMANTIC, TASKS, Dataset
from densevl.evaluation.benchmarks.class_lists import DISPLAY
from densevl.evaluation.benchmarks.own import EXIF, OTHERS, RULES
from densevl.evaluation.benchmarks.table import benchmark, tasks_of
from densevl.files import shown
from densevl.proposals import NAMES as PROPOSERS
from densevl.proposals.load import is_concepts

MEASURES = ("iou", "boundary", "calibration", "structure")
TRUTH = "truth"
"""The proposals that are the true masks, as an upper bound for naming."""
RESOLVE = {INSTANCE: ("top", "threshold", "iou", "metric", "parts"), PANOPTIC: ("threshold", "visible")}
"""Keywords of `RegionResult.instances` and `.panoptic`."""
_REGIONS, _WORDS = (INSTANCE, PANOPTIC), (SEMANTIC, INSTANCE, PANOPTIC)
_PLACES = ("root", "weights", "operator_weights", "decoder", "upsampler", "device")
_ONE_WAY = (
    *("protocol", "strings", "background", "min_share", "variant", "weights", "proxy", "sam", "proposals", "views"),
    *("templates", "text", "presence", "precision", "compat", "proxy_scope"),
)
"""Fields that a paper sets for all benchmarks."""


def _of(*tasks: str, default: Any = MISSING, factory: Any = MISSING) -> Any:
    """A field that applies to some tasks only."""
    return field(default=default, default_factory=factory, metadata={"tasks": tasks})


@dataclass(frozen=True)
class Experiment:
    """A benchmark, a model, a recipe, and their settings.

    Attributes:
        dataset, root, variant: as `open_dataset` takes them.
        ignore, label_map, reduce_zero_label: the meaning of stored numbers in your own folder, as in its dataset.json
            (see `benchmarks.own`), which they override.
        exif: "auto", "stored" or "upright", see `Dataset.exif`.
        task: "semantic", "instance", "panoptic" or "anomaly"; "" is the first that the benchmark has.
        model, weights, recipe, proxy, sam, views, refine, upsampler, bank, bank_share, neighbours, templates, presence,
            precision, device: as `Segmenter` takes them; () is no bank.
        instance_threshold, prefilter, prefilter_model: as `Concepts` takes them, for models that judge each text for
            itself; None is the model's own.
        text: keywords of `TextOptions`; descriptors may be a file.
        compat, proxy_scope: likewise; None is the default, or with `paper` what the authors' code does, including its
            slips and a proxy that sees each window.
        protocol: changes to the model's `InferenceProtocol`; strings: the class list's variant.
        background: a policy; "auto" is the model's own. min_share: the area threshold of the papers.
        paper: take protocol, strings, background and threshold from the recipe's paper for this benchmark; fields that
            are given override them.
        measures: of `MEASURES`, for task semantic; "iou" is always included. boundary_ratio: see `boundary`.
        proposals: as `Segmenter` and `RegionClassifier` take them; None is none, or "mini-sam" for tasks over regions.
            There "truth" takes the true masks, so that only the naming is measured.
        decoder: a folder of `Decoded` files, NAME.npz for NAME.jpg, in place of proposals; clip_share: CLIP's weight
            beside its scores, as `RegionClassifier` takes it.
        operator: as `RegionClassifier` takes it; operator_weights: the file of one that needs weights.
        resolve: keywords of `RegionResult.instances` or `.panoptic`.
        scoring: as `AnomalyDetector` takes it, for task anomaly. shots: the number of flawless training images to learn
            from per category, the first by name. options: fields of the scoring to change, and states, size, tile and
            adapters as `AnomalyDetector` takes them.
        bits: the bits that 16-bit images use, as `read_image` takes them.
        limit: the number of images, spread over the dataset. seed: of torch and numpy, before the model loads.
    """

    dataset: str
    root: str | None = None
    variant: str = _of(SEMANTIC, default="")
    model: str = "auto"
    weights: str | None = None
    recipe: str | None = _of(*_WORDS, default=None)
    proxy: str | None = None
    sam: str | None = _of(*_WORDS, default=None)
    views: str | None = _of(*_WORDS, default=None)
    refine: str | None = _of(SEMANTIC, default=None)
    upsampler: str | None = _of(SEMANTIC, default=None)
    instance_threshold: float | None = _of(SEMANTIC, default=None)
    prefilter: int | None = _of(SEMANTIC, default=None)
    prefilter_model: str | None = _of(SEMANTIC, default=None)
    bank: tuple[str, ...] = _of(SEMANTIC, default=())
    bank_share: float = _of(SEMANTIC, default=0.5)
    neighbours: int = _of(SEMANTIC, default=20)
    templates: str | None = _of(*_WORDS, default=None)
    text: Mapping[str, Any] = _of(*_WORDS, factory=dict)
    presence: float | None = _of(*_WORDS, default=None)
    precision: str | None = None
    device: str | None = None
    compat: bool | None = _of(*_WORDS, default=None)
    proxy_scope: str | None = _of(*_WORDS, default=None)
    protocol: Mapping[str, Any] = _of(*_WORDS, factory=dict)
    ignore: tuple[int | str, ...] = _of(SEMANTIC, default=())
    label_map: Mapping[str, Any] = _of(SEMANTIC, factory=dict)
    reduce_zero_label: bool = _of(SEMANTIC, default=False)
    exif: str = _of(SEMANTIC, ANOMALY, default=EXIF[0])
    strings: str = _of(*_WORDS, default=DISPLAY)
    background: str | float = _of(*_WORDS, default="auto")
    min_share: float = _of(SEMANTIC, default=0.0)
    paper: bool = _of(SEMANTIC, default=False)
    measures: tuple[str, ...] = _of(SEMANTIC, default=("iou", "calibration"))
    boundary_ratio: float = _of(SEMANTIC, default=0.02)
    task: str = ""
    proposals: str | None = _of(*_WORDS, default=None)
    decoder: str | None = _of(*_REGIONS, default=None)
    clip_share: str = _of(*_REGIONS, default="fc-clip")
    operator: str | None = _of(*_REGIONS, default=None)
    operator_weights: str | None = _of(*_REGIONS, default=None)
    resolve: Mapping[str, Any] = _of(*_REGIONS, factory=dict)
    scoring: str = _of(ANOMALY, default="winclip")
    shots: int = _of(ANOMALY, default=0)
    options: Mapping[str, Any] = _of(ANOMALY, factory=dict)
    bits: int | None = None
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, hint in _hints().items():
            object.__setattr__(self, name, _fitting(name, getattr(self, name), hint))
        for name, (low, high) in _RANGES.items():
            if (value := getattr(self, name)) is not None and not low <= value <= high:
                raise EvaluationError(f"{name} of an experiment is {low} to {high}, not {shown(str(value))}")
        object.__setattr__(self, "task", self.task or tasks_of(self.dataset)[0])
        _one_of("task", self.task, TASKS)
        for entry in fields(self):
            tasks = entry.metadata.get("tasks", TASKS)
            if self.task not in tasks and getattr(self, entry.name) != _usual(entry):
                raise EvaluationError(
                    f"{entry.name} goes with task {' or '.join(tasks)}, not with task {self.task}; leave it out"
                )
        object.__setattr__(self, "measures", tuple(dict.fromkeys((MEASURES[0], *self.measures))))
        for name in self.measures:
            _one_of("measure", name, MEASURES)
        _one_of("exif", self.exif, EXIF)
        if self.proposals is not None and not is_concepts(self.proposals):
            _one_of("proposals", self.proposals, (*([TRUTH] if self.task in _REGIONS else []), *PROPOSERS))
        if self.proposals is not None and self.decoder is not None:
            raise EvaluationError("proposals and decoder both say where the masks come from; leave one of them out")
        for name in self.resolve:
            if name not in (own := RESOLVE[self.task]):
                raise EvaluationError(
                    f"task {self.task} has no '{name}' to resolve by{suggest(name, own)}; it has {', '.join(own)}"
                )
            value = self.resolve[name]
            if name != "metric" and (isinstance(value, bool) or not isinstance(value, int | float | None)):
                raise EvaluationError(f"{name} to resolve by is a number, not {shown(str(value))}")
            if name in ("threshold", "iou", "visible") and value is not None and not 0 <= value <= 1:
                raise EvaluationError(f"{name} to resolve by is 0 to 1, not {shown(str(value))}")

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> Experiment:
        """Make an experiment from a mapping, such as a config.

        Raises:
            EvaluationError: there is no dataset, or a field that an experiment does not have.
        """
        known = [entry.name for entry in fields(cls)]
        for name in settings:
            if name not in known:
                raise EvaluationError(f"an experiment has no field {shown(name)}{suggest(name, known)}")
        if "dataset" not in settings:
            raise EvaluationError("an experiment needs a dataset, such as dataset='voc21'")
        return cls(**settings)

    def resolved(self) -> Experiment:
        """Fill in the paper's settings if `paper` asks for them; fields that are given stay.

        Raises:
            EvaluationError: the paper's protocol for this benchmark is not known.
        """
        if not self.paper:
            return self
        found = papers.protocol(self.recipe or "", self.dataset)
        if found is None:
            raise EvaluationError(
                f"the protocol of '{self.recipe}' on '{self.dataset}' is not known completely; "
                f"known are {', '.join(papers.known())}; leave paper out and set protocol, strings and background"
            )
        usual = {entry.name: _usual(entry) for entry in fields(self)}
        own = {name: found[name] for name in ("strings", "background", "min_share")}
        own |= {"compat": True, "proxy_scope": "window"}
        taken = {name: value for name, value in own.items() if getattr(self, name) == usual[name]}
        windows = {name: found[name] for name in papers.PROTOCOL_FIELDS}
        return replace(self, protocol={**windows, **self.protocol}, **taken)

    @property
    def published(self) -> float | None:
        """The paper's mIoU in per cent if this is the paper's model, protocol and full split, otherwise None."""
        if not self.paper or self.limit is not None:
            return None
        usual = {entry.name: _usual(entry) for entry in fields(self) if entry.name in _ONE_WAY}
        if self.resolved() != replace(self, **usual).resolved():
            return None
        return papers.published(self.recipe or "", self.dataset, self.model, self.refine or "")

    def open(self) -> Dataset:
        """The dataset, cut to `limit`."""
        usual = {entry.name: _usual(entry) for entry in fields(self)}
        rules = {name: value for name in RULES if (value := getattr(self, name)) != usual[name]}
        dataset = benchmark(self.dataset, self.task).open(self.root, self.variant, rules).subset(self.limit)
        return replace(dataset, bits=self.bits)

    def facts(self) -> dict[str, Any]:
        """Its task's settings after `resolved`, ready for JSON, without the places of files and the device."""
        own = {entry.name for entry in fields(self) if self.task in entry.metadata.get("tasks", TASKS)}
        return {name: value for name, value in asdict(self.resolved()).items() if name in own.difference(_PLACES)}


def _usual(entry: Field[Any]) -> Any:
    """The default of a field."""
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def _one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise EvaluationError(f"no {what} {shown(value)}{suggest(value, allowed)}; there are {', '.join(allowed)}")


_RANGES = {
    "seed": (0, 2**32 - 1),
    "bits": (8, 16),
    "bank_share": (0, 1),
    "instance_threshold": (0, 0.999),
    "prefilter": (1, 10**6),
    "neighbours": (1, 1000),
    "shots": (0, 10**6),
    "min_share": (0, 1),
    "boundary_ratio": (1e-6, 1),
}
_KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Mapping: "a mapping",
    tuple: "a list of names",
}


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Experiment)


def _text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _fitting(name: str, value: Any, hint: Any) -> Any:
    """Convert a value to its field's type: a path to text, a list to a tuple.

    Raises:
        EvaluationError: it has another type.
    """
    value = tuple(map(_text, value)) if isinstance(value, list) else _text(value)
    if name == "ignore" and not isinstance(value, tuple):
        value = (value,)
    kinds = [get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,))]
    if float in kinds and type(value) is int:
        with suppress(OverflowError):
            value = float(value)
    if name == "ignore" and (odd := [entry for entry in value if type(entry) is not int and entry != OTHERS]):
        raise EvaluationError(f"ignore is numbers of labels, or '{OTHERS}', not {shown(str(odd[0]))}")
    wrong = isinstance(value, tuple) and name != "ignore" and not all(isinstance(entry, str) for entry in value)
    if wrong or not isinstance(value, tuple(kinds)) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(_KINDS[kind] for kind in kinds if kind in _KINDS)
        raise EvaluationError(f"{name} of an experiment is {expected}, not {shown(str(value))}")
    return value
