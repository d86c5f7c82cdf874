"""`Experiment`: everything an evaluation depends on, as plain data with a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from densevl.errors import suggest
from densevl.evaluation import papers
from densevl.evaluation.datasets import Dataset, open_dataset
from densevl.evaluation.faults import EvaluationError
from densevl.evaluation.predicting import Predictor
from densevl.evaluation.vocabularies import DISPLAY
from densevl.pipelines.segmenter import Segmenter

MEASURES = ("iou", "boundary", "calibration")


@dataclass(frozen=True)
class Experiment:
    """A benchmark, a model, a recipe, and how they meet.

    Attributes:
        dataset, root, variant: as `open_dataset` takes them.
        model, weights, recipe, proxy, sam, regions, views, refine, templates: as `Segmenter` takes them.
        protocol: changes to the model's `Protocol`; strings: the class list's variant.
        background: a policy; "auto" is the model's own. min_share: the area threshold of the papers.
        paper: take protocol, strings, background and threshold from the recipe's paper for this benchmark; what is
            given beside it wins.
        measures: of `MEASURES`; "iou" is always taken. boundary_ratio: see `boundary`.
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
    protocol: Mapping[str, Any] = field(default_factory=dict)
    strings: str = DISPLAY
    background: str = "auto"
    min_share: float = 0.0
    paper: bool = False
    measures: tuple[str, ...] = ("iou", "calibration")
    boundary_ratio: float = 0.02
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "measures", tuple(dict.fromkeys(("iou", *self.measures))))
        for name in self.measures:
            if name not in MEASURES:
                raise EvaluationError(f"no measure '{name}'{suggest(name, MEASURES)}; there are {', '.join(MEASURES)}")

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> Experiment:
        """From a mapping, such as a config.

        Raises:
            EvaluationError: no dataset, or a field that an experiment does not have.
        """
        known = [entry.name for entry in fields(cls)]
        for name in settings:
            if name not in known:
                raise EvaluationError(f"an experiment has no field '{name}'{suggest(name, known)}")
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
        taken = {name: value for name, value in own.items() if getattr(self, name) == usual[name]}
        windows = {name: found[name] for name in papers.PROTOCOL_FIELDS}
        return replace(self, protocol={**windows, **self.protocol}, **taken)

    @property
    def published(self) -> float | None:
        """The paper's mIoU in per cent, if this is the paper's model, protocol and whole split; else None."""
        plain = replace(self, protocol={}, strings=DISPLAY, background="auto", min_share=0.0).resolved()
        as_paper = self.paper and self.model == papers.MODEL and self.limit is None and not self.refine
        if not as_paper or self.resolved() != plain:
            return None
        return papers.published(self.recipe or "", self.dataset)

    def open(self) -> Dataset:
        """The dataset, cut to `limit`."""
        return open_dataset(self.dataset, self.root, variant=self.variant).subset(self.limit)

    def predictor(self, dataset: Dataset, *, device: str | None = None) -> Predictor:
        """Load the model."""
        import numpy as np
        import torch

        torch.manual_seed(self.seed)
        np.random.seed(self.seed)
        full = self.resolved()
        segmenter = Segmenter(
            full.model,
            full.recipe,
            weights=full.weights,
            templates=full.templates,
            protocol=dict(full.protocol),
            proxy=full.proxy,
            sam=full.sam,
            regions=full.regions,
            views=full.views,
            refine=full.refine,
            device=device,
        )
        return Predictor(
            segmenter, dataset.classes, strings=full.strings, background=full.background, min_share=full.min_share
        )

    def facts(self) -> dict[str, Any]:
        """All settings after `resolved`, ready for JSON; where files lie is left out."""
        facts = asdict(self.resolved())
        return {name: value for name, value in facts.items() if name != "root"}

    def fingerprint(self, dataset: Dataset) -> str:
        """Changes with anything that could change a count: settings, files of the dataset, classes."""
        text = json.dumps(
            [self.facts(), dataset.names, [item.key for item in dataset.items]], sort_keys=True, default=str
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]
