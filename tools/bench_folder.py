"""What the loop over a folder costs, and whether a run that is killed again and again leaves the same files.

    python -m tools.bench_folder --images 1000 --bad 10 --kills 20

Small noisy pictures are written, some of them cut. `densevl segment` does them undisturbed, then in another folder,
killed by SIGKILL whenever so many results are there, and started again. Then both are compared byte for byte, and the
loop is timed against a bare `for image in images: segment(image).save(...)` and a bare `segment.many(images)`, which
shares passes as the loop does, in CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LABELS = "penguin,elephant,house"


def make_images(folder: Path, count: int, bad: int, side: int = 64) -> None:
    """Write pictures of `side` pixels in subfolders of a hundred; `bad` of them, evenly spread, are cut."""
    rng = np.random.default_rng(0)
    cut = {round((number + 0.5) * count / bad) for number in range(bad)}
    for number in range(count):
        path = folder / f"{number // 100:02d}" / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = rng.integers(0, 255, (8, 8, 3), np.uint8).repeat(side // 8, 0).repeat(side // 8, 1)
        Image.fromarray(blocks).save(path)
        if number in cut:
            path.write_bytes(path.read_bytes()[:100])


def command(photos: Path, out: Path, *options: str) -> list[str]:
    """The command that segments them."""
    given = [str(photos), "--labels", LABELS, "--model", "mini", "--out", str(out), "--sheet", *options]
    return [sys.executable, "-m", "densevl", "segment", *given]


def killed_run(photos: Path, out: Path, count: int, kills: int, seed: int = 0) -> int:
    """Start and kill the command until it was killed so often, then let it end; its exit code."""
    rng = random.Random(seed)
    for limit in sorted(rng.randrange(count) for _ in range(kills)):
        process = subprocess.Popen(
            command(photos, out, "--quiet"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and sum(1 for _ in out.rglob("*_overlay.png")) < limit:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    return subprocess.run(command(photos, out, "--quiet"), capture_output=True, check=False).returncode


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def overhead(photos: Path, work: Path, rounds: int) -> dict[str, float]:
    """Median CPU seconds of one call after the other, of the bare `many`, and of `to_files`, in turn."""
    import torch

    from densevl.errors import ImageError
    from densevl.images import find_images
    from densevl.pipelines.folder.loop import to_files
    from densevl.pipelines.folder.tasks import segmenting
    from densevl.pipelines.segmentation.segmenter import Segmenter

    torch.set_num_threads(1)
    segment = Segmenter("mini")
    labels = LABELS.split(",")
    found = find_images(photos)

    def target(out: Path, image: str) -> Path:
        return out / Path(image).relative_to(photos).with_suffix(".png")

    def calls(out: Path) -> None:
        for image in found.paths:
            try:
                segment(image, labels).save(target(out, image))
            except ImageError:
                continue

    def many(out: Path) -> None:
        for result in segment.many(found.paths, labels, on_error=lambda image, error: None):
            result.save(target(out, result.meta["image"]))

    def ours(out: Path) -> None:
        to_files(segmenting(segment, labels), find_images(photos), out)

    ways: Sequence[tuple[str, Callable[[Path], Any]]] = (("calls", calls), ("many", many), ("ours", ours))
    taken: dict[str, list[float]] = {name: [] for name, _ in ways}
    for number in range(rounds + 1):
        for name, way in ways if number % 2 else tuple(reversed(ways)):
            started = time.process_time()
            way(work / f"{name}-{number}")
            if number:  # the first warms up
                taken[name].append(time.process_time() - started)
    return {name: statistics.median(times) for name, times in taken.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module text; exit code 1 if the two folders differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--bad", type=int, default=10)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5, help="of the timing; 0 for none")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        photos = work / "photos"
        make_images(photos, given.images, given.bad)
        whole = subprocess.run(command(photos, work / "whole"), capture_output=True, text=True, check=False)
        code = killed_run(photos, work / "killed", given.images, given.kills)
        first, second = content(work / "whole"), content(work / "killed")
        told = {
            "images": given.images,
            "kills": given.kills,
            "exit_codes": [whole.returncode, code],
            "error_rows": [part["errors.jsonl"].count(b"\n") for part in (first, second) if "errors.jsonl" in part],
            "files": len(first),
            "different": sorted(name for name in {*first, *second} if first.get(name) != second.get(name))[:5],
        }
        if given.rounds:
            seconds = overhead(photos, work, given.rounds)
            told |= seconds | {f"lost_to_{name}": seconds["ours"] / seconds[name] - 1 for name in ("calls", "many")}
        sys.stdout.write(json.dumps(told) + "\n")
    return int(bool(told["different"]))


if __name__ == "__main__":
    sys.exit(main())
