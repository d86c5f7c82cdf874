"""Measure the cost of the loop over a folder, and check that a run that is killed repeatedly leaves the same files.

    python -m tools.bench_folder killed --images 1000 --bad 10 --kills 20

Writes small noisy pictures, some of them truncated. `densevl segment` does them undisturbed, then in another folder,
where SIGKILL stops it at set numbers of results and it is started again. Then both are compared byte for byte.

    python -m tools.bench_folder bad --images 300 --bad 3

The loop does small pictures with `mini`, once all sound and once with some truncated. Reported are the CPU seconds per
sound picture, the least of alternating rounds, and the relative extra of the second.

    python -m tools.bench_folder speed --models mini photo ViT-B-16 ViT-B-16:int8 --size medium --threads 1

The loop segments and writes photos of demo/images, and so does a bare `for image in images: segment(image).save(...)`.
The tower alone passes over the same windows, cut beforehand, in the same batches as the loop: a lower bound for these
photos. Rounds of all alternate. Seconds per image, medians and minima, are wall time, CPU time, and the CPU time of the
thread that calls the tower; `of_bare` is the bare tower's over the loop's. With one thread of torch, the last one is
the wall time with a spare core for reading and writing. `clipseg` among the models is transformers' CLIPSeg of the
published size with random weights, called as in its documentation, with the photo once for each label.
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

from tools.bench_many import SIZES, photos

LABELS = "penguin,elephant,house"


def make_images(folder: Path, count: int, bad: int, side: int = 64) -> None:
    """Write pictures of `side` pixels in subfolders of a hundred; `bad` of them, evenly spread, are truncated."""
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
    """Return the command that segments them."""
    given = [str(photos), "--labels", LABELS, "--model", "mini", "--out", str(out), "--sheet", *options]
    return [sys.executable, "-m", "densevl", "segment", *given]


def killed_run(photos: Path, out: Path, count: int, kills: int, seed: int = 0) -> int:
    """Start and kill the command a number of times, then let it end; return its exit code."""
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
    """Return every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CLOCKS = {"clock": time.perf_counter, "cpu": time.process_time, "caller": time.thread_time}


def speed(name: str, paths: Sequence[Path], work: Path, rounds: int) -> dict[str, Any]:
    """Time the ways of one model; see the module text."""
    ways = clipseg(paths, work) if name == "clipseg" else ours(name, paths, work)
    taken: dict[str, list[list[float]]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way in sorted(ways, reverse=bool(turn % 2)):
            begun = [now() for now in CLOCKS.values()]
            ways[way](work / f"{name.replace(':', '-')}-{way}-{turn}")
            spent = [(now() - start) / len(paths) for now, start in zip(CLOCKS.values(), begun, strict=True)]
            if turn:  # the first warms up
                taken[way].append(spent)
    told: dict[str, Any] = {"model": name}
    for index, what in enumerate(CLOCKS):
        for kind, how in (("median", statistics.median), ("least", min)):
            own = {way: how([spent[index] for spent in spents]) for way, spents in taken.items()}
            told[f"{what}_{kind}"] = {way: round(value, 4) for way, value in own.items()}
            if "bare" in own:
                told[f"{what}_{kind}"]["of_bare"] = round(own["bare"] / own["loop"], 3)
    return told


def ours(name: str, paths: Sequence[Path], work: Path) -> dict[str, Callable[[Path], Any]]:
    """Return the loop, one call after the other, and the tower alone."""
    import torch

    from densevl import Segmenter
    from densevl.benchmarking.random_model import random_model
    from densevl.images import find_images
    from densevl.pipelines.folder.loop import to_files
    from densevl.pipelines.folder.tasks import segmenting
    from densevl.pipelines.many import batch_size

    model, _, precision = name.partition(":")
    given = model if model in ("mini", "photo") else random_model(model, None)
    segment = Segmenter(given, background="none", precision=precision or None)
    windows = torch.cat([segment.prepare(path).parts for path in paths])
    size = batch_size(None, segment.backbone.device, windows.shape[2] * windows.shape[3])
    labels = LABELS.split(",")

    def bare(out: Path) -> None:
        for start in range(0, len(windows), size):
            segment.run(windows[start : start + size])

    def calls(out: Path) -> None:
        for path in paths:
            segment(path, labels).save(out / f"{path.stem}.png")

    def loop(out: Path) -> None:
        to_files(segmenting(segment, labels), find_images(list(map(str, paths))), out)

    return {"bare": bare, "calls": calls, "loop": loop}


def with_bad(work: Path, images: int, bad: int, rounds: int) -> int:
    """Time the loop over sound pictures, and over as many with some truncated."""
    from densevl import Segmenter
    from densevl.images import find_images
    from densevl.pipelines.folder.loop import to_files
    from densevl.pipelines.folder.tasks import segmenting

    segment = Segmenter("mini", background="none")
    cut = {"sound": 0, "some bad": bad}
    taken: dict[str, list[float]] = {name: [] for name in cut}
    for name, count in cut.items():
        make_images(work / name, images, count)
    for turn in range(rounds + 1):
        for name in sorted(cut, reverse=bool(turn % 2)):
            begun = time.process_time()
            report = to_files(segmenting(segment, LABELS.split(",")), find_images(work / name), work / f"{name}-{turn}")
            if turn:  # the first warms up
                taken[name].append((time.process_time() - begun) / len(report.done))
    least = {name: min(seconds) for name, seconds in taken.items()}
    more = least["some bad"] / least["sound"] - 1
    told = {"images": images, "bad": bad, "cpu_each": {name: round(each, 5) for name, each in least.items()}}
    sys.stdout.write(json.dumps({**told, "more": round(more, 4)}) + "\n")
    return 0


def clipseg(paths: Sequence[Path], work: Path) -> dict[str, Callable[[Path], Any]]:
    """Run CLIPSeg of the size of rd64 in a naive loop."""
    import torch
    from torch.nn.functional import interpolate
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    from densevl.images import encode_png

    tower = {"image_size": 352, "patch_size": 16, "hidden_size": 768, "intermediate_size": 3072}
    model = CLIPSegForImageSegmentation(CLIPSegConfig(vision_config=tower)).eval()
    words = torch.randint(1, 40000, (len(LABELS.split(",")), 7))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    @torch.no_grad()
    def calls(out: Path) -> None:
        out.mkdir()
        for path in paths:
            with Image.open(path) as file:
                photo = file.convert("RGB")
            pixels = torch.from_numpy(np.array(photo.resize((352, 352), Image.Resampling.BILINEAR))).float()
            pixels = ((pixels / 255 - mean) / std).permute(2, 0, 1).expand(len(words), -1, -1, -1)
            logits = model(input_ids=words, pixel_values=pixels).logits
            grown = interpolate(logits[None], photo.size[::-1], mode="bilinear")[0]
            (out / f"{path.stem}.png").write_bytes(encode_png(Image.fromarray(grown.argmax(0).byte().numpy())))

    return {"calls": calls}


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module text. The exit code is 1 if the two folders differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    kills = commands.add_parser("killed")
    kills.add_argument("--images", type=int, default=1000)
    kills.add_argument("--bad", type=int, default=10)
    kills.add_argument("--kills", type=int, default=20)
    broken = commands.add_parser("bad")
    broken.add_argument("--images", type=int, default=300)
    broken.add_argument("--bad", type=int, default=3)
    broken.add_argument("--rounds", type=int, default=5)
    speeds = commands.add_parser("speed")
    speeds.add_argument("--models", nargs="+", default=["mini", "photo", "ViT-B-16"])
    speeds.add_argument("--images", type=int, default=16)
    speeds.add_argument("--size", choices=SIZES, default="medium", help="of the photos")
    speeds.add_argument("--threads", type=int, default=1, help="of torch")
    speeds.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        if given.command == "killed":
            return killed(work, given.images, given.bad, given.kills)
        import torch

        if given.command == "bad":
            torch.set_num_threads(1)
            return with_bad(work, given.images, given.bad, given.rounds)
        torch.set_num_threads(given.threads)
        paths = photos(work, SIZES[given.size], given.images)
        for name in given.models:
            row = {"threads": given.threads, "size": SIZES[given.size], **speed(name, paths, work, given.rounds)}
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
    return 0


def killed(work: Path, images: int, bad: int, kills: int) -> int:
    """Compare an undisturbed run with one that was killed repeatedly; return 1 if they differ."""
    pictures = work / "photos"
    make_images(pictures, images, bad)
    whole = subprocess.run(command(pictures, work / "whole"), capture_output=True, text=True, check=False)
    code = killed_run(pictures, work / "killed", images, kills)
    first, second = content(work / "whole"), content(work / "killed")
    told = {
        "images": images,
        "kills": kills,
        "exit_codes": [whole.returncode, code],
        "error_rows": [part["errors.jsonl"].count(b"\n") for part in (first, second) if "errors.jsonl" in part],
        "files": len(first),
        "different": sorted(name for name in {*first, *second} if first.get(name) != second.get(name))[:5],
    }
    sys.stdout.write(json.dumps(told) + "\n")
    return int(bool(told["different"]))


if __name__ == "__main__":
    sys.exit(main())
