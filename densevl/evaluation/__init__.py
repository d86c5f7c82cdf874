"""Benchmarks: datasets as they lie on disk, measures from integer counts, a runner that resumes, and reports."""

from densevl.errors import DatasetError, EvaluationError
from densevl.evaluation.benchmarks.check import Check, check
from densevl.evaluation.benchmarks.coco import RegionDataset, open_regions
from densevl.evaluation.benchmarks.datasets import Dataset, Sample, names, open_dataset
from densevl.evaluation.experiment import Experiment
from densevl.evaluation.predictors import Prediction, Predictor
from densevl.evaluation.runner import Outcome, run

__all__ = [
    "Check",
    "Dataset",
    "DatasetError",
    "EvaluationError",
    "Experiment",
    "Outcome",
    "Prediction",
    "Predictor",
    "RegionDataset",
    "Sample",
    "check",
    "names",
    "open_dataset",
    "open_regions",
    "run",
]
