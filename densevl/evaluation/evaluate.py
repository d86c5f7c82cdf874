"""An evaluation from beginning to end: run, and write the report; what `densevl eval` and tools/test.py call."""

from __future__ import annotations

import shutil
from pathlib import Path

from densevl.evaluation import distributed
from densevl.evaluation.experiment import Experiment
from densevl.evaluation.progress import progress
from densevl.evaluation.report import results as report
from densevl.evaluation.runner import SAVE_EVERY, STATE, Outcome, run


def evaluate(
    experiment: Experiment,
    work_dir: str | Path,
    *,
    fresh: bool = False,
    dump: bool = False,
    save_every: float = SAVE_EVERY,
) -> tuple[Outcome, list[Path]]:
    """Evaluate and report.

    Args:
        experiment: what to do.
        work_dir: gets state/ (counts, for going on after a kill), the report, and predictions/ with `dump`.
        fresh: forget what earlier runs counted.
        dump: keep every prediction as a 16-bit PNG.
        save_every: seconds between two savings of the counts.

    Returns:
        The outcome, and the report's files (in the first process; none in others).

    Raises:
        DensevlError: as `run` and `report.write`.
    """
    folder = Path(work_dir)
    if fresh and distributed.rank() == 0:
        shutil.rmtree(folder / STATE, ignore_errors=True)
    distributed.barrier()
    dataset = experiment.open()
    predictor = experiment.predictor(dataset, device=distributed.device())
    title = f"{experiment.recipe or predictor.facts()['model']} on {dataset.name}"
    with progress(title, experiment.judge(dataset).running) as show:
        outcome = run(
            experiment,
            folder,
            dataset=dataset,
            predictor=predictor,
            show=show,
            save_every=save_every,
            dump=folder / "predictions" if dump else None,
        )
    files = report.write(outcome, folder, predictor) if distributed.rank() == 0 else []
    distributed.barrier()
    return outcome, files
