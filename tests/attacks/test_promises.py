"""SECURITY.md names tests that there are, and all that are here; its figures are theirs."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def test_each_promise_names_its_tests_and_each_test_here_is_named() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| **")]
    assert len(rows) >= 20
    named = set()
    for row in rows:
        files = re.findall(r"`([\w/]*test_\w+\.py)`", row.rsplit("|", 2)[1])
        assert files, row
        for name in files:
            path = ROOT / name if "/" in name else HERE / name
            assert path.is_file(), f"{name} of {row[:60]}"
            named.add(path)
    assert set(HERE.glob("test_r*.py")) <= named


FIGURES = {
    # what SECURITY.md says, each number a group: what makes them
    r"within (\d+) s of CPU and (\d+) MB": ("test_r01_no_code_from_weights", lambda m: (m.SECONDS, m.MEMORY)),
    r"over (\d+) megapixels": ("densevl.images.limit", lambda m: (m.MAX_PIXELS // 10**6,)),
    r"at most (\d+) deep": ("densevl.evaluation.config", lambda m: (m.DEPTH,)),
    r"at most (\d+) MB of scores": ("densevl.inference.blocks", lambda m: (m.HELD // 2**20,)),
    r"(\d+) random cases": ("test_r12_measures_are_right", lambda m: (m.CASES,)),
    r"over (\d+) MiB, or over (\d+) MiB at (\d+) to 1": (
        "densevl.images.addresses",
        lambda m: (m.MOST_UNPACKED // 2**20, m.SMALL // 2**20, m.MOST_RATIO),
    ),
    r"(\d+) hostile requests": ("hostile_requests", lambda m: (len(m.ATTACKS),)),
    r"(\d+) clients on 2 slots": ("test_r19_the_server_stands", lambda m: (m.CROWD,)),
    r"(\d+) commands run": ("test_r20_nothing_is_missed_in_silence", lambda m: (len(m.SHIPPED),)),
}


@pytest.mark.parametrize("said", FIGURES)
def test_a_figure_is_that_of_the_tests(said: str) -> None:
    module, figures = FIGURES[said]
    found = re.findall(said, (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(found) == 1
    numbers: Any = found[0] if isinstance(found[0], tuple) else found
    assert tuple(map(int, numbers)) == figures(import_module(module if "." in module else f"tests.attacks.{module}"))
