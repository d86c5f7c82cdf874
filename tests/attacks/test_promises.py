"""SECURITY.md names tests that there are, and all that are here."""

from __future__ import annotations

import re
from pathlib import Path

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
