"""Operators at their edges: nothing, one token, odd shapes and strides, every type by one table, 16,384 tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from densevl import kernels
from densevl.inference import WindowGrid
from densevl.kernels import Gaussian, RelPos

BARS = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # of the largest value, against float64
Make = Callable[..., tuple[torch.Tensor, ...]]


def heads(grid: tuple[int, int], batch: int = 2, prefix: int = 0) -> tuple[torch.Tensor, ...]:
    q, k, v = torch.randn(3, batch, 2, prefix + grid[0] * grid[1], 16)
    return q, k, v


def with_rel(grid: tuple[int, int], batch: int = 2) -> tuple[torch.Tensor, ...]:
    return (*heads(grid, batch), torch.randn(2 * batch, grid[0] * grid[1], sum(grid)))


def rows(grid: tuple[int, int], batch: int = 2) -> tuple[torch.Tensor, ...]:
    """Rows alike enough that no row of cosines has a sum near 0, which linear weights are divided by."""
    tokens = grid[0] * grid[1]
    return F.normalize(torch.rand(batch, tokens, 6) + 0.1, dim=-1), torch.randn(batch, tokens, 5)


def mixed(grid: tuple[int, int], batch: int = 2) -> tuple[torch.Tensor, ...]:
    return (*with_rel(grid, batch), torch.randn(batch, grid[0] * grid[1], 5))


def one_image(grid: tuple[int, int], batch: int = 2) -> tuple[torch.Tensor, ...]:
    return torch.randn(batch * grid[0] * grid[1], 6), torch.randn(grid[0] * grid[1], 6)


# How inputs are made for a grid, and the call; limits of `affinity_mix` lie where no cosine of random values is.
OPERATORS: dict[str, tuple[Make, Callable[..., Any]]] = {
    "attention": (heads, lambda g, q, k, v: kernels.grid_attention(q, k, v, g)),
    "gaussian": (heads, lambda g, q, k, v: kernels.grid_attention(q, k, v, g, bias=Gaussian(1.5), want_lse=True)),
    "relative": (with_rel, lambda g, q, k, v, r: kernels.grid_attention(q, k, v, g, bias=RelPos(r))),
    "affinity": (rows, lambda g, x, v: kernels.affinity_apply(x, v, gamma=3.0)),
    "affinity-linear": (rows, lambda g, x, v: kernels.affinity_apply(x, v, linear=True)),
    "mix": (mixed, lambda g, q, k, v, r, x: kernels.affinity_mix(q, k, v, x, grid=g, covered=g, rel=r, factor=-9.0)),
    "nearest": (one_image, lambda g, x, m: kernels.nearest(x, m)[0]),
}


def values(got: Any) -> tuple[torch.Tensor, ...]:
    return got if isinstance(got, tuple) else (got,)


def close(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype, size: torch.Tensor | None = None) -> None:
    """Within the table, of the largest entry of `size`, or of what is wanted."""
    assert got.shape == want.shape
    largest = (want if size is None else size).abs().max().clamp(min=1e-3)
    assert (got.double() - want.double()).abs().max() <= BARS[dtype] * largest


@pytest.mark.parametrize("dtype", list(BARS), ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("grid", [(1, 1), (3, 7), (13, 1)], ids=["one-token", "odd", "one-column"])
@pytest.mark.parametrize("name", list(OPERATORS))
def test_types_and_odd_grids_stay_within_the_table(name, grid, dtype) -> None:
    make, call = OPERATORS[name]
    given = tuple(t.to(dtype) for t in make(grid))
    exact = values(call(grid, *(t.double() for t in given)))
    for got, want in zip(values(call(grid, *given)), exact, strict=True):
        close(got, want, dtype)


@pytest.mark.parametrize("name", list(OPERATORS))
def test_strides_do_not_matter(name) -> None:
    make, call = OPERATORS[name]
    given = make((3, 7))
    for change in (lambda t: F.pad(t, (1, 2))[..., 1:-2], lambda t: t.mT.contiguous().mT):
        laid = tuple(change(t) for t in given)
        assert not any(t.is_contiguous() for t in laid)
        for got, want in zip(values(call((3, 7), *laid)), values(call((3, 7), *given)), strict=True):
            torch.testing.assert_close(got, want, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(("grid", "batch"), [((0, 0), 1), ((0, 0), 0), ((3, 4), 0)], ids=["tokens", "both", "images"])
@pytest.mark.parametrize("name", list(OPERATORS))
def test_nothing_gives_nothing(name, grid, batch) -> None:
    make, call = OPERATORS[name]
    for got in values(call(grid, *make(grid, batch))):
        assert got.numel() == 0


def test_no_images_decode_to_no_labels() -> None:
    plan = WindowGrid.place(16, 16, None, 1, 8).plan(9, 11)
    for got in kernels.dense_decode(torch.randn(0, 2, 2, 3), plan, 10.0):
        assert got.shape == (0, 9, 11)


GRID = (128, 128)
SEEN = torch.tensor([0, 127, 128, 9000, 16383])  # rows that are compared with the formula written out


def many() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.randn(3, 1, 1, 128 * 128, 8))


@pytest.mark.parametrize("bias", ["none", "gaussian", "relative"])
def test_attention_over_16384_tokens(bias) -> None:
    q, k, v = many()
    rel = torch.randn(1, 128 * 128, 256)
    given = {"none": None, "gaussian": Gaussian(5.0), "relative": RelPos(rel)}[bias]
    got = kernels.grid_attention(q, k, v, GRID, bias=given)
    logits = q[0, 0, SEEN].double() @ k[0, 0].double().T * 8**-0.5
    at = torch.arange(128 * 128)
    if bias == "gaussian":
        away = (SEEN[:, None] // 128 - at // 128) ** 2 + (SEEN[:, None] % 128 - at % 128) ** 2
        logits += torch.exp(-away / 50.0)
    if bias == "relative":
        own = rel[0, SEEN].double()
        logits += own[:, at // 128] + own[:, 128 + at % 128]
    close(got[0, 0, SEEN], logits.softmax(-1) @ v[0, 0].double(), torch.float32, size=v)


def test_affinity_over_16384_tokens() -> None:
    unit, v = F.normalize(many()[0][0] + 0.5, dim=-1), many()[1][0]
    cosines = unit[0, SEEN].double() @ unit[0].double().T
    mean = unit[0].double().mean(0).square().sum()
    weights = (3.0 * cosines).masked_fill(cosines < 0.5 * mean, -torch.inf).softmax(-1)
    got = kernels.affinity_apply(unit, v, gamma=3.0, beta=0.5)[0, SEEN]
    torch.testing.assert_close(got.double(), weights @ v[0].double(), atol=1e-4, rtol=0)  # entries at the cut may flip


def test_mixing_over_16384_tokens() -> None:
    q, k, v = many()
    inside = (torch.arange(128)[:, None] * 128 + torch.arange(8)).flatten()  # mixed; looked at is all
    seen = torch.tensor([0, 7, 8, 1023])
    x = torch.randn(1, len(inside), 4)
    got = kernels.affinity_mix(q, k, v, x, grid=GRID, covered=(128, 8), factor=-9.0)[0, seen]
    logits = q[0, 0, inside[seen]].double() @ k[0, 0].double().T * 8**-0.5
    unit = F.normalize(v[0, 0, inside].double(), dim=-1)
    limit = (-9.0 * unit[seen] @ unit.mean(0)).clamp(max=0.9)
    weights = logits.softmax(-1)[:, inside] * (unit[seen] @ unit.T > limit[:, None])
    want = weights @ x[0].double() / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(got.double(), want, atol=1e-3, rtol=0)  # entries at the limit may flip


def test_nearest_and_decode_over_16384_tokens() -> None:
    x, memory = (t[0, 0] for t in many()[:2])
    similarity, index = kernels.nearest(x, memory)
    best = (x[SEEN].double() @ memory.double().T).max(dim=1)
    close(similarity[SEEN], best.values, torch.float32)
    assert torch.equal(index[SEEN], best.indices)
    plan = WindowGrid.place(128, 128, None, 1, 1).plan(128, 128)
    label, score, _ = kernels.dense_decode(x.view(1, 128, 128, 8), plan)
    assert torch.equal(label.flatten().long(), x.argmax(dim=1))
    torch.testing.assert_close(score.flatten(), x.amax(dim=1))
