"""Sizes, written words and attributes, on encoders whose behaviour is known."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
from label_maps import written
from PIL import Image
from scipy import ndimage

from densevl.evaluation import EvaluationError, open_dataset
from densevl.evaluation.analyses.association import Attributes, Shown, association, recoloured_pairs
from densevl.evaluation.analyses.looks import CLS_MASK, CROP, IMAGE, POOL
from densevl.evaluation.analyses.objects import (
    COLOURS,
    drawable,
    filled,
    moved,
    plate,
    recoloured,
    same_size,
    things,
    written_on,
)
from densevl.evaluation.analyses.photos import open_photos
from densevl.evaluation.analyses.size import BINS, size_bias
from densevl.evaluation.analyses.written import BLANK, MASKED, PLAIN, WORD, written_words
from densevl.evaluation.predictors import Prediction
from densevl.vocabulary import LabelSet

WAYS = (IMAGE, CROP, POOL, CLS_MASK)
CLASSES = ("background", "cat", "dog", "cow")
PAINT = np.array([[0, 0, 0], [250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)


def photo(*boxes: tuple[int, int, int, int, int], side: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (class, x0, y0, x1, y1) in the class's colour."""
    labels = np.zeros((side, side), np.uint8)
    for label, x0, y0, x1, y1 in boxes:
        labels[y0:y1, x0:x1] = label
    return PAINT[labels], labels


@pytest.fixture
def dataset(tmp_path):
    """A large cat beside a small dog; a large dog beside a tiny cow, and a cow alone."""
    photos = [
        photo((1, 2, 2, 40, 40), (2, 45, 45, 57, 57)),
        photo((2, 2, 2, 50, 40), (3, 54, 54, 59, 59)),
        photo((3, 10, 10, 50, 40)),
    ]
    return open_dataset("folder", written(tmp_path / "data", photos, CLASSES))


class Areas:
    """Sees a class as much as its colour has pixels: in the photo, or in an object alone."""

    ways = WAYS
    first = 0.5
    """How much nearer a sentence is to the word it begins with."""

    def words(self, labels: LabelSet, *, bare: bool = False) -> LabelSet:
        return labels

    def __call__(self, rgb, masks, words) -> dict[str, np.ndarray]:
        def seen(where: np.ndarray) -> np.ndarray:
            alike = (rgb[None] == PAINT[1:, None, None]).all(axis=-1) & where
            return alike.sum(axis=(1, 2)).astype(float)

        whole = seen(np.ones(rgb.shape[:2], bool))
        rows = np.array([seen(mask) for mask in masks]).reshape(len(masks), 3)
        return {IMAGE: np.tile(whole, (max(1, len(masks)), 1)), **dict.fromkeys(self.ways[1:], rows)}

    def likeness(self, left, right) -> np.ndarray:
        return np.array([self.first * text.startswith(word) for text, word in zip(left, right, strict=True)])


def labels_of(dataset) -> LabelSet:
    return dataset.classes.labels()


def test_an_encoder_by_area_always_prefers_the_larger_and_a_dense_one_never(dataset) -> None:
    found = size_bias(Areas(), dataset, labels_of(dataset))
    wins = {row["way"]: row["the larger wins"] for row in found.tables["two classes in a photo"]}
    assert wins == {IMAGE: 1.0, CROP: 0.0, POOL: 0.0, CLS_MASK: 0.0}
    assert [row["pairs"] for row in found.tables["two classes in a photo"]] == [2] * 4
    rows = {row["share of the photo"]: row for row in found.rows}
    assert [rows[name]["objects"] for name in BINS] == [1, 0, 1, 3]  # 25, 144 and 1200 to 1824 of 3600 pixels
    assert rows["<1 %"][IMAGE] == 0.0
    assert rows["<1 %"][POOL] == rows[">16 %"][IMAGE] == 1.0


@pytest.mark.parametrize(("first", "difference", "advised"), [(0.5, "+0.500", True), (0.0, "+0.000", False)])
def test_the_first_word_of_a_sentence_counts_more_where_it_does(dataset, first, difference, advised) -> None:
    looks = Areas()
    looks.first = first
    found = size_bias(looks, dataset, labels_of(dataset))
    assert found.tables["words in a sentence"][0]["difference"] == difference
    assert bool(found.findings[-1].advice) == advised


def test_advice_on_small_objects_is_by_who_still_sees_them(tmp_path) -> None:
    photos = [photo((1, 2, 2, 50, 50), (2, 54, 54, 59, 59)) for _ in range(10)]
    dataset = open_dataset("folder", written(tmp_path / "data", photos, CLASSES))
    finding = size_bias(Areas(), dataset, labels_of(dataset)).findings[0]
    assert "densevl segment" in finding.advice  # dense features see it as crops do

    class CropsOnly(Areas):
        def __call__(self, rgb, masks, words) -> dict[str, np.ndarray]:
            found = super().__call__(rgb, masks, words)
            return {**found, POOL: found[IMAGE], CLS_MASK: found[IMAGE]}

    assert "--operator crop" in size_bias(CropsOnly(), dataset, labels_of(dataset)).findings[0].advice

    class Whole(Areas):
        def __call__(self, rgb, masks, words) -> dict[str, np.ndarray]:
            return dict.fromkeys(WAYS, np.array([[0.0, 1.0, 0.0]] * len(masks)))

    assert size_bias(Whole(), dataset, labels_of(dataset)).findings[0].advice == ""


class Reader(Areas):
    """Reads the plates of words and looks at nothing else, or, if it cannot read, looks at colours."""

    def __init__(self, reads: bool) -> None:
        self.reads = reads

    def read(self, rgb: np.ndarray, words: LabelSet) -> list[tuple[int, slice, slice]]:
        """Each word and where its plate is: boxes of white, compared with the plates of all sizes."""
        found = []
        for rows, columns, _ in ndimage.find_objects(ndimage.label((rgb == 255).all(axis=2, keepdims=True))[0]):
            for at, word in enumerate(words.names):
                plates = (plate(word, 60, height) for height in range(60))
                if any(one is not None and np.array_equal(one, rgb[rows, columns]) for one in plates):
                    found.append((at, rows, columns))
        return found

    def __call__(self, rgb, masks, words) -> dict[str, np.ndarray]:
        scores = super().__call__(rgb, masks, words)
        for at, rows, columns in self.read(rgb, words) if self.reads else ():
            for way in self.ways:
                for index in range(len(scores[way])):
                    if way == IMAGE or masks[index][rows, columns].any():
                        scores[way][index, at] = 1e6
        return scores


def pixels(reader: Reader, words: LabelSet, rgb: np.ndarray) -> Prediction:
    """Colours, or in a band of a plate and far around it the word."""
    alike = (rgb[None] == PAINT[:, None, None]).all(axis=-1)
    found = alike.argmax(axis=0).astype(np.int16)
    for at, rows, columns in reader.read(rgb, words) if reader.reads else ():
        found[max(0, rows.start - 30) : rows.stop + 30, max(0, columns.start - 30) : columns.stop + 30] = at + 1
    return Prediction(found, np.ones(found.shape, np.float32))


@pytest.fixture
def large(tmp_path):
    """Objects on which a word can be read, and one on which it cannot."""
    photos = [photo((1, 2, 2, 58, 50)), photo((2, 4, 4, 56, 44), (1, 50, 50, 56, 56))]
    return open_dataset("folder", written(tmp_path / "large", photos, CLASSES))


@pytest.mark.parametrize("reads", [True, False])
def test_the_written_word_always_wins_with_who_reads_and_never_with_who_looks(large, reads) -> None:
    reader, words = Reader(reads), labels_of(large)
    found = written_words(reader, partial(pixels, reader, words), large, words)
    rows = {row["way"]: row for row in found.rows}
    assert set(rows) == {*WAYS, "pixels"}
    for way, row in rows.items():
        assert row[f"word wins, {PLAIN}"] == row[f"word wins, {BLANK}"] == 0.0
        assert row[f"right, {PLAIN}"] == 1.0
        assert row[f"word wins, {WORD}"] == float(reads), way
        assert row[f"right, {WORD}"] == pytest.approx(0.0 if reads else row[f"right, {BLANK}"]), way
    assert bool(found.findings[0].advice) == reads
    assert "1 objects were too small" in found.text


def test_masking_real_text_helps_who_reads_it(tmp_path) -> None:
    picture, labels = photo((1, 2, 2, 58, 58))
    drawn = plate("dog", 40, 20)
    picture[5 : 5 + drawn.shape[0], 5 : 5 + drawn.shape[1]] = drawn
    dataset = open_dataset("folder", written(tmp_path / "data", [(picture, labels)], CLASSES))
    (tmp_path / "text").mkdir()
    mask = np.zeros(labels.shape, np.uint8)
    mask[5 : 5 + drawn.shape[0], 5 : 5 + drawn.shape[1]] = 255
    Image.fromarray(mask).save(tmp_path / "text/0.png")
    reader, words = Reader(True), labels_of(dataset)
    found = written_words(reader, partial(pixels, reader, words), dataset, words, tmp_path / "text")
    row = found.rows[0]
    assert (row[f"right, {PLAIN}"], row[f"right, {MASKED}"]) == (0.0, 1.0)
    assert "Mask text" in found.findings[1].advice

    Image.fromarray(mask[:30]).save(tmp_path / "text/0.png")
    with pytest.raises(EvaluationError, match="60x30 and its photo 60x60"):
        written_words(reader, partial(pixels, reader, words), dataset, words, tmp_path / "text")
    with pytest.raises(EvaluationError, match=r"no text mask in .* belongs to a photo; 0\.png"):
        written_words(reader, partial(pixels, reader, words), dataset, words, tmp_path)


def test_of_photos_without_labels_the_answer_is_held_against_that_to_the_photo(large) -> None:
    words = labels_of(large)
    photos = open_photos(large.root / "images", words)
    for reads in (True, False):
        reader = Reader(reads)
        found = written_words(reader, partial(pixels, reader, words), photos, words)
        assert [row["way"] for row in found.rows] == [IMAGE, "pixels"]
        assert found.rows[0][f"same answer, {PLAIN}"] == 1.0
        assert found.rows[0][f"word wins, {WORD}"] == float(reads)


def test_words_that_no_font_can_write_are_not_painted(large) -> None:
    odd = ("\U000e0fff", "\U000e0ffe", "\U000e0ffd")  # of which no font has a letter
    assert [drawable(word) for word in ("cat", *odd)] == [True, False, False, False]
    reader, words = Reader(False), LabelSet(odd, tuple((word,) for word in odd))
    with pytest.raises(EvaluationError, match="no font of this machine"):
        written_words(reader, partial(pixels, reader, words), large, words)


def test_a_word_needs_room_and_another_label(large) -> None:
    reader, words = Reader(False), labels_of(large)
    with pytest.raises(EvaluationError, match="two or more"):
        written_words(reader, partial(pixels, reader, words), large, LabelSet(("cat",), (("cat",),)))
    assert written_on(np.zeros((9, 9, 3), np.uint8), "elephant", (0, 0, 9, 9)) is None


def scene(first: str, second: str = "") -> tuple[np.ndarray, list[Shown]]:
    """A picture that says what it shows: the numbers of the colours of its cup and hat are its first pixels."""
    rgb = np.zeros((4, 6, 3), np.uint8)
    objects = []
    for at, (name, value) in enumerate((("cup", first), ("hat", second))):
        if value:
            mask = np.zeros((4, 6), bool)
            mask[:, 3 * at : 3 * at + 3] = True
            others = tuple(colour for colour in (first, second) if colour and colour != value)
            objects.append(Shown(name, value, others, mask))
            rgb[mask] = 1 + list(COLOURS).index(value)
    return rgb, objects


class Concepts:
    """Knows which colours are where: in the photo as a bag, or bound to its objects."""

    ways = (IMAGE, CROP)

    def __init__(self, bound: bool) -> None:
        self.bound = bound

    def words(self, labels: LabelSet, *, bare: bool = False) -> LabelSet:
        assert bare
        return labels

    def __call__(self, rgb, masks, words) -> dict[str, np.ndarray]:
        def score(where: np.ndarray, sentence: str) -> float:
            names = {number for number in np.unique(rgb[where]) if number}
            half = slice(0, 3) if "cup" in sentence else slice(3, 6)
            names = {rgb[0, half][0, 0]} if self.bound and where.all() else names
            colours = list(COLOURS)
            return max((1.0 - 0.1 * number for number in names if colours[number - 1] in sentence), default=0.0)

        rows = [[score(mask, sentence) for sentence in words.names] for mask in masks]
        whole = [[score(np.ones(rgb.shape[:2], bool), sentence) for sentence in words.names]] * len(masks)
        return {IMAGE: np.array(whole), CROP: np.array(rows)}


@pytest.mark.parametrize("bound", [True, False])
def test_a_bag_of_concepts_names_the_others_colour_and_a_bound_one_its_own(bound) -> None:
    colours = list(COLOURS)
    pictures = [scene(first, second) for first in colours for second in colours if first != second]
    pictures += [scene(colour) for colour in colours]
    found = association(Concepts(bound), pictures)
    table = {(row["way"], row["objects"]): row for row in found.rows}
    assert table[CROP, "two"]["right"] == table[CROP, "one"]["right"] == table[IMAGE, "one"]["right"] == 1.0
    both = table[IMAGE, "two"]
    assert (both["asked"], both["right"], both["the other's"]) == (60, *((1.0, 0.0) if bound else (0.5, 0.5)))
    assert both["else"] == 0.0
    if not bound:
        assert both["the other's, if wrong"] == 1.0
        assert "--operator crop" in found.findings[0].advice
    else:
        assert found.findings[0].advice == ""


def test_few_answers_are_too_few_to_tell() -> None:
    few = association(Concepts(False), [scene("red", "blue"), scene("red"), scene("blue")]).findings[0]
    assert few.advice == ""
    assert few.text.endswith("Of two objects there are 2 answers: too few to tell.")


def test_recoloured_pairs_have_two_colours_and_stand_alone_too(dataset) -> None:
    found = list(recoloured_pairs(dataset))
    assert [len(objects) for _, objects in found] == [2, 1, 1, 2, 1, 1]
    for rgb, objects in found:
        for own in objects:
            inside = rgb[own.mask].mean(axis=0)
            near = min(COLOURS, key=lambda name: np.linalg.norm(_hue(inside) - _hue(COLOURS[name])))
            assert near == own.attribute
        if len(objects) == 1:
            assert not rgb[~objects[0].mask].any()  # the other is filled with the black around it
    assert found[0][1][0].others == (found[0][1][1].attribute,)


def _hue(colour) -> np.ndarray:
    return np.asarray(colour, float) / np.linalg.norm(colour)


def test_photos_of_ones_own_are_read_from_a_list(tmp_path) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.png")
    entry = {"image": "a.png", "box": [1, 2, 10, 12.4], "object": "cup", "attribute": "red"}
    other = {"image": "a.png", "box": [12, 2, 30, 20], "object": "hat", "attribute": "blue"}
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"sentence": "a {attribute} {object}", "entries": [entry, other]}))
    read = Attributes.load(path)
    assert (read.values, read.sentence) == (("red", "blue"), "a {attribute} {object}")
    ((rgb, objects),) = read.examples()
    assert rgb.shape == (20, 30, 3)
    assert [(own.name, own.attribute, own.others, int(own.mask.sum())) for own in objects] == [
        ("cup", "red", ("blue",), 9 * 10),
        ("hat", "blue", ("red",), 18 * 18),
    ]


ENTRY = {"image": "a.png", "box": [0, 0, 9, 9], "object": "cup", "attribute": "red"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is damaged"),
        ("[]", "lists no entries"),
        ('{"entries": 3}', "lists no entries"),
        (json.dumps([ENTRY]), "at least two attributes"),
        (json.dumps([ENTRY, {**ENTRY, "object": "hat", "attribute": "Red"}]), "spelled in one way"),
        (json.dumps([ENTRY, {**ENTRY, "box": [5, 5, 5, 9]}]), "number 2, whose box"),
        (json.dumps([ENTRY, {**ENTRY, "box": [0, 0, True, 9]}]), "number 2, whose box"),
        (json.dumps([{**ENTRY, "object": " "}]), "number 1, without"),
        (json.dumps([{**ENTRY, "image": None}]), "number 1, without"),
        (json.dumps([{**ENTRY, "colour": "red"}]), "number 1, with a key 'colour'"),
        (json.dumps({"sentences": "", "entries": [ENTRY]}), "a key 'sentences'"),
        (json.dumps([ENTRY, {**ENTRY, "attribute": "blue"}]), "same box of the same object in entries 1 and 2"),
        (json.dumps({"sentence": "it is {attribute}", "entries": [ENTRY]}), "without {object}"),
    ],
)
def test_a_list_that_cannot_be_meant_is_refused(content, reason, tmp_path) -> None:
    path = tmp_path / "list.json"
    path.write_text(content)
    with pytest.raises(EvaluationError, match=reason) as caught:
        Attributes.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("box", [[40, 0, 50, 9], [20, 0, 31, 9], [-1, 0, 5, 9], [3.1, 3.1, 3.2, 3.2]])
def test_a_box_outside_its_photo_is_refused(box, tmp_path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    path = tmp_path / "list.json"
    path.write_text(json.dumps([ENTRY, {**ENTRY, "box": box, "attribute": "blue"}]))
    with pytest.raises(EvaluationError, match=r"entry 2 of the attributes: box .* is not inside .* of 30x20"):
        list(Attributes.load(path).examples())


def test_objects_are_connected_parts_and_background_is_none(dataset) -> None:
    found = things(dataset[1], dataset)
    assert [(thing.label, int(thing.mask.sum()), thing.box) for thing in found] == [
        (2, 48 * 38, (2, 2, 50, 40)),
        (3, 25, (54, 54, 59, 59)),
    ]


def test_filled_pixels_are_their_nearest_neighbours() -> None:
    rgb = np.arange(5, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    mask = np.array([[False, True, False, True, True]])
    assert filled(rgb, mask)[0, :, 0].tolist()[:1] == [0]
    assert filled(rgb, mask)[0, 3:, 0].tolist() == [2, 2]
    np.testing.assert_array_equal(filled(rgb, np.ones_like(mask)), rgb)  # nothing to fill from


def test_moved_objects_keep_their_pixels_and_take_a_ground_without_objects(dataset) -> None:
    whole = moved(dataset[0], dataset[1])
    kept = dataset[0].truth > 0
    np.testing.assert_array_equal(whole[kept], dataset[0].image[kept])
    assert not whole[~kept].any()  # black ground, the dog that stood there is filled


def test_labels_at_another_size_are_of_the_nearest_pixel() -> None:
    labels = np.arange(12, dtype=np.int16).reshape(3, 4)
    np.testing.assert_array_equal(same_size(labels, (3, 4)), labels)
    np.testing.assert_array_equal(same_size(labels, (6, 8)), labels.repeat(2, 0).repeat(2, 1))
    assert same_size(labels, (1, 1)).tolist() == [[6]]


def test_shade_stays_in_a_recoloured_object() -> None:
    rgb = np.linspace(0, 250, 50).astype(np.uint8)[None, :, None].repeat(3, axis=2)
    mask = np.ones((1, 50), bool)
    found = recoloured(rgb, mask, "green")[0].astype(int)
    assert (np.diff(found[:, 1]) >= 0).all()
    assert found[-1].tolist() == list(COLOURS["green"])
