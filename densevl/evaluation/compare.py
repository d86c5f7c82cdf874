"""One benchmark, many recipes: a table from one command, in which each row can be resumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from densevl import __version__
from densevl.evaluation import distributed
from densevl.evaluation.experiment import Experiment
from densevl.evaluation.outcome import Outcome
from densevl.evaluation.runner import evaluate
from densevl.files import atomic_write, guard
from densevl.recipes import get

COLUMNS = ("mIoU", "aAcc", "mAcc", "fwIoU", "boundary mIoU", "ECE", "AP", "AP50", "AP75", "R50", "PQ", "SQ", "RQ")


def compare(
    experiment: Experiment, recipes: Sequence[str], work_dir: str | Path, **how: Any
) -> tuple[dict[str, Outcome], Path]:
    """Evaluate recipes one after the other and write table.md.

    Args:
        experiment: everything but the recipe; recipes: names; work_dir: gets a folder per recipe, and the table;
            how: as `evaluate` takes it.

    Raises:
        RecipeError: a recipe is unknown; raised before any runs.
        DensevlError: as `evaluate`.
    """
    for name in recipes:
        get(name)  # a mistyped one fails before hours are spent on the others
    path = Path(work_dir) / "table.md"
    guard([path], overwrite=how.get("overwrite", False))
    outcomes = {
        name: evaluate(replace(experiment, recipe=name), Path(work_dir) / name, **how)[0]
        for name in dict.fromkeys(recipes)
    }
    if distributed.rank() == 0:
        atomic_write(path, table(outcomes).encode())
    return outcomes, path


def table(outcomes: dict[str, Outcome]) -> str:
    """A table in Markdown, in per cent, best first."""
    first = next(iter(outcomes.values()))
    columns = [name for name in COLUMNS if name in first.summary]
    ranked = sorted(outcomes.items(), key=lambda pair: -np.nan_to_num(pair[1].summary[first.task.headline], nan=-1))
    asked = f"{first.used.get('model')} on {first.dataset.name}, {len(first.dataset)} images"
    lines = [f"{asked}, per cent, densevl {__version__}.", ""]
    lines += [f"| recipe | {' | '.join(columns)} | paper |", "|---" * (len(columns) + 2) + "|"]
    for name, outcome in ranked:
        values = (outcome.summary[column] for column in columns)
        cells = ("n/a" if math.isnan(value) else f"{100 * value:.1f}" for value in values)
        paper = outcome.experiment.published
        lines.append(f"| `{name}` | {' | '.join(cells)} | {'-' if paper is None else f'{paper:.1f}'} |")
    return "\n".join(lines) + "\n"
