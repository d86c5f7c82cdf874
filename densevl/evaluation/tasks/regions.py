"""The base of tasks over regions: a classifier of proposed or true masks."""

from __future__ import annotations

from densevl.evaluation.experiment import TRUTH, Experiment
from densevl.evaluation.predictors import RegionPredictor
from densevl.evaluation.tasks.base import Task, classes_of, pipeline_of
from densevl.pipelines.regions.classifier import PROPOSER, RegionClassifier
from densevl.proposals.decoded import DecodedFiles
from densevl.regions.operators.names import weights_of


class RegionTask(Task):
    """A task that names regions."""

    def load(self, asked: Experiment, device: str | None) -> RegionPredictor:
        found = asked.proposals or PROPOSER
        decoder = None if asked.decoder is None else DecodedFiles(asked.decoder)
        given = found == TRUTH or decoder is not None
        classifier = RegionClassifier(
            asked.model,
            asked.operator,
            recipe=asked.recipe,
            proposals=None if given else self.finder(found, asked, device),
            options=weights_of(asked.operator, asked.operator_weights),
            clip_share=asked.clip_share,
            **pipeline_of(asked, device),
        )
        return RegionPredictor(classifier, proposals=found, decoder=decoder, **classes_of(self.dataset, asked))
