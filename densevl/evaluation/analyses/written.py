"""Written words: whether a model reads the text on things instead of looking at them (typographic attacks)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from densevl.errors import EvaluationError
from densevl.evaluation.analyses.base import (
    Analysis,
    Finding,
    Mask,
    Picture,
    Row,
    Show,
    each,
    is_labelled,
    mean_of,
    percent,
)
from densevl.evaluation.analyses.looks import IMAGE, Looks
from densevl.evaluation.analyses.objects import SMALLEST, Thing, drawable, filled, things, written_on
from densevl.evaluation.benchmarks.base import Dataset, Sample
from densevl.files import shown
from densevl.images import read_image
from densevl.vocabulary import LabelSet

PIXELS = "pixels"
PLAIN, MASKED, BLANK, WORD = "as it is", "text masked", "blank plate", "word painted"
READS, HIDES = 0.15, 0.05
"""Share of wins of the written word, and gain from masking real text, before advice is given."""


@dataclass
class _Tally:
    """Attributes: kept, right answers by way (without labels, the answer to the plain photo); won, by the word."""

    kept: dict[str, list[float]] = field(default_factory=dict)
    won: dict[str, list[float]] = field(default_factory=dict)

    def extend(self, found: Iterable[tuple[str, float, float]]) -> None:
        for way, kept, won in found:
            self.kept.setdefault(way, []).append(kept)
            self.won.setdefault(way, []).append(won)


def written_words(
    looks: Looks,
    predictor: Callable[[Picture], Any],
    dataset: Dataset,
    labels: LabelSet,
    text_masks: str | Path | None = None,
    *,
    seed: int = 0,
    show: Show | None = None,
) -> Analysis:
    """Measure recall, and wins of the written word, when another label's word is painted on each object.

    Every object gets the word of a label that the photo does not show, on a white plate in its middle, and as a control
    the blank plate, which hides as much. With "image" an answer is right if it is any of the photo's classes. A photo
    without labels gets one word, and the right answer is the one without it.

    Args:
        predictor: labels pixels (`Predictor`). text_masks: a folder of masks NAME.png, above 0 where the photo NAME
            has real text; these photos are also run with the text filled in from its surroundings.

    Raises:
        EvaluationError: there are fewer than two labels, masks belong to no photo or have another size, or no object is
            large enough for a readable word.
    """
    if len(labels) < 2:
        raise EvaluationError("a word of another label is painted, and there is only one label; give two or more")
    masks = text_mask_files(text_masks, dataset) if text_masks is not None else {}
    written_labels = {at for at, name in enumerate(labels.names) if drawable(name)}
    if not written_labels:
        raise EvaluationError(
            "no font of this machine has the letters of the labels, so none can be written; give others"
        )
    words, first = looks.words(labels), int(dataset.classes.background)
    rng = np.random.default_rng(seed)
    tallies = {name: _Tally() for name in (PLAIN, *([MASKED] if masks else []), BLANK, WORD)}
    hidden = {name: _Tally() for name in (PLAIN, MASKED)}  # only photos with real text
    small = 0
    for sample in each(dataset, show, "written"):
        judge = _Photo(sample, dataset, looks, words, predictor)
        absent = sorted(written_labels - {thing.label - first for thing in judge.things})
        if not judge.things or not absent:
            continue
        order = rng.permutation(absent)
        chosen = [int(order[index % len(order)]) for index in range(len(judge.things))]
        written, kept = _painted(sample.image, judge.things, [labels.names[at] for at in chosen])
        small += len(chosen) - len(kept)
        if not kept:
            continue
        judge.things, chosen = [judge.things[at] for at in kept], [chosen[at] for at in kept]
        pictures = {PLAIN: sample.image, BLANK: written[1], WORD: written[0]}
        if (real := masks.get(sample.item.key)) is not None:
            pictures[MASKED] = filled(sample.image, _mask(real, sample))
        for name, picture in pictures.items():
            found = judge(picture, chosen)
            for tally in (tallies[name], *([hidden[name]] if MASKED in pictures and name in hidden else [])):
                tally.extend(found)
    if not tallies[PLAIN].kept:
        raise EvaluationError(f"no object is large enough for a readable word ({small} are smaller)")
    return _as_analysis(tallies, hidden, dataset, small)


class _Photo:
    """The questions about one photo, asked of its original and its changed pictures.

    Attributes: things, its objects; without labels one in its middle, whose label is the answer to the photo.
    """

    def __init__(
        self, sample: Sample, dataset: Dataset, looks: Looks, words: Any, predictor: Callable[[Picture], Any]
    ) -> None:
        self._looks, self._words, self._predictor = looks, words, predictor
        self._first, self._labelled = int(dataset.classes.background), is_labelled(dataset)
        if self._labelled:
            self.things = things(sample, dataset)
            return
        self._plain = predictor(sample.image).labels
        height, width = self._plain.shape
        middle = np.zeros((height, width), bool)
        middle[height // 3 : height - height // 3, width // 10 : width - width // 10] = True
        answer = int(looks(sample.image, [], words)[IMAGE][0].argmax())
        self.things = [Thing(answer + self._first, middle, 1.0)] if middle.any() else []

    def __call__(self, picture: Picture, chosen: Sequence[int]) -> list[tuple[str, float, float]]:
        """Way, share of labels kept, and share of wins of the written labels."""
        masks = [thing.mask for thing in self.things] if self._labelled else []
        scores, pixels = self._looks(picture, masks, self._words), self._predictor(picture).labels
        answer, here = int(scores[IMAGE][0].argmax()), {thing.label - self._first for thing in self.things}
        found = [(IMAGE, float(answer in here), float(answer in chosen))]
        if not self._labelled:
            won = pixels == chosen[0] + self._first
            return [*found, (PIXELS, float((pixels == self._plain).mean()), float(won.mean()))]
        for at, (thing, word) in enumerate(zip(self.things, chosen, strict=True)):
            for way in (way for way in self._looks.ways if way != IMAGE):
                best = int(scores[way][at].argmax()) + self._first
                found.append((way, float(best == thing.label), float(best == word + self._first)))
            own = pixels[thing.mask]
            found.append((PIXELS, float((own == thing.label).mean()), float((own == word + self._first).mean())))
        return found


def _painted(rgb: Picture, found: Sequence[Thing], words: Sequence[str]) -> tuple[tuple[Picture, Picture], list[int]]:
    """The picture with the words, and with blank plates; and the objects on which a word can be read."""
    written, blank, kept = rgb, rgb, []
    for at, (thing, word) in enumerate(zip(found, words, strict=True)):
        with_word = written_on(written, word, thing.box)
        without = written_on(blank, word, thing.box, blank=True)
        if with_word is not None and without is not None:
            written, blank = with_word, without
            kept.append(at)
    return (written, blank), kept


def _as_analysis(tallies: Mapping[str, _Tally], hidden: Mapping[str, _Tally], dataset: Dataset, small: int) -> Analysis:
    labelled = is_labelled(dataset)
    kept, ways = "right" if labelled else "same answer", list(tallies[PLAIN].kept)
    rows: list[Row] = [
        {
            "way": way,
            **{f"{kept}, {name}": mean_of(own.kept.get(way, [])) for name, own in tallies.items()},
            **{f"word wins, {name}": mean_of(tallies[name].won[way]) for name in (PLAIN, BLANK, WORD)},
        }
        for way in ways
    ]
    text = (
        f"A label that is not in the photo is written on {'each object' if labelled else 'the photo'}. "
        f"{kept.capitalize()}: share of answers that are so; word wins: share that are the written label. A blank "
        "plate of the same size hides as much without saying anything."
        + (f" {small} objects were too small for letters of {SMALLEST} pixels." if small else "")
    )
    gains = {
        way: float(row[f"word wins, {WORD}"]) - float(row[f"word wins, {BLANK}"])
        for way, row in zip(ways, rows, strict=True)
    }
    findings = [_reads(gains)]
    if MASKED in tallies:
        before, after = (mean_of(hidden[name].kept.get(IMAGE, [])) for name in (PLAIN, MASKED))
        sentence = f"On photos with text, masking it takes {kept} by image from {percent(before)} to {percent(after)}."
        findings.append(Finding(sentence, "Mask text in photos before naming them." if after - before > HIDES else ""))
    return Analysis("Written words", text, {"": rows}, findings=findings)


def _reads(gains: Mapping[str, float]) -> Finding:
    listed = ", ".join(f"{way} {percent(gain)}" for way, gain in gains.items())
    text = f"Written words win beyond what a blank plate does: {listed} (threshold {percent(READS)})."
    reading = [way for way, gain in gains.items() if gain > READS]
    if not reading:
        return Finding(text)
    safe = [way for way in gains if way not in reading]
    other = f"take {min(safe, key=lambda way: gains[way])}, which does not" if safe else "mask text before naming"
    return Finding(text, f"{', '.join(reading)} read what is written: {other}, and mask text where words may stand.")


def text_mask_files(folder: str | Path, dataset: Dataset) -> dict[str, Path]:
    """Files of text masks by the key of their photo.

    Raises:
        EvaluationError: none belongs to a photo.
    """
    found = {item.key: Path(folder) / f"{item.key}.png" for item in dataset.items}
    found = {key: path for key, path in found.items() if path.is_file()}
    if not found:
        looked = f"{dataset.items[0].key}.png" if dataset.items else "NAME.png"
        raise EvaluationError(f"no text mask in {shown(folder)} belongs to a photo; {looked} was looked for")
    return found


def unused_masks(folder: str | Path, dataset: Dataset) -> list[str]:
    """Names of the masks in a folder that belong to no photo.

    Raises:
        EvaluationError: none belongs to one.
    """
    used = set(text_mask_files(folder, dataset).values())
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*.png") if path not in used)


def _mask(path: Path, sample: Sample) -> Mask:
    mask = read_image(path).max(axis=2) > 0
    if mask.shape != sample.image.shape[:2]:
        sizes = [f"{size[1]}x{size[0]}" for size in (mask.shape, sample.image.shape)]
        raise EvaluationError(f"text mask {shown(path)} is {sizes[0]} and its photo {sizes[1]}; give it at that size")
    return mask
