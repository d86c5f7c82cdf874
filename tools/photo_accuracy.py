"""How well `photo` labels photographs: mIoU on PASCAL VOC photos and masks that you have, by three questions.

    python -m tools.photo_accuracy --photos VOC/JPEGImages --masks VOC/SegmentationClassAug --models photo photo+vit

A: the 20 names are asked, background is ignored. B: the same, background is a class. C: background is a class, and only
the names in the photo and two others are asked, which is what people do. Photos are drawn rarest class first, a number
for each class, by a seed, and go to development and to the test by turns. The mean is over classes with at least nine,
and background in B and C.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from densevl import LabelSet, Segmenter
from densevl.vocabulary import Background

NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
ENOUGH = 9  # photos of a class that counts
OTHERS = 2
QUESTIONS = ("A", "B", "C")
PARTS = ("development", "test")
Pair = tuple[Path, Path]


def pairs(photos: Path, masks: Path) -> Iterator[Pair]:
    """Photos that have a mask of their size, by name."""
    for mask in sorted(masks.glob("*.png")):
        found = next(
            (path for path in (photos / f"{mask.stem}{end}" for end in (".jpg", ".jpeg")) if path.exists()), None
        )
        if found is not None and Image.open(found).size == Image.open(mask).size:
            yield found, mask


def classes_of(mask: Path) -> list[int]:
    """The classes of a mask, 0 to 19, which cover at least one pixel in 200."""
    counts = np.bincount(np.array(Image.open(mask)).ravel(), minlength=256)
    return [c for c in range(len(NAMES)) if counts[c + 1] * 200 >= counts.sum()]


def draw(found: Sequence[Pair], each: int, seed: int) -> list[Pair]:
    """Up to so many photos for each class, the rarest first."""
    shuffled = list(found)
    Random(seed).shuffle(shuffled)
    held = {pair: classes_of(pair[1]) for pair in shuffled}
    rarest = sorted(range(len(NAMES)), key=lambda c: sum(c in own for own in held.values()))
    chosen: dict[Pair, None] = {}
    for c in rarest:
        own = [pair for pair in shuffled if c in held[pair]]
        missing = each - sum(c in held[pair] for pair in chosen)
        chosen.update(dict.fromkeys([pair for pair in own if pair not in chosen][: max(0, missing)]))
    return list(chosen)


def asked(pair: Pair, question: str) -> list[int]:
    """The classes that are asked of a photo."""
    if question != "C":
        return list(range(len(NAMES)))
    here = classes_of(pair[1])
    rest = [c for c in range(len(NAMES)) if c not in here]
    return sorted([*here, *Random(pair[1].stem).sample(rest, min(OTHERS, len(rest)))])


def measure(segment: Segmenter, chosen: Sequence[Pair], limit: int | None = None) -> dict[str, np.ndarray]:
    """Confusion (21, 21) of each question, truth by row and background last."""
    counts = {question: np.zeros((len(NAMES) + 1,) * 2, np.int64) for question in QUESTIONS}
    for pair in chosen[:limit]:
        truth = np.array(Image.open(pair[1])).astype(np.int64)
        truth[truth == 0] = len(NAMES) + 1
        truth -= 1
        prepared = segment.prepare(pair[0])
        dense = segment.run(prepared.parts)
        for question in QUESTIONS:
            numbers = asked(pair, question)
            labels = LabelSet.parse([NAMES[c] for c in numbers])
            policy = Background() if question == "A" else segment.policy()
            evidence = segment.gather(prepared, dense, labels, policy)
            result = segment.decide(evidence, prepared.rgb, labels, policy)
            answer = np.array([*numbers, len(NAMES)])[result.labels]  # -1, nothing, is the last
            valid = truth < len(NAMES) + (question != "A")
            np.add.at(counts[question], (truth[valid], answer[valid]), 1)
    return counts


def ious(counts: np.ndarray) -> np.ndarray:
    """IoU of each class (21,); nan where it is nowhere."""
    hit = np.diag(counts).astype(float)
    union = counts.sum(0) + counts.sum(1) - hit
    return np.where(union > 0, hit / np.maximum(union, 1), np.nan)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--masks", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["photo", "photo+vit"])
    parser.add_argument("--refine", default=None)
    parser.add_argument("--each", type=int, default=12, help="photos of a class in each part")
    parser.add_argument("--part", choices=PARTS, default=PARTS[1])
    parser.add_argument("--seed", type=int, default=16)
    parser.add_argument("--limit", type=int, default=None)
    given = parser.parse_args(arguments)
    drawn = draw(list(pairs(given.photos, given.masks)), len(PARTS) * given.each, given.seed)
    chosen = drawn[PARTS.index(given.part) :: len(PARTS)][: given.limit]
    held = np.bincount([c for pair in chosen for c in classes_of(pair[1])], minlength=len(NAMES))
    counted = [c for c in range(len(NAMES)) if held[c] >= ENOUGH]
    print(f"{len(chosen)} photos, {given.part}, seed {given.seed}; mean over {', '.join(NAMES[c] for c in counted)}")
    print("| model | A | B | C | accuracy in C |\n|---|---|---|---|---|")
    for name in given.models:
        segment = Segmenter(name, refine=given.refine)
        found = measure(segment, chosen)
        means = [np.nanmean(ious(found[q])[[*counted, *([len(NAMES)] if q != "A" else [])]]) for q in QUESTIONS]
        accuracy = np.diag(found["C"]).sum() / found["C"].sum()
        row = " | ".join(f"{100 * value:.1f}" for value in (*means, accuracy))
        print(f"| {name} | {row} |", flush=True)
        own = ious(found["C"])
        print("C: " + ", ".join(f"{NAMES[c]} {100 * own[c]:.0f}" for c in counted), flush=True)


if __name__ == "__main__":
    main()
