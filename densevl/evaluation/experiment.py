"""`Experiment`: everything an evaluation depends on, as plain data with a fingerprint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from densevl import digest
from densevl.errors import EvaluationError, suggest
from densevl.evaluation import papers
from densevl.evaluation.benchmarks.class_lists import DISPLAY
from densevl.evaluation.benchmarks.coco import RegionDataset, open_regions
from densevl.evaluation.benchmarks.datasets import Dataset, open_dataset
from densevl.evaluation.metrics.semantic import MEASURES
from densevl.evaluation.predictors import Predictor
from densevl.evaluation.region_predicting import TRUTH, RegionPredictor
from densevl.evaluation.region_tasks import InstanceTask, PanopticTask
from densevl.evaluation.tasks import INSTANCE, SEMANTIC, TASKS, SemanticTask, Task
from densevl.files import shown
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.segmentation.segmenter import Segmenter
from densevl.proposals import NAMES as PROPOSERS
from densevl.vocabulary import TextOptions

AnyDataset = Dataset | RegionDataset
AnyPredictor = Predictor | RegionPredictor
RESOLVE = {"instance": ("top", "threshold", "iou", "metric", "parts"), "panoptic": ("threshold", "visible")}
"""Keywords of `RegionResult.instances` and `.panoptic`."""


@dataclass(frozen=True)
class Experiment:
    """A benchmark, a model, a recipe, and how they meet.

    Attributes:
        dataset, root, variant: as `open_dataset` takes them, `open_regions` for the tasks over regions.
        task: "semantic", "instance" or "panoptic".
        model, weights, recipe, proxy, sam, regions, views, refine, templates, presence, precision, device: as
            `Segmenter` takes them.
        text: keywords of `TextOptions`; descriptors may be a file.
        compat, proxy_scope: likewise; None is as usual, or with `paper` as the authors' code: slips included, and the
            proxy looking at each window.
        protocol: changes to the model's `InferenceProtocol`; strings: the class list's variant.
        background: a policy; "auto" is the model's own. min_share: the area threshold of the papers.
        paper: take protocol, strings, background and threshold from the recipe's paper for this benchmark; what is
            given beside it wins.
        measures: of `MEASURES`, for task semantic; "iou" is always taken. boundary_ratio: see `boundary`.
        proposals, operator: as `RegionClassifier` takes them, for tasks over regions; proposals "truth" are the true
            masks, so that only the naming is judged. resolve: keywords of `RegionResult.instances` or `.panoptic`.
        limit: so many images, spread over the dataset. seed: of torch and numpy, before the model loads.
    """

    dataset: str
    root: str | None = None
    variant: str = ""
    model: str = "auto"
    weights: str | None = None
    recipe: str | None = None
    proxy: str | None = None
    sam: str | None = None
    regions: str | None = None
    views: str | None = None
    refine: str | None = None
    templates: str | None = None
    text: Mapping[str, Any] = field(default_factory=dict)
    presence: float | None = None
    precision: str | None = None
    device: str | None = None
    compat: bool | None = None
    proxy_scope: str | None = None
    protocol: Mapping[str, Any] = field(default_factory=dict)
    strings: str = DISPLAY
    background: str | float = "auto"
    min_share: float = 0.0
    paper: bool = False
    measures: tuple[str, ...] = ("iou", "calibration")
    boundary_ratio: float = 0.02
    task: str = SEMANTIC
    proposals: str = "mini-sam"
    operator: str | None = None
    resolve: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, hint in _hints().items():
            object.__setattr__(self, name, _fitting(name, getattr(self, name), hint))
        if self.task not in TASKS:
            raise EvaluationError(f"no task '{self.task}'{suggest(self.task, TASKS)}; there are {', '.join(TASKS)}")
        if self.task != SEMANTIC:
            self._check_regions()
        object.__setattr__(self, "measures", tuple(dict.fromkeys(("iou", *self.measures))))
        for name in self.measures:
            if name not in MEASURES:
                raise EvaluationError(f"no measure '{name}'{suggest(name, MEASURES)}; there are {', '.join(MEASURES)}")

    def _check_regions(self) -> None:
        """Refuse what a task over regions has no use for, before anything is loaded."""
        allowed = (TRUTH, *PROPOSERS)
        if self.proposals not in allowed:
            raise EvaluationError(
                f"no proposals '{self.proposals}'{suggest(self.proposals, allowed)}; there are {', '.join(allowed)}"
            )
        given = (
            "paper",
            "variant",
            "min_share",
            "sam",
            "regions",
            "views",
            "refine",
            "text",
            "presence",
            "precision",
            "compat",
            "proxy_scope",
        )
        if useless := [name for name in given if getattr(self, name)]:
            raise EvaluationError(f"{useless[0]} goes with task semantic, not with task {self.task}; leave it out")
        for name in self.resolve:
            if name not in RESOLVE[self.task]:
                own = RESOLVE[self.task]
                raise EvaluationError(
                    f"task {self.task} has no '{name}' to resolve by{suggest(name, own)}; it has {', '.join(own)}"
                )

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> Experiment:
        """From a mapping, such as a config.

        Raises:
            EvaluationError: no dataset, or a field that an experiment does not have.
        """
        known = [entry.name for entry in fields(cls)]
        for name in settings:
            if name not in known:
                raise EvaluationError(f"an experiment has no field {shown(name)}{suggest(name, known)}")
        if "dataset" not in settings:
            raise EvaluationError("an experiment needs a dataset, such as dataset='voc21'")
        return cls(**settings)

    def resolved(self) -> Experiment:
        """With the paper's settings filled in, where `paper` asks for them and they are not given.

        Raises:
            EvaluationError: the paper's protocol for this benchmark is not known.
        """
        if not self.paper:
            return self
        found = papers.protocol(self.recipe or "", self.dataset)
        if found is None:
            raise EvaluationError(
                f"the protocol of '{self.recipe}' on '{self.dataset}' is not known completely; "
                f"it is for {', '.join(papers.known())}; leave paper out and set protocol, strings and background"
            )
        usual = {entry.name: entry.default for entry in fields(self)}
        own = {name: found[name] for name in ("strings", "background", "min_share")}
        own |= {"compat": True, "proxy_scope": "window"}
        taken = {name: value for name, value in own.items() if getattr(self, name) == usual[name]}
        windows = {name: found[name] for name in papers.PROTOCOL_FIELDS}
        return replace(self, protocol={**windows, **self.protocol}, **taken)

    @property
    def published(self) -> float | None:
        """The paper's mIoU in per cent, if this is the paper's model, protocol and whole split; else None."""
        if self.task != SEMANTIC:
            return None
        if not self.paper or self.limit is not None:
            return None
        own: dict[str, Any] = {
            "protocol": {},
            "strings": DISPLAY,
            "background": "auto",
            "min_share": 0.0,
            "variant": "",
        }
        same = ("weights", "proxy", "sam", "regions", "views", "templates", "presence", "precision")
        own |= {**dict.fromkeys((*same, "compat", "proxy_scope")), "text": {}}
        if self.resolved() != replace(self, **own).resolved():
            return None
        return papers.published(self.recipe or "", self.dataset, self.model, self.refine or "")

    def open(self) -> AnyDataset:
        """The dataset, cut to `limit`."""
        if self.task != SEMANTIC:
            return open_regions(self.dataset, self.task, self.root).subset(self.limit)
        return open_dataset(self.dataset, self.root, variant=self.variant).subset(self.limit)

    def judge(self, dataset: AnyDataset) -> Task:
        """What is counted on the dataset."""
        if isinstance(dataset, Dataset):
            return SemanticTask(dataset.names, self.measures, self.boundary_ratio)
        kind = InstanceTask if self.task == INSTANCE else PanopticTask
        return kind(dataset, self.resolve)

    def predictor(self, dataset: AnyDataset, *, device: str | None = None) -> AnyPredictor:
        """Load the model."""
        import numpy as np
        import torch

        torch.manual_seed(self.seed)
        np.random.seed(self.seed)
        full = self.resolved()
        common: dict[str, Any] = {
            "weights": full.weights,
            "templates": full.templates,
            "protocol": dict(full.protocol),
            "proxy": full.proxy,
            "device": device or full.device,
        }
        own: dict[str, Any] = {"strings": full.strings, "background": full.background}
        if self.task != SEMANTIC:
            propose = None if full.proposals == TRUTH else full.proposals
            classifier = RegionClassifier(full.model, full.operator, recipe=full.recipe, proposals=propose, **common)
            return RegionPredictor(classifier, dataset.classes, proposals=full.proposals, **own)
        parts: dict[str, Any] = {"sam": full.sam, "proposals": full.regions, "views": full.views, "refine": full.refine}
        parts |= {"text": TextOptions.parse(full.text or None), "presence": full.presence}
        parts |= {"compat": bool(full.compat), "proxy_scope": full.proxy_scope or "image"}
        recipe = papers.recipe(full.recipe, full.dataset) if full.paper and full.recipe else full.recipe
        segmenter = Segmenter(full.model, recipe, precision=full.precision, **common, **parts)
        return Predictor(segmenter, dataset.classes, min_share=full.min_share, **own)

    def facts(self) -> dict[str, Any]:
        """All settings after `resolved`, ready for JSON; where files lie and the model runs is left out."""
        facts = asdict(self.resolved())
        return {name: value for name, value in facts.items() if name not in ("root", "device")}

    def fingerprint(self, dataset: AnyDataset) -> str:
        """Changes with anything that could change a count: settings, files of the dataset, classes."""
        text = json.dumps(
            [self.facts(), dataset.names, [item.key for item in dataset.items]], sort_keys=True, default=str
        )
        return digest.of_text(text)[:16]


_KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Mapping: "a mapping",
    tuple: "a list",
}


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Experiment)


def _fitting(name: str, value: Any, hint: Any) -> Any:
    """A value as its field has it: a path as text, a list as a tuple.

    Raises:
        EvaluationError: it is of another kind.
    """
    value = os.fspath(value) if isinstance(value, os.PathLike) else tuple(value) if isinstance(value, list) else value
    kinds = [get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,))]
    if float in kinds and type(value) is int:
        value = float(value)
    if not isinstance(value, tuple(kinds)) or (isinstance(value, bool) and bool not in kinds):
        said = " or ".join(_KINDS[kind] for kind in kinds if kind in _KINDS)
        raise EvaluationError(f"{name} of an experiment is {said}, not {shown(str(value))}")
    return value
