"""Train "mini": python -m tools.mini.train --out DIR --minutes 60 --workers 2.

Workers are processes of one thread each; they render their own scenes and average their gradients (two of them are
faster than one process with two threads). A stopped run resumes from its last checkpoint when it is started again with
the same arguments. Log lines are JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

from tools.mini.model import MiniConfig
from tools.mini.run import Plan, Run
from tools.mini.sources import Sources, rendered

Probe = Callable[[Run], dict[str, float]]
LOG_EVERY = 100


def train(plan: Plan, sources: Sources = rendered, probe: Probe | None = None) -> None:
    """Run a plan to its end, or resume the run whose checkpoint lies in `plan.out`.

    Args:
        plan: of the run.
        sources: makes the scenes; tests pass their own.
        probe: measures the averaged weights at intervals (first worker only).
    """
    plan.out.mkdir(parents=True, exist_ok=True)
    if plan.workers == 1:
        _work(0, plan, sources, probe, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        multiprocessing.spawn(_work, (plan, sources, probe, meeting), nprocs=plan.workers)


def _work(rank: int, plan: Plan, sources: Sources, probe: Probe | None, meeting: str | None) -> None:
    torch.set_num_threads(1)
    if meeting:
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=plan.workers)
    run = Run(plan, sources, rank)
    _loop(run, plan, probe if rank == 0 else None)
    if meeting:
        dist.destroy_process_group()


def _loop(run: Run, plan: Plan, probe: Probe | None) -> None:
    while run.clock < plan.total:
        before = run.clock
        parts = run.step()
        if run.rank == 0 and run.step_count % LOG_EVERY == 0:
            _log(run, parts)
        if _passed(before, run.clock, plan.probe) and probe is not None:
            _log(run, {"probe": probe(run)})
        if _passed(before, run.clock, plan.checkpoint) and run.clock < plan.total:
            if run.rank == 0:
                run.save()
            run.restart_stream()
    if run.rank == 0:
        run.save()
        _log(run, {"probe": probe(run)} if probe else {})


def _passed(before: float, now: float, every: float) -> bool:
    return int(now // every) > int(before // every)


def _log(run: Run, values: dict[str, Any]) -> None:
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}
    scales = [round(float(s.detach().exp()), 1) for s in (run.learner.clip.logit_scale, run.learner.patch_scale)]
    where = {"step": run.step_count, "clock": round(run.clock, 1), "images": run.images, "px": run.config.image}
    print(json.dumps({"at": time.strftime("%H:%M:%S"), **where, "scales": scales, **rounded}), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--minutes", type=float, default=60, help="wall time, start-up not counted")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    parser.add_argument("--width", type=int, default=192, help="width of the image tower")
    parser.add_argument("--nouns", type=int, default=40, help="how many nouns of nouns.json are trained")
    parser.add_argument("--start", type=Path, help="go on from the weights of a mini, at its sizes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 (CPUs without AVX512-BF16)")
    given = parser.parse_args()
    from tools.mini.probe import Probe as StandardProbe

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chosen = {"workers": given.workers, "seed": given.seed, "nouns": given.nouns, "fast": not given.float32}
    total = given.minutes * 60
    if given.start:
        plan = Plan.going_on(given.out, total, given.start, **chosen)
    else:
        plan = Plan(given.out, total, config=MiniConfig(width=given.width), **chosen)
    train(plan, probe=StandardProbe(given.nouns))


if __name__ == "__main__":
    main()
