"""Binding of attributes: "the colour of the A is x" on photos of an A and a B, which a bag of words cannot answer.

Photos come from a JSON file, or are benchmark photos with two objects recoloured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from densevl.errors import EvaluationError
from densevl.evaluation.analyses.base import FEW, Analysis, Finding, Mask, Picture, Row, Show, each, mean_of, percent
from densevl.evaluation.analyses.looks import IMAGE, Looks
from densevl.evaluation.analyses.objects import COLOURS, filled, recoloured, things
from densevl.evaluation.benchmarks.base import Dataset
from densevl.files import shown
from densevl.images import read_image
from densevl.saved import Kind, parse_json, read_bytes
from densevl.vocabulary import LabelSet

SENTENCE = "the colour of the {object} is {attribute}"
MIXED, ABLE = 0.2, 0.5
"""Share of answers that belong to the other object before advice is given; and the share that must be right with one
object for results with two to count."""
MOST = 2**26
"""Largest size of a list, in bytes."""
FILE = Kind("the list of attributes", EvaluationError, 'give a JSON list of {"image", "box", "object", "attribute"}')


@dataclass(frozen=True, eq=False)
class Shown:
    """An object in a picture. Attributes: name; attribute; others, attributes of the other objects; mask, (H, W)."""

    name: str
    attribute: str
    others: tuple[str, ...]
    mask: Mask


class Entry(NamedTuple):
    """Attributes: number, from 1; box, x0 y0 x1 y1 in pixels; name of the object; attribute."""

    number: int
    box: tuple[float, ...]
    name: str
    attribute: str


@dataclass(frozen=True)
class Attributes:
    """The contents of a JSON file of attributes.

    Attributes:
        sentence: has {object} and {attribute}. pictures: the entries of each image. values: all attributes, which
            compete.
    """

    sentence: str
    pictures: Mapping[Path, Sequence[Entry]]
    values: tuple[str, ...]

    @classmethod
    def load(cls, path: str | Path) -> Attributes:
        """Read a list of {"image", "box" as x0 y0 x1 y1 in pixels, "object", "attribute"}, images relative to the file;
        or {"sentence", "entries"} with that list.

        Raises:
            EvaluationError: the file cannot be read, has another form, repeats a box of an object, or has fewer than
                two attributes.
        """
        place = FILE.path(path)
        with FILE.sense(place):
            data = parse_json(read_bytes(place, FILE, MOST))
        sentence, entries = SENTENCE, data
        if isinstance(data, dict):
            if unknown := sorted(data.keys() - {"sentence", "entries"}):
                raise FILE.bad(place, f"has a key {shown(unknown[0])} beside sentence and entries")
            sentence, entries = data.get("sentence", SENTENCE), data.get("entries")
        if not isinstance(sentence, str) or not all(field in sentence for field in ("{object}", "{attribute}")):
            raise FILE.bad(place, "has a sentence without {object} and {attribute}")
        if not isinstance(entries, list) or not entries:
            raise FILE.bad(place, "lists no entries")
        pictures: dict[Path, list[Entry]] = {}
        for number, given in enumerate(entries, 1):
            image, entry = _entry(place, number, given)
            own = pictures.setdefault(place.parent / image, [])
            for other in own:
                if (other.box, other.name.casefold()) == (entry.box, entry.name.casefold()):
                    raise FILE.bad(place, f"has the same box of the same object in entries {other.number} and {number}")
            own.append(entry)
        values = tuple(dict.fromkeys(entry.attribute for own in pictures.values() for entry in own))
        if len({value.casefold() for value in values}) != len(values) or len(values) < 2:
            raise FILE.bad(place, "needs at least two attributes, each spelled in one way")
        return cls(sentence, pictures, values)

    def examples(self, show: Show | None = None) -> Iterator[tuple[Picture, list[Shown]]]:
        """Each picture with its objects.

        Raises:
            ImageError: a picture cannot be read.
            EvaluationError: a box is not inside the picture, or has no pixel.
        """
        for number, (path, entries) in enumerate(self.pictures.items()):
            if show is not None:
                show(f"association, image {number + 1} of {len(self.pictures)}")
            rgb = read_image(path)
            values = [entry.attribute for entry in entries]
            found = []
            for at, entry in enumerate(entries):
                others = tuple(value for value in (*values[:at], *values[at + 1 :]) if value != entry.attribute)
                found.append(Shown(entry.name, entry.attribute, others, _inside(entry, path, rgb)))
            yield rgb, found


def _inside(entry: Entry, path: Path, rgb: Picture) -> Mask:
    """The pixels of a box."""
    height, width = rgb.shape[:2]
    x0, y0, x1, y1 = entry.box
    mask = np.zeros((height, width), bool)
    if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
        mask[round(y0) : round(y1), round(x0) : round(x1)] = True
    if not mask.any():
        raise EvaluationError(
            f"entry {entry.number} of the attributes: box {list(entry.box)} is not inside {shown(path)} of "
            f"{width}x{height}, or has no whole pixel"
        )
    return mask


def _entry(place: Path, number: int, entry: Any) -> tuple[str, Entry]:
    keys = ("image", "object", "attribute")
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) and entry[key].strip() for key in keys):
        raise FILE.bad(place, f"has an entry, number {number}, without the texts image, object and attribute")
    if other := sorted(entry.keys() - {*keys, "box"}):
        raise FILE.bad(
            place, f"has an entry, number {number}, with a key {shown(other[0])}; there are box, {', '.join(keys)}"
        )
    box: Any = entry.get("box")
    numbers = isinstance(box, list) and len(box) == 4 and all(type(side) in (int, float) for side in box)
    if not numbers or not (box[0] < box[2] and box[1] < box[3]):
        raise FILE.bad(place, f"has an entry, number {number}, whose box is not four numbers x0 < x1, y0 < y1")
    return entry["image"], Entry(number, tuple(map(float, box)), entry["object"].strip(), entry["attribute"].strip())


def recoloured_pairs(
    dataset: Dataset, *, seed: int = 0, show: Show | None = None
) -> Iterator[tuple[Picture, list[Shown]]]:
    """Pictures of one and of two objects of a benchmark, each in a colour of its own.

    Images with objects of two classes give three pictures: one of the two largest objects, and one of each alone. All
    other objects are filled in from their surroundings.
    """
    rng, colours, first = np.random.default_rng(seed), list(COLOURS), int(dataset.classes.background)
    for sample in each(dataset, show, "association"):
        largest: dict[int, Any] = {}
        for thing in things(sample, dataset):
            largest.setdefault(thing.label, thing)
        pair = list(largest.values())[:2]
        if len(pair) < 2:
            continue
        values = [colours[at] for at in rng.permutation(len(colours))[:2]]
        objects = [
            Shown(dataset.classes.names[thing.label - first], own, (other,), thing.mask)
            for thing, own, other in zip(pair, values, values[::-1], strict=True)
        ]
        both = sample.image
        for own in objects:
            both = recoloured(both, own.mask, own.attribute)
        yield both, objects
        for own in objects:
            alone = filled(sample.image, (sample.truth >= first) & ~own.mask) if first else sample.image
            yield recoloured(alone, own.mask, own.attribute), [replace(own, others=())]


def association(
    looks: Looks,
    examples: Iterable[tuple[Picture, Sequence[Shown]]],
    values: Sequence[str] = tuple(COLOURS),
    sentence: str = SENTENCE,
) -> Analysis:
    """Measure how often each way names the right attribute of an object, in pictures of one and of more objects.

    Args:
        examples: pictures and their objects, from `recoloured_pairs` or `Attributes.examples`. values: the attributes
            that compete. sentence: with {object} and {attribute}.

    Raises:
        EvaluationError: there are no examples.
    """
    answers: dict[tuple[str, bool], list[tuple[bool, bool]]] = {}
    words: dict[str, Any] = {}
    for rgb, objects in examples:
        for index, own in enumerate(objects):
            if own.name not in words:
                texts = [sentence.replace("{object}", own.name).replace("{attribute}", value) for value in values]
                words[own.name] = looks.words(LabelSet(tuple(texts), tuple((text,) for text in texts)), bare=True)
            scores = looks(rgb, [objects[index].mask], words[own.name])
            for way in looks.ways:
                answer = values[int(scores[way][0].argmax())]
                hits = answer == own.attribute, answer in own.others
                answers.setdefault((way, len(objects) > 1), []).append(hits)
    if not answers:
        raise EvaluationError("no image has two objects of different classes, so there is nothing to tell apart")
    rows: list[Row] = []
    for way in looks.ways:
        for several in (False, True):
            own_answers = answers.get((way, several), [])
            right, other = (mean_of([hits[at] for hits in own_answers]) for at in (0, 1))
            wrong = [hits[1] for hits in own_answers if not hits[0]]
            row: Row = {"way": way, "objects": "two" if several else "one", "asked": len(own_answers)}
            row |= {"right": right, "the other's": other if several else float("nan"), "else": 1 - right - other}
            row["the other's, if wrong"] = mean_of(wrong) if several else float("nan")
            rows.append(row)
    text = (
        f"Which of {len(values)} attributes ({', '.join(values)}) is named of an object, by '{sentence}'. A bag of "
        f"words names the other object's as often as its own; by chance {percent(1 / len(values))} are right, and "
        f"{percent(1 / max(1, len(values) - 1))} of the wrong are the other's."
    )
    return Analysis("Association of attributes", text, {"": rows}, findings=[_finding(rows, looks.ways)])


def _finding(rows: Sequence[Row], ways: Sequence[str]) -> Finding:
    table = {(str(row["way"]), str(row["objects"])): row for row in rows}

    def of(way: str, objects: str, key: str) -> float:
        return float(table[way, objects][key])

    shares = ", ".join(
        f"{way} {percent(of(way, 'two', 'right'))} ({percent(of(way, 'one', 'right'))} with one)" for way in ways
    )
    mixed = of(IMAGE, "two", "the other's")
    text = f"With two objects, right: {shares}. The vector of the whole photo names the other's in {percent(mixed)} "
    text += f"(threshold {percent(MIXED)})."
    asked = {objects: int(table[IMAGE, objects]["asked"]) for objects in ("one", "two")}
    if asked["two"] < FEW and asked["one"] < FEW:
        return Finding(f"{text} Of two objects there are {asked['two']} answers: too few to tell.")
    best_alone = max(of(way, "one", "right") for way in ways)
    if asked["one"] >= FEW and best_alone < ABLE:
        return Finding(
            f"{text} Not half are right with one object.",
            "This model does not know these attributes: do not ask for them.",
        )
    if asked["two"] < FEW:
        return Finding(f"{text} Of two objects there are {asked['two']} answers: too few to tell.")
    if not mixed > MIXED:
        return Finding(text)
    best = max((way for way in ways if way != IMAGE), key=lambda way: of(way, "two", "right"))
    if of(best, "two", "right") > of(IMAGE, "two", "right"):
        return Finding(
            text,
            f"Ask for attributes of a region, not of a photo: densevl regions --operator {best}, which is right in "
            f"{percent(of(best, 'two', 'right'))}.",
        )
    return Finding(text, "Words are not bound to their objects: do not ask for attributes in one sentence.")
