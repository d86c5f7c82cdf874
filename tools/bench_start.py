"""Time commands that do little in fresh processes: python -m tools.bench_start [--rounds 5] [--against TREE].

Medians of CPU seconds (user and system), one thread, beside `import torch` in the same run, and optionally for another
tree of densevl, such as the one before a change. Python keeps its bytecode, as for an installed package. To see which
module costs the time, use `python -X importtime -m densevl ...`.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
TORCH = ("-c", "import torch")
SEGMENT = "segment {photo} --labels dog,cat,sky --out {out} --overwrite"
COMMANDS = (
    *("--help", "segment --help", "models", "models show mini", "recipes", "doctor"),
    *("segment no-such.jpg --labels dog", f"{SEGMENT} --model nonesuch"),
    *(f"{SEGMENT} --model photo", f"{SEGMENT} --model mini"),
)


def spent(arguments: list[str], tree: Path, folder: str) -> tuple[float, float]:
    """Return CPU and wall seconds of Python with these arguments, which may fail; bytecode is kept in the folder."""
    own = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": folder}
    surroundings = {**os.environ, **own, "PYTHONDONTWRITEBYTECODE": ""}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, *arguments], env=surroundings, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.monotonic() - began


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes of each")
    parser.add_argument("--against", type=Path, help="another tree of densevl, timed in turn with this one")
    parser.add_argument("--only", default="", help="commands that hold this text")
    given = parser.parse_args()
    trees = [*([given.against] if given.against else []), ROOT]
    commands = [command for command in COMMANDS if given.only in command]
    found: dict[tuple[str, Path], list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(noise).save(photo := Path(folder, "photo.jpg"))
        for turn in range(given.rounds + 1):
            for command in ("", *commands):
                words = command.format(photo=photo, out=Path(folder, "out")).split()
                for tree in trees if command else trees[-1:]:
                    taken = spent(["-m", "densevl", *words] if command else [*TORCH], tree, folder)
                    if turn:  # the first reads files that are cached for the next
                        found[command, tree].append(taken)
    torch_cpu = statistics.median(cpu for cpu, _ in found["", ROOT])
    for (command, tree), times in found.items():
        cpu, wall = (statistics.median(column) for column in zip(*times, strict=True))
        name = f"densevl {command}" if command else "import torch"
        where = f"  {tree}" if given.against else ""
        print(f"{cpu:6.2f} CPU s  {wall:6.2f} s  {cpu / torch_cpu:5.2f} of torch  {name}{where}", flush=True)


if __name__ == "__main__":
    main()
