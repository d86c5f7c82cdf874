"""Analyses of what a single score hides. Each file is one analysis, which runs a model under changed conditions.

- `run`: the list of analyses, and which of them a dataset allows;
- `base`: the result of an analysis; `looks`: a model's scores of a photo and its parts; `photos`: without labels;
- `objects`: objects of label maps, and how pictures of them are changed;
- `vocabulary`, `background`, `backgrounds`, `corruption`, `unknown`, `size`, `written`, `association`, `agreement`.
"""

from densevl.evaluation.analyses.base import Analysis, Chart, Finding, Left
from densevl.evaluation.analyses.run import NAMES, Analyses, analyse, analyse_photos, asking

__all__ = ["NAMES", "Analyses", "Analysis", "Chart", "Finding", "Left", "analyse", "analyse_photos", "asking"]
