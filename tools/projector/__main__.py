"""The command: python -m tools.projector scenes | features | train | compare | distil; see docs/projectors.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from densevl import devices
from densevl.backbones import load_backbone
from densevl.backbones.projected.projector import write as content_of
from densevl.backbones.projected.towers import MINILM, ClipVision, Words, load_vision, stamp
from densevl.errors import DensevlError
from densevl.files import atomic_write
from tools.arguments import THREADS, Parser, add_options, add_scenes, chosen, new_file, status
from tools.projector import pairs
from tools.projector.distil import HeadPlan, distil, joined, look
from tools.projector.train import Plan, alikeness, train


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m tools.projector", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_scenes(commands, "render scenes with captions to train on", count=2000, least=2, seed=160_000)

    kept = commands.add_parser("features", help="store what two frozen towers make of pictures and their captions")
    kept.add_argument("--images", type=Path, required=True, help="a folder")
    kept.add_argument("--captions", type=Path, help=f"a sentence by file name, JSON (default {pairs.CAPTIONS} in it)")
    kept.add_argument("--vision", default="mini", help="a CLIP, or proxy:NAME (default %(default)s)")
    kept.add_argument("--text", default=MINILM, help=f"{MINILM}, or a CLIP (default %(default)s)")
    kept.add_argument("--out", type=Path, required=True, help="a new .safetensors file")

    trains = commands.add_parser("train", help="train projectors on stored pairs")
    trains.add_argument("--pairs", type=Path, required=True)
    trains.add_argument("--out", type=Path, required=True, help="a new .safetensors file, for projected:FILE")
    heads = commands.add_parser("distil", help="train a head on a frozen tower to give a CLIP's patches (SAM-CLIP)")
    heads.add_argument("--images", type=Path, required=True, help="a folder")
    heads.add_argument("--student", default="proxy:mini-sam", help="the frozen tower (default %(default)s)")
    heads.add_argument("--teacher", default="mini", help="a CLIP (default %(default)s)")
    heads.add_argument("--out", type=Path, required=True, help="a new .safetensors file, for projected:FILE")
    add_options(trains, Plan)
    add_options(heads, HeadPlan)

    rated = commands.add_parser(
        "compare", help="linear CKA of the two towers in each file of pairs; higher joins better"
    )
    rated.add_argument("--pairs", type=Path, nargs="+", required=True)

    for command in (kept, trains, heads):
        command.add_argument("--threads", type=THREADS, default=1)
    for command in (kept, heads):
        command.add_argument("--device", help="cpu or cuda; chosen if left out")
    return parser


def _features(given: argparse.Namespace) -> None:
    load = partial(load_backbone, device=devices.choose(given.device))
    captions = pairs.read_captions(given.captions or given.images / pairs.CAPTIONS)
    vision, words = load_vision(given.vision, load, given.device), Words(given.text, load)
    image, text = pairs.encode(given.images, captions, vision, words)
    pairs.write(given.out, pairs.Pairs(image, text, given.vision, given.text, stamp(vision, words)))
    print(f"{len(image)} pairs, {image.shape[1]} and {text.shape[1]} wide, CKA {alikeness(image, text):.3f}")


def _train(given: argparse.Namespace) -> None:
    plan = chosen(Plan, given)
    joined, losses = train(pairs.read(given.pairs), plan)
    atomic_write(given.out, content_of(joined))
    print(f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {plan.steps} steps; use it as projected:{given.out}")


def _distil(given: argparse.Namespace) -> None:
    load = partial(load_backbone, device=devices.choose(given.device))
    student, teacher = load_vision(given.student, load, given.device), load_vision(given.teacher, load)
    if not isinstance(teacher, ClipVision):
        raise DensevlError(f"'{given.teacher}' has no words; the teacher is a CLIP such as mini")
    plan = chosen(HeadPlan, given)
    head, losses = distil(look(given.images, student, teacher), plan)
    names, words = (given.student, given.teacher), Words(given.teacher, load)
    atomic_write(given.out, content_of(joined(head, names, student, teacher, words)))
    print(f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {plan.steps} steps; use it as projected:{given.out}")


def _run(arguments: Sequence[str] | None) -> None:
    given = _parser().parse_args(arguments)
    if given.command == "scenes":
        pairs.render(given.out, given.count, given.size, given.seed)
        print(f"{given.count} scenes and {pairs.CAPTIONS} lie in {given.out}")
    elif given.command == "compare":
        for path in given.pairs:
            own = pairs.read(path)
            print(f"{alikeness(own.image, own.text):.3f}  {own.vision} + {own.words}  {path}")
    else:
        new_file(given.out)
        torch.set_num_threads(given.threads)
        {"features": _features, "train": _train, "distil": _distil}[given.command](given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status; see `status`."""
    return status(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
