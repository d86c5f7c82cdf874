"""Benchmarks: datasets as they lie on disk, measures from integer counts, a runner that resumes, and reports.

From top to bottom:

- `runner`: open, load, predict, count, save, report;
- `experiment`: the settings, as data; `papers`: the settings of papers; `config`: experiments in files;
- `benchmarks`: where images and labels lie and what labels mean, in one table;
- `tasks`: what is predicted, counted and shown, a file per task; `predictors`: the model behind it;
- `metrics`: the arithmetic, a file per measure (mIoU: `metrics.confusion`);
- `checkpoint`: saved counts; `distributed`: several processes; `outcome`: the results; `report`: its files.
"""

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
