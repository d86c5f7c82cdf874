"""Evaluate an experiment: python tools/test.py CONFIG --work-dir DIR; with torchrun, --launcher pytorch.

CONFIG is a file of configs/, a Python program that is executed. A killed run goes on where it was when it is started
again with the same work folder, with any number of processes.
"""

from __future__ import annotations

import argparse
import ast
import sys
from typing import Any

from densevl.errors import DensevlError
from densevl.evaluation import distributed
from densevl.evaluation.config import load_experiment
from densevl.evaluation.evaluate import evaluate
from densevl.evaluation.runner import SAVE_EVERY


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", help="a file of configs/")
    parser.add_argument("--work-dir", required=True, help="gets the report and the state for going on after a kill")
    parser.add_argument("--launcher", choices=distributed.LAUNCHERS, default="none")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of the experiment to change"
    )
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs counted")
    parser.add_argument("--dump", action="store_true", help="keep every prediction as a 16-bit PNG")
    parser.add_argument("--save-every", type=float, default=SAVE_EVERY, metavar="SECONDS")
    parser.add_argument("--threads", type=int, help="torch threads of each process")
    given = parser.parse_args(arguments)
    try:
        if given.threads:
            import torch

            torch.set_num_threads(given.threads)
        experiment = load_experiment(given.config, dict(_change(text) for text in given.set))
        distributed.join(given.launcher)
        outcome, files = evaluate(
            experiment, given.work_dir, fresh=given.fresh, dump=given.dump, save_every=given.save_every
        )
        if distributed.rank() == 0:
            print(f"{outcome.headline}, report in {files[0]}")
    except DensevlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        distributed.leave()
    return 0


def _change(text: str) -> tuple[str, Any]:
    """FIELD=VALUE, the value as Python writes it, or a plain string."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


if __name__ == "__main__":
    sys.exit(main())
