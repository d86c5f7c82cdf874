"""Benchmarks: datasets as they lie on disk, measures from integer counts, a runner that resumes, and reports."""

from densevl.errors import DatasetError, EvaluationError
from densevl.evaluation.benchmarks.base import Benchmark, Dataset, Item, Sample
from densevl.evaluation.benchmarks.check import Check, check
from densevl.evaluation.benchmarks.table import BENCHMARKS, open_dataset
from densevl.evaluation.experiment import Experiment
from densevl.evaluation.outcome import Outcome
from densevl.evaluation.predictors import Prediction, Predictor
from densevl.evaluation.runner import evaluate, run
from densevl.evaluation.tasks.table import task_of

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Check",
    "Dataset",
    "DatasetError",
    "EvaluationError",
    "Experiment",
    "Item",
    "Outcome",
    "Prediction",
    "Predictor",
    "Sample",
    "check",
    "evaluate",
    "open_dataset",
    "run",
    "task_of",
]
