"""Kernels against the float64 reference: every branch once, then drawn shapes. `smoke` names the quick half."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densevl import kernels
from densevl.inference import WindowGrid
from densevl.kernels import Gaussian, use
from densevl.kernels.triton import affinity, attention, decode, mix, neighbours
from fused import kernel_checks as check
from fused.conftest import INTERPRETED
from fused.kernel_checks import check_affinity, check_attention, check_decode, check_mix, check_nearest

TYPES = [torch.float32, torch.float16, torch.bfloat16]
drawn = settings(deadline=None, max_examples=5 if INTERPRETED else 12, derandomize=True)
types = st.sampled_from(TYPES)


def name(case: object) -> str:
    if not isinstance(case, dict):
        return str(case).removeprefix("torch.")
    return "-".join(f"{key}={value}" for key, value in case.items()).replace(" ", "") or "plain"


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"scale": None},
        {"queries": 1, "image": (8, 8), "crop": None, "out": (9, 9)},
        {"queries": 33, "crop": None},
        {"queries": 32, "doubled": True, "image": (16, 16), "crop": None, "out": (12, 12)},
        {"stride": 8, "out": (33, 21)},  # many taps a tile
    ],
    ids=name,
)
def test_decode_smoke(case, device) -> None:
    check_decode(device, **case)


@given(
    image=st.tuples(st.integers(9, 60), st.integers(9, 60)),
    crop=st.sampled_from([16, 32, 48]),
    part=st.sampled_from([1, 2]),
    out=st.tuples(st.integers(9, 60), st.integers(9, 60)),
    queries=st.integers(1, 80),
)
@drawn
def test_decode(device, image, crop, part, out, queries) -> None:
    check_decode(device, image, crop, crop // part, 8, out, queries, batch=1)


@pytest.mark.parametrize("dtype", TYPES, ids=name)
@pytest.mark.parametrize("bias", [None, "gaussian", "rel"])
def test_attention_smoke(bias, dtype, device) -> None:
    check_attention(device, bias=bias, dtype=dtype)


@pytest.mark.parametrize(
    "case",
    [
        {"grid": (1, 1), "prefix": 0},
        {"grid": (1, 1), "prefix": 5},
        {"grid": (3, 40)},
        {"grid": (3, 40), "bias": "rel"},
        {"grid": (2, 70), "heads": 1},
        {"grid": (2, 70), "heads": 1, "bias": "rel"},
        {"width": 80, "heads": 1},
        {"width": 80, "heads": 1, "bias": "rel"},
        {"prefix_keys": False},
        {"prefix_keys": False, "bias": None},
        {"grid": (9, 17), "prefix": 5, "batch": 1, "heads": 1},
        {"scale": 0.9, "size": 3.0},
        {"lse": False, "bias": None, "prefix": 0},
        {"shifted": True, "heads": 1},
        {"shifted": True, "heads": 1, "bias": "rel", "dtype": torch.float16},
    ],
    ids=name,
)
def test_attention_shapes_smoke(case, device) -> None:
    check_attention(device, **case)


@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 20)),
    prefix=st.sampled_from([0, 1, 5]),
    width=st.sampled_from([16, 32, 80]),
    batch=st.sampled_from([1, 2]),
    heads=st.sampled_from([1, 3]),
    dtype=types,
    size=st.sampled_from([0.5, 3.0]),
    bias=st.sampled_from([None, "gaussian", "rel"]),
)
@drawn
def test_attention(device, grid, prefix, width, batch, heads, dtype, size, bias) -> None:
    check_attention(device, grid, prefix, True, width, batch, heads, dtype, size, bias)


RULES = [
    {"gamma": 3.0, "beta": 1.2},
    {"gamma": 3.0, "beta": 1.2, "floor": 0.2},
    {"gamma": 3.0, "floor": 0.5},
    {"linear": True, "floor": 0.4},
    {"linear": True},
]


@pytest.mark.parametrize("dtype", TYPES, ids=name)
@pytest.mark.parametrize("rule", RULES, ids=name)
def test_affinity_smoke(rule, dtype, device) -> None:
    check_affinity(device, dtype=dtype, **rule)


@pytest.mark.parametrize("held", [0, 2**25])
@pytest.mark.parametrize(
    "case",
    [{"tokens": 1}, {"equal": True, "tokens": 9, "beta": 1.2}, {"tokens": 300, "width": 64, "batch": 1}, {"width": 65}],
    ids=name,
)
def test_affinity_shapes(case, held, device, monkeypatch) -> None:
    monkeypatch.setattr(affinity, "HELD_BYTES", held)  # 0: one tile of rows at a time
    check_affinity(device, **{"gamma": 3.0, "beta": 1.2, **case})


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *(({}, dtype) for dtype in TYPES),
        *(({"width": 80, "heads": 1}, dtype) for dtype in TYPES),
        ({"rel": False}, torch.float16),
        ({"negative": 0.6, "factor": -1.0}, torch.bfloat16),
        ({"covered": (5, 9)}, torch.float32),
    ],
    ids=name,
)
def test_mix_smoke(case, dtype, device) -> None:
    check_mix(device, dtype=dtype, **case)


@pytest.mark.parametrize(
    "case",
    [
        {"grid": (1, 1), "covered": (1, 1)},
        {"grid": (2, 70), "covered": (2, 66), "batch": 1, "heads": 1},
        {"grid": (9, 9), "covered": (9, 8), "batch": 1},
    ],
    ids=name,
)
def test_mix_shapes(case, device) -> None:
    check_mix(device, **case)


@pytest.mark.parametrize("dtype", TYPES, ids=name)
def test_nearest_smoke(dtype, device) -> None:
    check_nearest(device, dtype=dtype)


@pytest.mark.parametrize("programs", [1, 264])
@pytest.mark.parametrize("case", [{"rows": 1, "memory": 1}, {"rows": 130, "memory": 129, "doubled": True}], ids=name)
def test_nearest_shapes(case, programs, device, monkeypatch) -> None:
    monkeypatch.setattr(neighbours, "PROGRAMS", programs)  # one split, or as many as there are tiles
    check_nearest(device, **case)


@given(rows=st.integers(1, 150), bank=st.integers(1, 400), width=st.sampled_from([1, 63, 64, 100]), dtype=types)
@drawn
def test_nearest(device, rows, bank, width, dtype) -> None:
    check_nearest(device, rows, bank, width, dtype)


def test_operators_reach_their_kernels_smoke(device, monkeypatch) -> None:
    launched = []

    def record(module: ModuleType, name: str) -> None:
        launch = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: launched.append(name) or launch(*args))

    homes = {decode: "dense_decode", attention: "grid_attention", affinity: "affinity_apply", mix: "affinity_mix"}
    homes[neighbours] = "nearest"
    for module, name in homes.items():
        record(module, name)
    q, k, v = torch.randn(3, 1, 2, 12, 16, device=device).half()
    x = torch.nn.functional.normalize(torch.randn(1, 12, 8, device=device), dim=-1).half()
    plan = WindowGrid.place(16, 16, None, 1, 8).plan(12, 12)
    scores = torch.randn(1, 2, 2, 3, device=device)
    calls = [
        lambda: kernels.dense_decode(scores, plan, 10.0),
        lambda: kernels.grid_attention(q, k, v, (3, 4), bias=Gaussian(2.0), want_lse=True),
        lambda: kernels.affinity_apply(x, v[:, 0], gamma=3.0),
        lambda: (kernels.affinity_mix(q, k, v, x, grid=(3, 4), covered=(3, 4), factor=-9.0),),
        lambda: kernels.nearest(x[0], x[0]),
    ]
    for call in calls:
        with use("triton"):
            got = call()
        with use("torch"):
            want = call()
        for one, other in zip(got, want, strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, atol=5e-3, rtol=5e-3)
    assert launched == list(homes.values())


GRADIENTS = {
    "decode": (lambda q: kernels.dense_decode(q[:, 0, :6].unflatten(1, (2, 3)), PLAN, 3.0)[1:]),
    "attention": lambda q: (kernels.grid_attention(q, q, q, (3, 4), bias=Gaussian(2.0)),),
    "affinity": lambda q: (kernels.affinity_apply(q[:, 0], q[:, 1], gamma=3.0, floor=0.1),),
    "mix": lambda q: (kernels.affinity_mix(q, q, q, q[:, 0], grid=(3, 4), covered=(3, 4), factor=-9.0),),
    "nearest": lambda q: kernels.nearest(q[0, 0], q[0, 1])[:1],
}
PLAN = WindowGrid.place(16, 24, None, 1, 8).plan(12, 12)


@pytest.mark.parametrize("operator", list(GRADIENTS))
def test_gradients_smoke(operator, device) -> None:
    """No kernel has a backward pass: where a gradient is asked for torch runs, on a device as on the CPU."""
    torch.manual_seed(0)
    given = torch.nn.functional.normalize(torch.randn(1, 2, 12, 16, dtype=torch.float64), dim=-1)
    gradients = []
    for where, dtype in ((device, torch.float32), (torch.device("cpu"), torch.float64)):
        q = given.to(where, dtype).requires_grad_(True)
        sum(part.square().sum() for part in GRADIENTS[operator](q)).backward()
        gradients.append(q.grad)
    assert gradients[1].abs().max() > 0
    check.close(gradients[0].cpu(), gradients[1], check.BARS[torch.float32])
