"""The figures in docs/kernels.json meet their bars; what is compiled has its own gate in test_aot.py."""

from __future__ import annotations

from tools.kernels.page import DOCS, read_record


def test_recorded_ratios_and_memory_meet_their_bars() -> None:
    record = read_record()
    assert all(row["ratio"] >= row["bar"] for row in record["cpu"]["rows"])
    assert all(row["extra_mb"] <= row["bar_mb"] for row in record["memory"]["rows"])


def test_the_page_names_every_recorded_case() -> None:
    page, record = (DOCS / "kernels.md").read_text(encoding="utf-8"), read_record()
    assert all(row["what"].rstrip(".") in page for section in ("cpu", "memory") for row in record[section]["rows"])
