"""Labels in every form people write them, and clear words for the forms they should not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from densevl.errors import LabelError, OptionError
from densevl.vocabulary import Background, LabelSet
from densevl.vocabulary.background import NEWEST, WORD_LISTS


@pytest.mark.parametrize(
    ("given", "names", "synonyms"),
    [
        (["cat", "dog"], ("cat", "dog"), (("cat",), ("dog",))),
        ("cat,dog", ("cat", "dog"), (("cat",), ("dog",))),
        (" cat , dog|puppy ", ("cat", "dog"), (("cat",), ("dog", "puppy"))),
        (["car | truck", "a  red\tbus"], ("car", "a red bus"), (("car", "truck"), ("a red bus",))),
        ({"vehicle": ["car", "truck"], "cat": "cat"}, ("vehicle", "cat"), (("car", "truck"), ("cat",))),
        ({"sky": []}, ("sky",), (("sky",),)),
        (["{weird} label", "ünïcödé 猫"], ("{weird} label", "ünïcödé 猫"), (("{weird} label",), ("ünïcödé 猫",))),
    ],
)
def test_forms_people_write(given, names, synonyms) -> None:
    labels = LabelSet.parse(given)
    assert (labels.names, labels.synonyms) == (names, synonyms)
    assert LabelSet.parse(labels) is labels


def test_queries_know_their_class() -> None:
    labels = LabelSet.parse("car|truck,sky")
    assert labels.queries == ["car", "truck", "sky"]
    assert labels.query_classes == [0, 0, 1]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.txt", "cat\n\ndog | puppy\n"),
        ("l.json", '["cat", "dog | puppy"]'),
        ("c.txt", "# animals\ncat\ndog, puppy\n"),
        ("d.json", '{"cat": [], "dog": ["dog", "puppy"]}'),
    ],
)
@pytest.mark.parametrize("form", [str, Path, lambda p: f"@{p}"], ids=["str", "path", "at"])
def test_files(tmp_path, name, text, form) -> None:
    (tmp_path / name).write_text("\ufeff" + text, encoding="utf-8")
    labels = LabelSet.parse(form(tmp_path / name))
    assert labels.synonyms == (("cat",), ("dog", "puppy"))


@pytest.mark.parametrize("text", ["3", "{broken", '"cat"', "[" * 100_000])
def test_unusable_files_say_why(tmp_path, text) -> None:
    (tmp_path / "l.json").write_text(text)
    with pytest.raises(LabelError, match=r"l\.json"):
        LabelSet.parse(tmp_path / "l.json")


@pytest.mark.parametrize(
    ("given", "synonyms", "negatives"),
    [
        (["dog | puppy | not: toy dog"], (("dog", "puppy"),), ("toy dog",)),
        ("dog|not:toy dog,cat", (("dog",), ("cat",)), ("toy dog",)),
        ({"dog": ["not: toy dog", "not: hot dog"]}, (("dog",),), ("toy dog", "hot dog")),
        (["dog | not: cat", "cat"], (("dog",), ("cat",)), ()),  # competes already
        (["dog | not: toy", "cat | not: Toy"], (("dog",), ("cat",)), ("Toy",)),
    ],
)
def test_negatives_stand_beside_the_classes(given, synonyms, negatives) -> None:
    labels = LabelSet.parse(given)
    assert (labels.synonyms, labels.negatives) == (synonyms, negatives)
    assert len(labels.queries) == len(labels.query_classes) == sum(len(words) for words in synonyms)


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        (None, Background()),
        ("none", Background()),
        ("unknown", Background(unknown=True)),
        (0.3, Background(threshold=0.3)),
        ("0.3", Background(threshold=0.3)),
        ("sky, wall", Background(words=("sky", "wall"))),
        ("sky|cloud, wall", Background(words=("sky", "cloud", "wall"))),
        (np.float32(0.5), Background(threshold=0.5)),
        (["sky"], Background(words=("sky",))),
        (["voc"], Background(words=("voc",))),  # a list is words, a string may name a list of them
        ("context", Background(words=("background",))),
        ("context@1, lamp,0.15", Background(words=("background", "lamp"), threshold=0.15)),
        ("1-max", Background(rest=True)),
        ("sky,unknown", Background(words=("sky",), unknown=True)),
        (Background(words=("a",), threshold=0.1), Background(words=("a",), threshold=0.1)),
    ],
)
def test_background_policies(spec, want) -> None:
    assert Background.parse(spec) == want


def test_a_label_set_made_by_hand_is_checked_like_any_other() -> None:
    assert hash(LabelSet(["a"], [["a"]])) == hash(LabelSet(("a",), (("a",),)))
    for names, synonyms in [(("a",), ((),)), (("a", "b"), (("a",),))]:
        with pytest.raises(LabelError):
            LabelSet(names, synonyms)


@pytest.mark.parametrize(("name", "count"), [("voc", 26), ("coco-object", 17), ("context", 1)])
def test_background_lists_have_the_length_of_the_papers(name, count) -> None:
    assert len(set(WORD_LISTS[NEWEST[name]])) == count == len(Background.parse(name).words)
    assert set(WORD_LISTS["coco-object@1"]) < set(WORD_LISTS["voc@1"])


@pytest.mark.parametrize("spec", ["voc@9", "nan", 1.5, -0.1, "1.0", ["sky", 3], "sky,,wall", object()])
def test_unusable_backgrounds(spec) -> None:
    with pytest.raises(OptionError):
        Background.parse(spec)


def test_labels_survive_json() -> None:
    labels = LabelSet.parse("car|truck,sky")
    again = json.loads(json.dumps(dict(zip(labels.names, labels.synonyms, strict=True))))
    assert LabelSet.parse(again) == labels
