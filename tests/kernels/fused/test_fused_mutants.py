# ruff: noqa: E501 - pieces of source text
"""Broken copies of the kernels: each must fail the comparison, or touch memory that is not its own.

A mask dropped from a load changes no number where the scores are masked later; only the interpreter's address check
sees it, and on a device it would be an illegal access.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from triton.runtime.errors import InterpreterError

import densevl.kernels.triton
from fused import kernel_checks as check

Change = tuple[str, str, str, dict[str, Any]]  # name, text, what takes its place, the case that tells

GAUSSIAN: dict[str, Any] = {"heads": 1, "batch": 2}
RELATIVE: dict[str, Any] = {"bias": "rel", "heads": 2, "batch": 1, "grid": (5, 33)}
WIDE: dict[str, Any] = {"grid": (2, 66), "heads": 1, "batch": 1}
SMALL: dict[str, Any] = {"batch": 1, "image": (24, 32), "out": (21, 26)}

DECODE: list[Change] = [
    ("store mask", "tl.store(label + at, chosen, mask=inside)", "tl.store(label + at, chosen)", SMALL),
    ("only rows masked", "(y < height) & (x < width)", "(y < height)", SMALL),
    ("low part of the scores", "scores = tl.dot(weights_high, part_low, scores)", "pass", SMALL),
    ("low part of the weights", "scores = tl.dot(weights_low, part_high, scores)", "pass", SMALL),
    ("axes swapped", "tap // KX) * columns", "tap // KX)", SMALL),
    ("taps swapped", "(tap % KX)[None, :]", "(tap // KX)[None, :]", SMALL),
    ("last of equals", "better = scores > best", "better = scores >= best", {**SMALL, "queries": 32, "doubled": True}),
    ("scale", "(scale * LOG2E))", "scale)", SMALL),
    ("shift left out", "value = tl.maximum(scale * shift +", "value = tl.maximum(", SMALL),
    ("first block only", "range(0, queries, BLOCK)", "range(0, BLOCK, BLOCK)", SMALL),
    ("image stride", "first_token = image * tokens", "first_token = image * 0", {**SMALL, "batch": 2}),
]
ATTENTION: list[Change] = [
    ("key mask", "load_rows(k, key, k_row, valid, 0, D0)", "load_rows(k, key, k_row, valid | True, 0, D0)", GAUSSIAN),
    ("value mask", "load_rows(v, key, v_row, valid, 0, D0)", "load_rows(v, key, v_row, valid | True, 0, D0)", GAUSSIAN),
    ("query mask", "load_rows(q, query, q_row, real, 0, D0)", "load_rows(q, query, q_row, real | True, 0, D0)", GAUSSIAN),
    ("score mask", 'tl.where(valid[None, :], logits, float("-inf"))', "logits", GAUSSIAN),
    ("store mask", "out.dtype.element_ty), mask=real[:, None])\n    if D1", "out.dtype.element_ty))\n    if D1", GAUSSIAN),
    ("rescaling of values", "v0, acc0 * keep[:, None]", "v0, acc0", GAUSSIAN),
    ("rescaling of the sum", "total = total * keep + tl.sum(p, axis=1)", "total = total + tl.sum(p, axis=1)", GAUSSIAN),
    ("one prefix key", "range(0, key_prefix)", "range(1, key_prefix)", GAUSSIAN),
    ("bias of prefix queries", "tl.where((query >= prefix)[:, None], ", "tl.where(real[:, None], ", GAUSSIAN),
    ("second row's bias", "(near - 1) * (near - 1)", "near * near", GAUSSIAN),
    ("rows swapped", "(slot < COLUMNS)[None, :], down, next_row)\n                logits += across * down",
     "(slot < COLUMNS)[None, :], next_row, down)\n                logits += across * down", GAUSSIAN),
    ("scale", "logits *= scale * LOG2E\n            if BIAS == GAUSSIAN", "logits *= scale\n            if BIAS == GAUSSIAN", GAUSSIAN),
    ("stride swapped", "v += batch * v_batch + head * v_head", "v += batch * v_head + head * v_batch", {**GAUSSIAN, "heads": 2}),
    ("relative axes swapped", "rel[:, None] + grid_h + x[None, :]", "rel[:, None] + x[None, :]", RELATIVE),
    ("relative mask", "real[:, None] & (x < grid_w)[None, :]", "(real | True)[:, None] & (x < grid_w)[None, :]", RELATIVE),
    ("relative row", "tl.load(rel + first_y, mask=real", "tl.load(rel, mask=real", RELATIVE),
    ("columns past the first tile", "range(0, grid_w, COLUMNS)", "range(0, COLUMNS, COLUMNS)", WIDE),
    ("second part of wide heads", "logits = tl.dot(q1, part, logits, input_precision=\"ieee\")", "pass",
     {"width": 80, "heads": 1, "batch": 1}),
]  # fmt: skip
CUT: dict[str, Any] = {"gamma": 3.0, "beta": 1.2, "batch": 1}
AFFINITY: list[Change] = [
    ("row mask", "own_real = (row < last)[:, None]", "own_real = (row < last + ROWS)[:, None]", CUT),
    (
        "column mask",
        "other_real = (column < tokens)[:, None]",
        "other_real = (column < tokens + COLUMNS)[:, None]",
        CUT,
    ),
    ("threshold", "(cosines >= tl.load(cut + image)) | diagonal", "(cosines >= 0.0) | diagonal", CUT),
    ("diagonal", ") | diagonal", ")", {**CUT, "equal": True}),
    ("scale", "(gamma * LOG2E)", "gamma", CUT),
    ("floor", "if FLOOR:", "if False:", {"gamma": 3.0, "floor": 0.5, "batch": 1}),
    ("linear", "if RULE != LINEAR:", "if True:", {"linear": True, "floor": 0.2, "batch": 1}),
    ("image", "x += image * x_batch", "x += image * 0", {**CUT, "batch": 2}),
    ("chunk", "row = first + local", "row = local", {**CUT, "tokens": 200}),
    (
        "stride swapped",
        "local[:, None] * weights_row + column[None, :]",
        "local[None, :] * weights_row + column[:, None]",
        CUT,
    ),
]
MIX: list[Change] = [
    ("key mask", "load_rows(other, key, k_row, there, 0, D0)", "load_rows(other, key, k_row, there | True, 0, D0)", {"covered": (5, 9)}),
    ("value mask", "load_rows(value, column, unit_row, there, 0, D0)", "load_rows(value, column, unit_row, there | True, 0, D0)", {}),
    ("store mask", "mask=real[:, None] & there[None, :])\n\n", "mask=real[:, None] & (there | True)[None, :])\n\n", {}),
    ("limit", "tl.where(cosines > least[:, None], tl.exp2(logits), 0.0)", "tl.exp2(logits)", {}),
    ("logsumexp", "(scale * LOG2E) - tl.load(lse + pair * tokens + query, mask=real, other=0.0)[:, None]", "(scale * LOG2E)", {}),
    ("query on the whole grid", "query = row // inner_w * grid_w + row % inner_w", "query = row", {}),
    ("key on the whole grid", "key = y * grid_w + x", "key = column", {}),
    ("relative row", "tl.load(terms + y,", "tl.load(terms,", {}),
    ("scale", "logits * (scale * LOG2E)", "logits * scale", {}),
    ("last head", "range(0, heads)", "range(0, heads - 1)", {}),
]  # fmt: skip
NEIGHBOURS: list[Change] = [
    ("row mask", "own_real = (row < rows)[:, None]", "own_real = (row < rows + ROWS)[:, None]", {}),
    ("column mask", "other_real = (column < last)[:, None]", "other_real = (column < last + COLUMNS)[:, None]", {}),
    ("score mask", 'tl.where((column < last)[None, :], alike, float("-inf"))', "alike + 0.5 * (column >= last)[None, :]", {}),
    ("store mask", "best, mask=row < rows)", "best)", {}),
    ("last of equals", "tl.min(tl.where(alike == most[:, None], column[None, :], remembered), axis=1)",
     "tl.max(tl.where(alike == most[:, None], column[None, :], 0), axis=1)", {"memory": 30, "doubled": True}),
    ("one split", "split * share, last, COLUMNS", "0, share, COLUMNS", {}),
]  # fmt: skip
KERNELS: dict[str, tuple[Callable[..., None], list[Change]]] = {
    "decode": (check.check_decode, DECODE),
    "attention": (check.check_attention, ATTENTION),
    "affinity": (check.check_affinity, AFFINITY),
    "mix": (check.check_mix, MIX),
    "neighbours": (check.check_nearest, NEIGHBOURS),
}
ALL = [(kernel, *change) for kernel, (_, changes) in KERNELS.items() for change in changes]
FOLDER = Path(densevl.kernels.triton.__file__).parent


@pytest.mark.skipif(torch.cuda.is_available(), reason="broken kernels are for the interpreter, not for a device")
@pytest.mark.parametrize(
    ("kernel", "name", "text", "other", "case"), ALL, ids=[f"{c[0]}-{c[1]}".replace(" ", "-") for c in ALL]
)
def test_a_broken_kernel_is_caught(kernel, name, text, other, case, device, tmp_path, monkeypatch) -> None:
    compare, _ = KERNELS[kernel]
    source = (FOLDER / f"{kernel}.py").read_text(encoding="utf-8")
    assert source.count(text) == 1, "the mutation does not fit the source"
    path = tmp_path / f"broken_{kernel}.py"
    # An operator of its own, so that torch keeps the sound one.
    path.write_text(source.replace(text, other).replace('"densevl::', '"broken::'), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    broken = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(broken)
    if kernel == "affinity":
        broken.HELD_BYTES = 0  # several chunks of rows
    monkeypatch.setitem(sys.modules, f"densevl.kernels.triton.{kernel}", broken)
    with pytest.raises((AssertionError, InterpreterError)):
        compare(device, **case)
