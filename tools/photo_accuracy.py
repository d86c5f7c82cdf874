"""How well does `photo` label photographs? mIoU on your copy of PASCAL VOC, for three questions.

    python -m tools.photo_accuracy --photos VOC/JPEGImages --masks VOC/SegmentationClassAug --models photo photo+vit
    python -m tools.photo_accuracy --photos VOC/JPEGImages --masks VOC/SegmentationClassAug --calibrate

A: the 20 names are asked, background is ignored. B: the same, but background is a class. C: background is a class, and
only the names in the photo and two others are asked, as people do. Photos are drawn rarest class first, a set number
per class, by a seed, and go to development and test alternately. The mean is over classes with at least nine, and
background in B and C.

`--calibrate` fits the confidence of pixels (`InferenceProtocol.calibration`) on the development photos, questions B and
C alike, and prints the expected calibration error and the reliability curve on the test photos.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from densevl import LabelSet, Segmenter
from densevl.pipelines.segmentation.boxes import ClassBoxes
from densevl.vocabulary import Background

NAMES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
ENOUGH = 9  # photos that a class needs to count
OTHERS = 2
SPARSE = 97  # step between sampled pixels, in reading order
QUESTIONS = ("A", "B", "C")
PARTS = ("development", "test")
Pair = tuple[Path, Path]


def pairs(photos: Path, masks: Path) -> Iterator[Pair]:
    """Return photos that have a mask of their size, by name."""
    for mask in sorted(masks.glob("*.png")):
        found = next(
            (path for path in (photos / f"{mask.stem}{end}" for end in (".jpg", ".jpeg")) if path.exists()), None
        )
        if found is not None and Image.open(found).size == Image.open(mask).size:
            yield found, mask


def classes_of(mask: Path) -> list[int]:
    """Return the classes of a mask, 0 to 19, that cover at least one pixel in 200."""
    counts = np.bincount(np.array(Image.open(mask)).ravel(), minlength=256)
    return [c for c in range(len(NAMES)) if counts[c + 1] * 200 >= counts.sum()]


def draw(found: Sequence[Pair], each: int, seed: int) -> list[Pair]:
    """Return up to `count` photos for each class, the rarest first."""
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
    """Return the classes to ask for in a photo."""
    if question != "C":
        return list(range(len(NAMES)))
    here = classes_of(pair[1])
    rest = [c for c in range(len(NAMES)) if c not in here]
    return sorted([*here, *Random(pair[1].stem).sample(rest, min(OTHERS, len(rest)))])


def largest_box(truth: np.ndarray) -> dict[str, list[int]]:
    """Return the box of all pixels of the most frequent class, 0 to 19; none if there is no class."""
    counts = np.bincount(truth[truth < len(NAMES)], minlength=len(NAMES))
    ys, xs = np.nonzero(truth == counts.argmax())
    return {NAMES[counts.argmax()]: [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]} if counts.any() else {}


def measure(segment: Segmenter, chosen: Sequence[Pair], boxed: bool = False) -> dict[str, np.ndarray]:
    """Return the confusion (21, 21) per question, truth by row, background last; `boxed`: give a box too."""
    counts = {question: np.zeros((len(NAMES) + 1,) * 2, np.int64) for question in QUESTIONS}
    for pair in chosen:
        truth = np.array(Image.open(pair[1])).astype(np.int64)
        truth[truth == 0] = len(NAMES) + 1
        truth -= 1
        prepared = segment.prepare(pair[0])
        dense = segment.run(prepared.parts)
        segments = segment.segments(prepared.rgb)
        for question in QUESTIONS:
            numbers = asked(pair, question)
            labels = LabelSet.parse([NAMES[c] for c in numbers])
            policy = Background() if question == "A" else segment.policy()
            evidence = segment.gather(prepared, dense, labels, policy)
            if boxed and (boxes := {name: box for name, box in largest_box(truth).items() if name in labels.names}):
                size = (truth.shape[0], truth.shape[1])
                prior_CYX = ClassBoxes.parse(boxes, labels, size).prior(evidence.windows)
                evidence = evidence.plus(prior_CYX / segment.protocol.logit_scale)
            result = segment.decide(evidence, prepared.rgb, labels, policy, segments)
            answer = np.array([*numbers, len(NAMES)])[result.labels]  # -1, nothing, maps to the last
            valid = truth < len(NAMES) + (question != "A")
            np.add.at(counts[question], (truth[valid], answer[valid]), 1)
    return counts


def sureness(segment: Segmenter, chosen: Sequence[Pair]) -> dict[str, np.ndarray]:
    """Return confidence and whether the label is right, (2, n), at every `SPARSE`th pixel of each question but A."""
    found: dict[str, list[np.ndarray]] = {question: [] for question in QUESTIONS[1:]}
    for pair in chosen:
        truth = np.array(Image.open(pair[1])).astype(np.int64).ravel()[::SPARSE]
        prepared = segment.prepare(pair[0])
        dense = segment.run(prepared.parts)
        for question, own in found.items():
            numbers = asked(pair, question)
            labels, policy = LabelSet.parse([NAMES[c] for c in numbers]), segment.policy()
            result = segment.decide(segment.gather(prepared, dense, labels, policy), prepared.rgb, labels, policy)
            answer = np.array([*(c + 1 for c in numbers), 0])[result.labels.ravel()[::SPARSE]]
            sure = result.confidence.ravel()[::SPARSE]
            own.append(np.stack([sure, truth == answer])[:, truth <= len(NAMES)])
    return {question: np.concatenate(own, axis=1) for question, own in found.items()}


def logit(p: np.ndarray) -> np.ndarray:
    """Return log odds of probabilities, clamped to a millionth from 0 and 1."""
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return np.log(p) - np.log1p(-p)


def bins(sure_right: np.ndarray) -> Iterator[tuple[float, float, float]]:
    """Return mean confidence, accuracy, and share of the pixels, for each non-empty tenth of the scale."""
    place = np.minimum((10 * sure_right[0]).astype(int), 9)
    for number in np.unique(place):
        own = sure_right[:, place == number]
        yield float(own[0].mean()), float(own[1].mean()), own.shape[1] / sure_right.shape[1]


def error(sure_right: np.ndarray) -> float:
    """Return the expected calibration error over ten bins (Guo et al., ICML 2017)."""
    return sum(abs(sure - right) * share for sure, right, share in bins(sure_right))


def calibrate(name: str, parts: Sequence[Sequence[Pair]], refine: str | None) -> None:
    """Fit slope and offset on the first of two parts and print their effect on both."""
    from sklearn.linear_model import LogisticRegression

    segment = Segmenter(name, refine=refine, protocol={"calibration": (1.0, 0.0)})
    before = [sureness(segment, part) for part in parts]
    sure, right = np.concatenate(list(before[0].values()), axis=1)
    fitted = LogisticRegression(C=np.inf).fit(logit(sure)[:, None], right)
    slope, offset = round(float(fitted.coef_[0, 0]), 2), round(float(fitted.intercept_[0]), 2)
    print(f"\n{name}: calibration ({slope}, {offset})\n\n| part | question | error before | after |\n|---|---|---|---|")

    def mapped(given: np.ndarray) -> np.ndarray:
        return np.stack([1 / (1 + np.exp(-(slope * logit(given[0]) + offset))), given[1]])

    for part, found in zip(PARTS, before, strict=True):
        for question, own in found.items():
            print(f"| {part} | {question} | {error(own):.3f} | {error(mapped(own)):.3f} |")
    both = np.concatenate(list(before[1].values()), axis=1)
    print("\n| confidence, test | right | pixels |\n|---|---|---|")
    for mean, hit, share in bins(mapped(both)):
        print(f"| {mean:.2f} | {hit:.2f} | {100 * share:.0f} % |", flush=True)


def ious(counts: np.ndarray) -> np.ndarray:
    """Return the IoU of each class (21,); NaN for absent classes."""
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
    parser.add_argument("--proposals", default=None)
    parser.add_argument("--boxes", action="store_true", help="give the true box of the largest class of each photo")
    parser.add_argument("--each", type=int, default=12, help="photos of a class in each part")
    parser.add_argument("--part", choices=PARTS, default=PARTS[1])
    parser.add_argument("--seed", type=int, default=16)
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--calibrate", action="store_true", help="fit confidence instead")
    given = parser.parse_args(arguments)
    drawn = draw(list(pairs(given.photos, given.masks)), len(PARTS) * given.each, given.seed)
    parts = [drawn[first :: len(PARTS)][: given.limit] for first in range(len(PARTS))]
    if given.calibrate:
        print(f"{len(parts[0])} photos to fit, {len(parts[1])} to test, seed {given.seed}")
        for name in given.models:
            calibrate(name, parts, given.refine)
        return
    chosen = parts[PARTS.index(given.part)]
    held = np.bincount([c for pair in chosen for c in classes_of(pair[1])], minlength=len(NAMES))
    counted = [c for c in range(len(NAMES)) if held[c] >= ENOUGH]
    print(f"{len(chosen)} photos, {given.part}, seed {given.seed}; mean over {', '.join(NAMES[c] for c in counted)}")
    print("| model | A | B | C | accuracy in C |\n|---|---|---|---|---|")
    for name in given.models:
        segment = Segmenter(name, refine=given.refine, proposals=given.proposals)
        found = measure(segment, chosen, given.boxes)
        means = [np.nanmean(ious(found[q])[[*counted, *([len(NAMES)] if q != "A" else [])]]) for q in QUESTIONS]
        accuracy = np.diag(found["C"]).sum() / found["C"].sum()
        row = " | ".join(f"{100 * value:.1f}" for value in (*means, accuracy))
        print(f"| {name} | {row} |", flush=True)
        own = ious(found["C"])
        print("C: " + ", ".join(f"{NAMES[c]} {100 * own[c]:.0f}" for c in counted), flush=True)


if __name__ == "__main__":
    main()
