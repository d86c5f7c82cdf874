"""The command: python -m tools.clipself scenes | train | evaluate; see docs/clipself.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from densevl.errors import DensevlError
from densevl.fewshot.heads.prolip import AVERAGES
from densevl.images import list_images
from tools.arguments import COUNT, RATE, SEED, THREADS, Parser, add_scenes, number, status
from tools.clipself.context import SOURCES
from tools.clipself.models import load
from tools.clipself.pixel import RECIPE, PixelRun
from tools.clipself.run import STUDENT, Plan, Run
from tools.clipself.train import Budget, train

SMALL: dict[str, dict[str, float]] = {"mini": {"rate": 1e-3, "blocks": 2}}
"""Settings of models too small for the paper's: training more blocks at this rate forgets what they know."""
MASKS: dict[str, Any] = {"recipe": RECIPE, "rate": 2e-4, "regions": 1, "grid": 1}
"""Settings of PixelCLIP, whose teacher reads no crops."""

NEEDS = {"clusters": "masks", "context_source": "context", "context_weight": "context"}
"""Options that require another."""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m tools.clipself", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_scenes(commands, "render scenes without labels to train on", count=3000, least=1, seed=150_000)

    trains = commands.add_parser("train", help="distil a model on a folder of pictures")
    trains.add_argument("--images", type=Path, required=True, help="folder of unlabelled pictures")
    trains.add_argument("--out", type=Path, required=True, help="folder of checkpoint and student.safetensors")
    trains.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    budget = trains.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=number(float, above=0), help="time of updates")
    budget.add_argument("--steps", type=COUNT)
    trains.add_argument("--recipe", help="of the dense features that learn (default maskclip; pixelclip with --masks)")
    trains.add_argument("--masks", help="teach by masks in place of crops (PixelCLIP): a proposer such as mini-sam")
    trains.add_argument("--clusters", type=number(int, 2), help="of those masks (default 64)")
    trains.add_argument("--context", help="also teach how patches are alike (DeCLIP): mini-sam, dino_vitb8 or a file")
    trains.add_argument("--context-weight", type=number(float, above=0), help="of that loss (default 0.1)")
    trains.add_argument("--context-source", choices=SOURCES, help="projections that learn it (default q)")
    trains.add_argument(
        "--average", choices=AVERAGES, help="of the weights over training that is written (default none)"
    )
    trains.add_argument("--rate", type=RATE, help="highest learning rate (default 1e-5; mini 1e-3; with --masks 2e-4)")
    trains.add_argument(
        "--blocks", type=number(int, 0), help="so many last ones learn, 0: the whole tower (default 0; mini 2)"
    )
    for name, kind, about in (
        ("batch", COUNT, "pictures a step"),
        ("regions", COUNT, "at most so many a picture"),
        ("grid", number(int, 0, 64), "most rows and columns of regions; 0 chooses by the patches"),
        ("side", number(int, 0, 2048), "of the student's input; 0 is the model's own"),
        ("seed", SEED, "everything random follows from it"),
    ):
        trains.add_argument(f"--{name}", type=kind, help=f"{about} (default {getattr(Plan, name)})")
    trains.add_argument("--save-every", type=COUNT, default=50, help="steps between checkpoints (default %(default)s)")

    rates = commands.add_parser("evaluate", help="region accuracy before and after on the rendered benchmark")
    rates.add_argument("--benchmark", type=Path, required=True, help="folder of `tools.render benchmark`")
    rates.add_argument("--weights", dest="students", nargs="+", type=Path, required=True, help="student files")
    rates.add_argument("--scenes", type=COUNT, default=200)

    for command in (trains, rates):
        command.add_argument("--model", default="mini", help="the teacher (default %(default)s)")
        command.add_argument("--from", dest="source", type=Path, help="the teacher's weights, if not its published")
        command.add_argument("--device", help="cpu or cuda; chosen if left out")
        command.add_argument("--threads", type=THREADS, default=1)
    return parser


def _train(given: argparse.Namespace) -> None:
    files = list_images(given.images)
    values = {field.name: getattr(given, field.name, None) for field in fields(Plan)}
    chosen = {name: value for name, value in values.items() if value is not None}
    for name, other in NEEDS.items():
        if name in chosen and not chosen.get(other):
            raise DensevlError(f"--{name.replace('_', '-')} is of --{other}; name one too, such as --{other} mini-sam")
    own = {**SMALL.get(given.model, {}), **(MASKS if given.masks else {})}
    plan = Plan(**{**own, **chosen})
    run = (PixelRun if plan.masks else Run)(
        load(given.model, given.source, given.device), files, plan, given.out, source=given.source
    )
    train(run, Budget(given.steps, given.minutes), resume=given.resume, save_every=given.save_every)
    print(f"{run.step} steps in {run.seconds / 60:.1f} minutes; the student lies in {given.out / STUDENT}")


def _evaluate(given: argparse.Namespace) -> None:
    from tools.bench_regions import Benchmark
    from tools.clipself.evaluate import compare

    if not (given.benchmark / "scenes" / "instances.json").is_file():
        raise DensevlError(
            f"{given.benchmark} is not a rendered benchmark; make one with python -m tools.render benchmark --out DIR"
        )
    models = [load(given.model, path, given.device) for path in (given.source, *given.students)]
    print(f"| region embedding | before | {' | '.join(str(path) for path in given.students)} |")
    print("|---" * (len(models) + 1) + "|")
    for name, figures in compare(models, Benchmark(given.benchmark, "scenes", given.scenes)).items():
        print(f"| {name} | {' | '.join(f'{figure:.1f}' for figure in figures)} |")


def _run(arguments: Sequence[str] | None) -> None:
    given = _parser().parse_args(arguments)
    if given.command == "scenes":
        from tools.clipself.scenes import write

        write(given.out, given.count, given.size, given.seed)
        print(f"{given.count} scenes lie in {given.out}")
        return
    torch.set_num_threads(given.threads)
    _train(given) if given.command == "train" else _evaluate(given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; see `status`."""
    return status(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
