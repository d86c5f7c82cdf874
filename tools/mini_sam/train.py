"""Train "mini-sam": python -m tools.mini_sam.train --out DIR --minutes 14 --workers 2 --start MINI.safetensors.

Workers are processes of one thread each; they render their own scenes and average their gradients. A stopped run
resumes from its last checkpoint when it is started again with the same arguments. Log lines are JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing

from tools.mini_sam.data import Sources, rendered
from tools.mini_sam.run import Plan, Run, goes_on

LOG_EVERY = 50


def train(plan: Plan, sources: Sources = rendered) -> None:
    """Run a plan to its end, or resume the run whose checkpoint lies in `plan.out`; tests pass their own `sources`."""
    plan.out.mkdir(parents=True, exist_ok=True)
    if plan.workers == 1:
        _work(0, plan, sources, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_work, (plan, sources, f"file://{folder}/meeting"), nprocs=plan.workers)


def _work(rank: int, plan: Plan, sources: Sources, meeting: str | None) -> None:
    torch.set_num_threads(1)
    if meeting:
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=plan.workers)
    _loop(Run(plan, sources, rank))
    if meeting:
        dist.destroy_process_group()


def _loop(run: Run) -> None:
    sums: dict[str, float] = defaultdict(float)
    while run.clock < run.plan.total:
        before = run.clock
        for key, value in run.step().items():
            sums[key] += value / LOG_EVERY
        if run.step_count % LOG_EVERY == 0:
            _log(run, sums)
            sums.clear()
        if run.clock // run.plan.checkpoint > before // run.plan.checkpoint and run.clock < run.plan.total:
            if run.rank == 0:
                run.save()
            run.restart_stream()
    if run.rank == 0:
        run.save()


def _log(run: Run, means: dict[str, float]) -> None:
    """Print the means of the last steps of the first worker."""
    if run.rank == 0:
        where = {"at": time.strftime("%H:%M:%S"), "step": run.step_count, "clock": round(run.clock, 1)}
        rounded = {key: round(value, 4) for key, value in means.items()}
        print(json.dumps({**where, "images": run.images, **rounded}), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--minutes", type=float, default=14, help="wall time, start-up not counted")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    parser.add_argument("--start", type=Path, help="a mini-sam to go on from, or a mini for the image encoder")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 (CPUs without AVX512-BF16)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    plan = Plan(
        given.out,
        given.minutes * 60,
        workers=given.workers,
        seed=given.seed,
        start=given.start,
        fast=not given.float32,
    )
    if given.start and goes_on(given.start):
        plan = replace(plan, stages=plan.stages[-1:], muon_lr=0.007, adam_lr=6e-4)
    train(plan)


if __name__ == "__main__":
    main()
