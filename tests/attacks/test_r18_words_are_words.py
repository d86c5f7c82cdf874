"""R18: any words are labels or are refused in one line; braces mean nothing, and many of them are soon read."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from attacks.spending import spending
from densevl import Segmenter
from densevl.errors import LabelError
from densevl.vocabulary import LabelSet
from densevl.vocabulary.templates import fill

ODD = [
    "{0.__class__} {}",
    "{",
    "{{}}",
    "%s %(x)s",
    "{label.__init__.__globals__}",
    "$HOME",
    "<script>alert(1)</script>",
]


@pytest.mark.parametrize(
    ("given", "count"),
    [([f"thing {i}" for i in range(10_000)], 10_000), (["x" * 5000], 1), (["{} {0.__class__} {"], 1)],
    ids=["10,000 labels", "5,000 characters", "braces"],
)
def test_unusual_labels_are_taken(given, count) -> None:
    assert len(LabelSet.parse(given)) == count


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "no labels"),
        (" ", "no labels"),
        ("cat,,dog", "empty label"),
        ("cat,dog,", "trailing comma"),
        (["cat", "cat"], "'cat' is given twice"),
        (["cat", "Cat"], "given twice"),
        (["cat|dog", "dog"], "'dog' is given twice .in 'cat' and 'dog'"),
        (["x" * 50_000], "50000 characters; the limit is 20000"),
        (["cat | " + "x" * 50_000], "50000 characters"),
        (["not: cat"], "says only what it is not"),
        (["cat | not: Cat"], "'cat' is 'Cat' and not 'Cat'"),
        (["cat | not: "], "empty negative"),
        (["cat", 3], "3 is a int"),
        (["|"], "empty label"),
        ("no/such/file.txt", "cannot be read"),
        ({}, "no labels"),
        (None, "is a NoneType; give a list"),
        (3, "is a int"),
        ({"cat", "dog"}, "has no order"),
        ({"cat": 3.5}, "label 'cat' is a float"),
        ({"cat": ["a"], "cat ": ["b"]}, "'cat' is given twice"),
        (["cat", "nothing"], "what pixels without a label are called"),
        (["half \ud800"], "lone surrogate"),
        ([f"thing {i}" for i in range(40_000)], "holds at most 32767"),
    ],
)
def test_unusable_labels_say_why_in_one_line(given, reason) -> None:
    with pytest.raises(LabelError, match=reason) as caught:
        LabelSet.parse(given)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_braces_in_labels_mean_nothing() -> None:
    assert fill("a photo of a {}.", "{0.__class__} {}") == "a photo of a {0.__class__} {}."


def test_odd_words_reach_the_result_as_they_are(tiny) -> None:
    segment = Segmenter(tiny, templates=["a {} of {0.__class__}"], protocol={"short_side": 32})
    result = segment(np.zeros((40, 40, 3), np.uint8), ODD)
    assert list(result.names) == ODD


def test_ten_thousand_labels_are_parsed_soon() -> None:
    with spending(seconds=1, megabytes=100):
        assert len(LabelSet.parse([f"thing {index}" for index in range(10_000)])) == 10_000


def test_no_source_formats_what_it_is_given() -> None:
    """`str.format` reads attributes of what it is handed: a template of somebody else would show them."""
    found = []
    for path in sorted((Path(__file__).parents[2] / "densevl").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if ".format(" in text or "format_map" in text else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                of = node.func.value
                if node.func.attr in ("format", "format_map") and not isinstance(of, ast.Constant):
                    found.append(f"{path.stem}: {ast.unparse(of)}")
    # Whose templates are their own.
    assert sorted(found) == ["common: wanted", "words: prompt", "words: prompt"]
