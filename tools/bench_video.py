"""Measure the flicker of a video's labels by the smoothing factor, and check that memory stays flat.

    python -m tools.bench_video
    python -m tools.bench_video --frames 400 --smooth 0.5

The camera pans over a still scene of demo/, and each frame has its own noise. Flicker: pixels of the scene whose label
differs from the frame before, with the motion removed. Agreement: pixels with the same label as in the still scene.
Memory: peak of resident memory after the first tenth of the frames, and at the end.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from densevl import Segmenter
from densevl.images import read_image, resize
from densevl.pipelines.video.result import VideoSegmenter

SCENE = Path(__file__).parents[1] / "demo" / "scenes" / "wood.png"
LABELS = "dog, elephant, penguin, fish, car, bicycle, house, pizza, sunflower, cactus, mushroom, football"
HEIGHT, WIDTH, STEP = 192, 256, 8  # pixels of a frame, and of a step of the camera


def write(path: Path, still: np.ndarray, frames: int) -> list[int]:
    """Write the pan, and return where each frame begins."""
    rng, span = np.random.default_rng(0), still.shape[1] - WIDTH
    places = [span - abs(span - number * STEP % (2 * span)) for number in range(frames)]
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"crf": "12"})
        video.height, video.width, video.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        video.time_base = Fraction(1, 25)
        for left in places:
            noise = rng.normal(0, 12, (HEIGHT, WIDTH, 3))
            rgb = (still[:, left : left + WIDTH] + noise).clip(0, 255).astype(np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        out.mux(video.encode())
    return places


def peak() -> float:
    """Return the peak of resident memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Write the pan, segment it with each factor, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--smooth", type=float, nargs="+", default=[0.0, 0.3, 0.5, 0.7, 0.85])
    given = parser.parse_args()
    still = resize(read_image(SCENE), (HEIGHT, 640))
    segmenter = Segmenter("mini", background="none")
    expected = segmenter(still, LABELS).labels
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pan.mp4")
        places = write(path, still, given.frames)
        for smooth in given.smooth:
            started, changed, agreed, early = time.process_time(), list[float](), list[float](), 0.0
            before: tuple[int, np.ndarray] | None = None
            for number, (_, result, _) in enumerate(VideoSegmenter(segmenter, smooth=smooth)(path, LABELS).frames()):
                left, labels = places[number], result.labels
                agreed.append(float((labels == expected[:, left : left + WIDTH]).mean()))
                if before is not None:
                    shift = left - before[0]
                    ours = labels[:, max(0, -shift) : WIDTH - max(0, shift)]
                    theirs = before[1][:, max(0, shift) : WIDTH - max(0, -shift)]
                    changed.append(float((ours != theirs).mean()))
                before = left, labels
                early = peak() if number == given.frames // 10 else early
            each = 1000 * (time.process_time() - started) / given.frames
            print(
                f"smooth {smooth}: flicker {100 * np.mean(changed):.1f} %, agreement {100 * np.mean(agreed):.1f} %, "
                f"{each:.0f} CPU ms a frame, peak {early:.0f} and {peak():.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
