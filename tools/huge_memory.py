"""Measure peak memory of segmenting huge pictures block by block, and compare the result with the whole picture's.

    python -m tools.huge_memory --height 20000 --width 20000 --labels 150
    python -m tools.huge_memory --height 6000 --width 6000 --labels 150 --compare

A picture of that size is composed from the scenes of demo/, with noise, as a tiled TIFF. `mini` segments it in its own
process, whose peak of resident memory is printed; with --compare another process segments the whole picture at once,
and differing pixels are counted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from densevl.images import read_image, resize

ROOT = Path(__file__).parents[1]
SIDE = 512
PEAK = """
import sys, time
from pathlib import Path
def peak():  # not getrusage's, which is no less than that of the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
"""
BLOCKS = """
import time
from densevl.pipelines.rasters.result import BlockSegmenter
started = time.process_time()
BlockSegmenter("mini", background="none")(sys.argv[1], sys.argv[3].split(",")).save(sys.argv[2])
print(time.process_time() - started, peak())
"""
WHOLE = """
import time
import rasterio
from densevl import Segmenter
from densevl.images import read_image
started = time.process_time()
result = Segmenter("mini", background="none")(read_image(sys.argv[1]), sys.argv[3].split(","))
print(time.process_time() - started, peak())
with rasterio.open(sys.argv[2]) as file:
    print(int((file.read(1) != result.labels.astype("uint8")).sum()))
"""


def draw(path: Path, height: int, width: int) -> None:
    """Write scenes side by side, each with its own noise."""
    import rasterio

    rng = np.random.default_rng(0)
    scenes = [resize(read_image(scene), (SIDE, SIDE)) for scene in sorted((ROOT / "demo" / "scenes").glob("*.png"))]
    size = {"height": height, "width": width, "count": 3, "dtype": "uint8", "photometric": "RGB"}
    tiles = {"tiled": True, "blockxsize": SIDE, "blockysize": SIDE, "compress": "deflate", "zlevel": 1}
    with rasterio.open(path, "w", driver="GTiff", **size, **tiles) as file:
        for top in range(0, height, SIDE):
            for left in range(0, width, SIDE):
                scene = scenes[rng.integers(len(scenes))] ^ rng.integers(0, 8, (SIDE, SIDE, 3), np.uint8)
                part = scene[: height - top, : width - left].transpose(2, 0, 1)
                rows, cols = (top, top + part.shape[1]), (left, left + part.shape[2])
                file.write(part, window=(rows, cols))


def main() -> None:
    """Draw, run, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("height", 20_000), ("width", 20_000), ("labels", 150)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--compare", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        picture, out = Path(folder, "picture.tif"), Path(folder, "labels.tif")
        draw(picture, given.height, given.width)
        labels = ",".join(f"thing {number}" for number in range(given.labels))
        for name, code in (("block by block", BLOCKS), *([("at once", WHOLE)] if given.compare else [])):
            command = [sys.executable, "-c", PEAK + code, str(picture), str(out), labels]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seconds, mib, *differing = done.stdout.split()
            told = f", {differing[0]} pixels differ" if differing else ""
            print(
                f"{given.height} x {given.width}, {name}: peak {float(mib):.0f} MiB, {float(seconds):.0f} CPU s{told}"
            )


if __name__ == "__main__":
    main()
