"""Benchmarks: datasets as they lie on disk, measures from integer counts, a runner that resumes, and reports."""

from densevl.evaluation.checking import Check, check
from densevl.evaluation.datasets import Dataset, Sample, names, open_dataset
from densevl.evaluation.experiment import Experiment
from densevl.evaluation.faults import DatasetError, EvaluationError
from densevl.evaluation.predicting import Prediction, Predictor
from densevl.evaluation.region_sets import RegionDataset, open_regions
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
