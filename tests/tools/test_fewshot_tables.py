"""The tables of docs/fewshot.md: what stands in them follows from the files of the benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.fewshot_tables import below, choice, figures, read


def row(one: float, four: float, spread: float = 1.0) -> dict[str, float]:
    return {"1": one, "spread 1": 0.0, "4": four, "spread 4": spread, "ms": 500.0}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two heads on two vocabularies in one file; one head of one of them measured again in another."""
    first = {
        "known, image": {"words alone": 90.0, "a": row(80, 95), "b": row(92, 93)},
        "trained style, image": {"words alone": 50.0, "a": row(20, 70, 7.4), "b": row(60, 60)},
        "known, region": {"words alone": 1.0, "a": row(2, 3)},
    }
    second = {"known, image": {"a": row(70, 99)}}
    for number, content in enumerate((first, second)):
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
    return [tmp_path / "0.json", tmp_path / "1.json"]


def test_a_cell_has_all_shots_and_the_largest_spread_and_the_last_file_counts(files: list[Path]) -> None:
    assert figures(read(files)["image"]).splitlines() == [
        "| head | known nouns, new style | known nouns, trained style |",
        "|---|---|---|",
        "| words alone | 90.0 | 50.0 |",
        "| `a` | 70.0 / 99.0 (1) | 20.0 / 70.0 (7) |",
        "| `b` | 92.0 / 93.0 (1) | 60.0 / 60.0 (1) |",
    ]


def test_points_below_the_best_are_the_mean_and_the_worst_over_vocabularies(files: list[Path]) -> None:
    found = below(read(files)["image"])
    assert found["words alone"] == {"1": (6.0, 10.0), "4": (14.5, 20.0)}
    assert found["a"] == {"1": (31.0, 40.0), "4": (0.0, 0.0)}
    assert found["b"] == {"1": (0.0, 0.0), "4": (8.0, 10.0)}
    assert choice(read(files)["image"]).splitlines()[3] == "| `a` | 31.0, 40.0 | **0.0, 0.0** | 0.5 |"


def test_a_head_that_most_vocabularies_lack_is_left_out(files: list[Path]) -> None:
    table = read(files)["image"]
    del table["trained style"]["b"]
    assert "b" not in below(table)
    assert "| `b` | 92.0 / 93.0 (1) |  |" in figures(table)
