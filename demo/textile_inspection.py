"""Inspect woven textile by a few examples: is it normal, is the whole weave off, or is there a small flaw, and where?

    pip install conformal-clip-data
    python demo/textile_inspection.py [--model mini] [--examples 25] [--test 25] [--picture textile.jpg]

The images are the simulated textiles of Megahed et al., arXiv 2501.12596 (MIT licence): 1000 normal ones, 500 with a
global defect (the weave's parameters are off by 5 %) and 500 with a local one, a dozen pixels wide. Examples,
calibration images and test images are disjoint, with twice as many normal ones as of each defect, as in the authors'
own example. Both methods use one model:

- the whole image is compared with examples of normal images and global defects (`FewShot`);
- a small flaw does not show in an embedding of the whole image, so a memory of normal patches finds the strangest place
  (`AnomalyDetector`, fed at twice the size in tiles), and that region is compared with those of the examples.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import densevl
from densevl.drawing import contact_sheet
from densevl.images import read_image
from densevl.pipelines.anomaly.detector import AnomalyDetector
from densevl.pipelines.fewshot.classifier import FewShot

SOUND, GLOBAL, LOCAL = KINDS = ("sound", "global", "local")
REMEMBERED = 3  # normal images in the memory of patches
BOX = 32  # pixels, side of the region that is judged
SCALE = 2  # enlargement of images for the detector
Region = tuple[int, int, int, int]


def images(data: Path | None, start: int, count: int) -> dict[str, list[Path]]:
    """Return files by kind, `count` of each defect and twice as many normal ones, after skipping `start` (or twice)."""
    if data is None:
        try:
            from conformal_clip_data import textile_simulated_root
        except ImportError:
            raise SystemExit("the images come with a package: pip install conformal-clip-data") from None
        data = textile_simulated_root()
    found = {}
    for kind, folder in zip(KINDS, ("nominal", "global", "local"), strict=True):
        many = 2 if kind == SOUND else 1
        found[kind] = sorted((data / folder).glob("*.jpg"))[many * start : many * (start + count)]
    return found


def patch_detector(backbone: Any, sound: list[Path]) -> AnomalyDetector:
    """Create a memory of patches after the first third of the blocks, where they still show how fine a texture is."""
    tower, patch = getattr(backbone, "tower", None), backbone.patch_size
    tile = None if tower is None else min(tower.image_size) // patch * patch
    side = SCALE * read_image(sound[0]).shape[0] // patch * patch
    layers = {"layers": (1 / 3,), "stage": "block"} if tower is not None else {}
    detect = AnomalyDetector(
        backbone, "dino", options={"augment": "none", "top": 0.001, "most": 10**6, **layers}, size=side, tile=tile
    )
    return detect.fit(sound)


def strangest(result: Any) -> Region:
    """Return the box around the peak of a map, inside the image."""
    height, width = result.image.shape[:2]
    peak = result.facts()["peak"]
    left = int(min(max(peak["x"] - BOX / 2, 0), width - BOX))
    top = int(min(max(peak["y"] - BOX / 2, 0), height - BOX))
    return left, top, left + BOX, top + BOX


def cut(result: Any) -> np.ndarray:
    """Return the pixels of that box."""
    left, top, right, bottom = strangest(result)
    return np.ascontiguousarray(result.image[top:bottom, left:right])


def chance(verdict: Any, name: str) -> float:
    """Return the probability of a class."""
    return float(verdict.probabilities[verdict.names.index(name)])


def main() -> None:
    """Fit, calibrate, test, print, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="mini, photo, or any CLIP, such as ViT-B-16/openai")
    parser.add_argument("--data", type=Path, help="folder with nominal, global and local, without the package")
    parser.add_argument("--examples", type=int, default=25, help="of each defect, and to calibrate on")
    parser.add_argument("--test", type=int, default=25, help="test images of each defect")
    parser.add_argument("--picture", type=Path, default=Path("densevl-out/textile.jpg"))
    options = parser.parse_args()
    backbone = densevl.load_backbone(options.model)
    count = options.examples
    examples, held_out = (images(options.data, start, count) for start in (0, count))
    test = images(options.data, 2 * count, options.test)

    whole = FewShot(backbone, "exemplars").fit({kind: examples[kind] for kind in (SOUND, GLOBAL)})
    whole.calibrate({kind: held_out[kind] for kind in (SOUND, GLOBAL)})
    detect = patch_detector(backbone, examples[SOUND][:REMEMBERED])
    examples[SOUND] = examples[SOUND][REMEMBERED:]  # remembered images look more normal than new ones
    regions = [
        {kind: [cut(result) for result in detect.many(part[kind])] for kind in (SOUND, LOCAL)}
        for part in (examples, held_out)
    ]
    local = FewShot(backbone, "exemplars").fit(regions[0]).calibrate(regions[1])

    started, judged = time.perf_counter(), []
    for kind in KINDS:
        for result in detect.many(test[kind]):
            at = strangest(result)
            of_all, of_part = whole(result.image), local(result.image, boxes=[at]).regions[0]
            p = {GLOBAL: chance(of_all, GLOBAL)}
            p |= {name: chance(of_all, SOUND) * chance(of_part, name) for name in (SOUND, LOCAL)}
            judged.append((kind, max(p, key=p.__getitem__), max(p.values()), result, at))
    seconds = (time.perf_counter() - started) / len(judged)

    print(f"model {backbone.name}; {2 * count} sound examples and {count} of each defect, as many to calibrate on")
    for kind in KINDS:
        hits = [verdict == kind for truth, verdict, *_ in judged if truth == kind]
        print(f"{kind:7} {sum(hits):3} of {len(hits)} right")
    right = np.array([truth == verdict for truth, verdict, *_ in judged])
    sure = np.array([confidence for _, _, confidence, *_ in judged])
    print(f"accuracy {right.mean():.1%}, mean confidence {sure.mean():.1%}")
    if (sure > 0.9).any():
        print(f"surer than 0.9: {(sure > 0.9).mean():.0%} of the images, {right[sure > 0.9].mean():.1%} of them right")
    defect = np.array([(truth == SOUND) == (verdict == SOUND) for truth, verdict, *_ in judged])
    scores = {kind: np.array([r.score for truth, *_, r, _ in judged if truth == kind]) for kind in (SOUND, LOCAL)}
    rank = (scores[LOCAL][:, None] > scores[SOUND]).mean()
    print(f"sound or not: {defect.mean():.1%}; AUROC of the map's score, local defects against sound: {rank:.3f}")
    print(f"{seconds:.2f} s an image")
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    picture(judged).save(options.picture, quality=80)
    print(f"wrote {options.picture}")


def picture(judged: list[Any]) -> Image.Image:
    """Draw the first test image of each kind with the judged region, next to its map."""
    tiles, titles = [], []
    of_sound = [result.grid.max() for truth, *_, result, _ in judged if truth == SOUND]
    span = 0.0, 2 * float(np.median(of_sound))
    for kind in KINDS:
        _, verdict, confidence, result, at = next(entry for entry in judged if entry[0] == kind)
        framed = Image.fromarray(result.image)
        ImageDraw.Draw(framed).rectangle(at, outline=(255, 60, 30), width=2)
        tiles += [np.asarray(framed), result.overlay(span=span)]
        titles += [f"is {kind}", f"judged {verdict}, {confidence:.2f}"]
    return Image.fromarray(contact_sheet(tiles, titles, columns=6, width=1080))


if __name__ == "__main__":
    main()
