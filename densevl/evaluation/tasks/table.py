"""The one table of tasks."""

from __future__ import annotations

from collections.abc import Mapping

from densevl.evaluation.benchmarks.base import ANOMALY, INSTANCE, PANOPTIC, SEMANTIC, Dataset
from densevl.evaluation.experiment import Experiment
from densevl.evaluation.tasks.anomaly import AnomalyTask
from densevl.evaluation.tasks.base import Task
from densevl.evaluation.tasks.instance import InstanceTask
from densevl.evaluation.tasks.panoptic import PanopticTask
from densevl.evaluation.tasks.semantic import SemanticTask

TASKS: Mapping[str, type[Task]] = {
    SEMANTIC: SemanticTask,
    INSTANCE: InstanceTask,
    PANOPTIC: PanopticTask,
    ANOMALY: AnomalyTask,
}


def task_of(experiment: Experiment, dataset: Dataset | None = None) -> Task:
    """Make the task of an experiment; with None it opens its own dataset."""
    return TASKS[experiment.task](experiment, dataset or experiment.open())
