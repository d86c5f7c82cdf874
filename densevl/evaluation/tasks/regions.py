"""What the tasks over regions share: a classifier of proposed or true masks."""

from __future__ import annotations

from densevl.evaluation.experiment import TRUTH, Experiment
from densevl.evaluation.predictors import RegionPredictor
from densevl.evaluation.tasks.base import Task, classes_of, pipeline_of
from densevl.pipelines.regions.classifier import PROPOSER, RegionClassifier


class RegionTask(Task):
    """Regions that are named."""

    def load(self, asked: Experiment, device: str | None) -> RegionPredictor:
        found = asked.proposals or PROPOSER
        proposals = None if found == TRUTH else found
        more = {"recipe": asked.recipe, "proposals": proposals, **pipeline_of(asked, device)}
        classifier = RegionClassifier(asked.model, asked.operator, **more)
        return RegionPredictor(classifier, proposals=found, **classes_of(self.dataset, asked))
