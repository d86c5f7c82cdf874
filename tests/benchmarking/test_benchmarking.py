"""Timing: ratios add up, memory is seen, the products are those of the tower, and wrong cases are one line."""

from __future__ import annotations

import json
import mmap

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from conftest import random_clip, wrap
from densevl.benchmarking import limits
from densevl.benchmarking.cases import Case, measure, parse_sizes
from densevl.benchmarking.clock import costs, medians, minor_faults, peak_mib
from densevl.benchmarking.limits import products
from densevl.benchmarking.random_model import load
from densevl.cli import app
from densevl.errors import DensevlError, ModelError, ProtocolError

CPU = torch.device("cpu")


def test_calls_are_made_in_turn_after_one_that_is_not_counted() -> None:
    made: list[str] = []
    taken = medians({"a": lambda: made.append("a"), "b": lambda: made.append("b")}, 2, CPU)
    assert made == ["a", "b", "a", "b", "a", "b"]
    assert set(taken) == {"a", "b"}


def test_pages_that_were_filled_anew_are_counted() -> None:
    found = costs({"none": lambda: None, "64 MiB": lambda: mmap.mmap(-1, 2**26).write(bytes(2**26))}, 2, CPU)
    if minor_faults() is None:
        assert found["64 MiB"].faults is None
    else:
        assert found["none"].faults < 100 < found["64 MiB"].faults
    assert all(cost.least <= cost.seconds for cost in found.values())


def test_memory_that_a_call_frees_again_is_seen() -> None:
    def spend() -> None:
        np.ones(64 * 2**20, np.uint8)

    found = peak_mib(spend, CPU)
    assert found is None or 60 < found < 80


@pytest.mark.parametrize("batch", [1, 3])
def test_products_count_every_weight_of_the_blocks(monkeypatch, batch) -> None:
    backbone = wrap(random_clip())
    run = products(backbone, batch)
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(limits, "linear", lambda x, weight: seen.append((*x.shape, weight.shape[0])))
    run()
    blocks = backbone.tower._blocks
    weights = [p for p in blocks.parameters() if p.ndim == 2]
    tokens = batch * 17
    want = {(tokens, weight.shape[1], weight.shape[0]) for weight in weights}
    assert want <= set(seen)
    assert len(seen) == len(weights) + 2  # patch embedding and read-out
    assert sum(m * k * n for m, k, n in seen) > tokens * sum(w.numel() for w in weights)
    assert isinstance(blocks, nn.Module)


@pytest.mark.parametrize("plan", ["tiles", "sliding", "whole"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_case_says_what_ran(plan, precision) -> None:
    row = measure(wrap(random_clip()), Case("naclip", plan, precision, 40, 64, 3), rounds=1)
    assert (row["recipe"], row["plan"], row["precision"]) == ("naclip", plan, precision)
    assert row["windows"] == {"tiles": 6, "sliding": 6, "whole": 1}[plan]
    assert row["tokens"] == {"tiles": 72, "sliding": 96, "whole": 40}[plan]
    assert row["of_bare"] == pytest.approx(row["seconds"] / (6 * row["bare_seconds"]))
    assert 0 < row["bare_of_products"] < 1.5


@pytest.mark.parametrize("spec", ["", "336", "336x", "ax4", "0x4", "3x4,"])
def test_a_size_that_is_none_is_refused(spec) -> None:
    with pytest.raises(ProtocolError, match="HEIGHTxWIDTH"):
        parse_sizes(spec)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: load("random:ViT-B-61"), "no architecture"),
        (lambda: measure(wrap(random_clip()), Case(plan="tile"), 1), "no plan 'tile'"),
        (lambda: measure(wrap(random_clip()), Case(recipe="naclp"), 1), "naclip"),
    ],
)
def test_a_wrong_case_is_one_line(make, said) -> None:
    with pytest.raises(DensevlError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_products_need_blocks() -> None:
    with pytest.raises(ModelError, match="no attention blocks"):
        products(type("Photo", (), {"tower": None, "name": "photo"})(), 1)


def test_the_command_prints_rows() -> None:
    options = ["--model", "mini", "--sizes", "48x64", "--labels", "1,3", "--rounds", "1", "--json"]
    found = CliRunner().invoke(app, ["bench", *options])
    assert found.exit_code == 0, found.output
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    assert [(row["plan"], row["precision"], row["labels"]) for row in rows] == [
        (plan, precision, labels)
        for plan in ("tiles", "sliding")
        for precision in ("float32", "int8")
        for labels in (1, 3)
    ]
