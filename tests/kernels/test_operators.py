"""Operators as users call them on a CPU: choices with reasons, checked shapes, references against plain formulas."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from densevl import kernels
from densevl.errors import DensevlError, RecipeError
from densevl.inference import WindowGrid
from densevl.kernels import Gaussian, KernelError, KernelUnavailable, RelPos, affinity, attention, neighbours, use
from densevl.kernels.dispatch import mode

GRID = (4, 5)


def qkv(total: int = 20, heads: int = 3, width: int = 16, batch: int = 2) -> list[torch.Tensor]:
    return list(torch.randn(3, batch, heads, total, width))


def arguments() -> dict[str, tuple]:
    q, k, v = qkv()
    x = F.normalize(torch.randn(2, 20, 8), dim=-1)
    plan = WindowGrid.place(16, 16, None, 1, 8).plan(16, 16)
    mix = {"grid": GRID, "covered": (3, 4)}
    return {
        "dense_decode": (lambda: kernels.dense_decode(torch.randn(1, 2, 2, 3), plan, 10.0)),
        "grid_attention": (lambda: kernels.grid_attention(q, k, v, GRID, bias=Gaussian(2.0))),
        "affinity_apply": (lambda: kernels.affinity_apply(x, torch.randn(2, 20, 6), beta=1.2)),
        "affinity_mix": (lambda: kernels.affinity_mix(q, k, v, torch.randn(2, 12, 6), **mix)),
        "nearest": (lambda: kernels.nearest(x[0], x[1])),
    }


@pytest.mark.parametrize("name", ["dense_decode", "grid_attention", "affinity_apply", "affinity_mix", "nearest"])
def test_forced_triton_raises_with_the_reason_and_never_falls_back(name, monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    call = arguments()[name]
    call()
    monkeypatch.setenv("DENSEVL_KERNELS", "triton")
    with pytest.raises(KernelUnavailable, match=rf"{name}: tensors are on the CPU.*DENSEVL_KERNELS=auto"):
        call()
    with use("torch"):
        call()


def test_mode_comes_from_the_environment_and_a_block_wins(monkeypatch) -> None:
    monkeypatch.delenv("DENSEVL_KERNELS", raising=False)
    assert mode() == "auto"
    monkeypatch.setenv("DENSEVL_KERNELS", "torch")
    assert mode() == "torch"
    with use("auto"):
        assert mode() == "auto"
    assert mode() == "torch"
    monkeypatch.setenv("DENSEVL_KERNELS", "trition")
    with pytest.raises(KernelError, match="'trition'; choose auto, torch or triton"):
        mode()
    with pytest.raises(DensevlError, match="choose auto"), use("gpu"):
        pass


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"extra": torch.zeros(20, 20)}, "extra bias"),
        ({"width": 24}, "head width 24"),
        ({"dtype": torch.float64}, "float64 is not taken"),
        ({"grad": True}, "no backward"),
        ({"mixed": True}, "differ in type"),
    ],
    ids=["extra", "width", "type", "gradients", "mixed"],
)
def test_what_no_kernel_takes_is_named(change, reason, monkeypatch) -> None:
    pytest.importorskip("triton", reason="without triton that is the only reason given")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    q, k, v = (t.to(change.get("dtype", torch.float32)) for t in qkv(width=change.get("width", 16)))
    if change.get("mixed"):
        k = k.half()
    if change.get("grad"):
        q.requires_grad_(True)
    with use("triton"), pytest.raises(KernelUnavailable, match=reason):
        kernels.grid_attention(q, k, v, GRID, extra=change.get("extra"))


def test_gradients_flow_through_torch() -> None:
    q, k, v = qkv()
    q.requires_grad_(True)
    kernels.grid_attention(q, k, v, GRID, bias=Gaussian(1.0)).sum().backward()
    assert q.grad is not None


def test_explain_says_what_would_run() -> None:
    q, k, v = qkv()
    choice = kernels.explain(kernels.grid_attention, q, k, v, GRID, bias=Gaussian(2.0))
    assert not choice.kernel
    assert choice.reason == "tensors are on the CPU"
    with use("torch"):
        assert kernels.explain(kernels.nearest, q[0, 0], k[0, 0]).reason == "torch was asked for"
    with pytest.raises(KernelError, match="q has shape"):
        kernels.explain(kernels.grid_attention, q, k, v, (3, 3))
    with pytest.raises(KernelError, match="is not an operator"):
        kernels.explain(torch.relu, q)


def test_importing_takes_no_torch_and_cpu_use_no_triton() -> None:
    code = (
        "import sys; from densevl.kernels import Gaussian; import densevl.recipes; print('torch' in sys.modules);"
        "import torch; from densevl.kernels import grid_attention; q = torch.randn(1, 1, 4, 16);"
        "grid_attention(q, q, q, (2, 2), bias=Gaussian(1.0)); heavy = ('triton', 'torch._dynamo');"
        "print([m for m in sys.modules if m.startswith(('densevl.kernels.triton', *heavy))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "[]"]


plan = WindowGrid.place(16, 16, None, 1, 8).plan(16, 16)
bad = torch.zeros
WRONG = {
    "decode-tokens": lambda: kernels.dense_decode(bad(1, 3, 2, 4), plan),
    "decode-no-queries": lambda: kernels.dense_decode(bad(1, 2, 2, 0), plan),
    "attention-tokens": lambda: kernels.grid_attention(bad(1, 1, 19, 8), bad(1, 1, 20, 8), bad(1, 1, 20, 8), GRID),
    "attention-keys": lambda: kernels.grid_attention(bad(1, 1, 20, 8), bad(1, 1, 7, 8), bad(1, 1, 7, 8), GRID),
    "attention-width": lambda: kernels.grid_attention(bad(1, 1, 20, 8), bad(1, 1, 20, 4), bad(1, 1, 20, 4), GRID),
    "attention-rel": lambda: kernels.grid_attention(*bad(3, 1, 1, 20, 8), GRID, bias=RelPos(bad(1, 20, 8))),
    "attention-rel-prefix": lambda: kernels.grid_attention(*bad(3, 1, 1, 21, 8), GRID, 1, RelPos(bad(1, 21, 9))),
    "affinity-values": lambda: kernels.affinity_apply(bad(1, 5, 3), bad(1, 4, 3)),
    "affinity-mean": lambda: kernels.affinity_apply(bad(2, 5, 3), bad(2, 5, 3), mean=bad(1)),
    "mix-values": lambda: kernels.affinity_mix(*bad(3, 1, 1, 20, 8), bad(1, 9, 3), grid=GRID, covered=(2, 2)),
    "mix-covered": lambda: kernels.affinity_mix(*bad(3, 1, 1, 20, 8), bad(1, 10, 3), grid=GRID, covered=(5, 2)),
    "nearest-width": lambda: kernels.nearest(bad(3, 4), bad(3, 5)),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_wrong_shapes_are_named_in_one_line(case) -> None:
    with pytest.raises(KernelError, match=r"^\S[^\n]+$"):
        WRONG[case]()


@pytest.mark.parametrize("std", [0.0, -1.0, float("nan")])
def test_a_gaussian_without_width_cannot_be_written(std) -> None:
    with pytest.raises(RecipeError, match=r"the Gaussian's std in patches must be above 0, got (0\.0|-1\.0|nan)"):
        Gaussian(std)


def plain_relative(q, k, v, rel, grid, scale):
    """The bias of every pair written out from its coordinates."""
    bias = torch.zeros(rel.shape[0], q.shape[2], q.shape[2], dtype=q.dtype)
    for j in range(q.shape[2]):
        y, x = divmod(j, grid[1])
        bias[:, :, j] = rel[:, :, y] + rel[:, :, grid[0] + x]
    logits = q @ k.mT * scale + bias.unflatten(0, q.shape[:2])
    return logits.softmax(-1) @ v, logits.logsumexp(-1)


def test_a_row_whose_logits_are_over_the_limit_is_still_computed(monkeypatch) -> None:
    q, k, v = qkv()
    want = kernels.grid_attention(q, k, v, GRID, want_lse=True)
    monkeypatch.setattr(attention, "LOGITS_HELD", 1)
    for got, whole in zip(kernels.grid_attention(q, k, v, GRID, want_lse=True), want, strict=True):
        torch.testing.assert_close(got, whole)


@pytest.mark.parametrize("held", [0, 2**22], ids=["a-head-at-a-time", "all-heads"])
@pytest.mark.parametrize("rows", [256, 7])
def test_relative_positions_equal_the_formula(held, rows, monkeypatch) -> None:
    monkeypatch.setattr(attention, "RELATIVE_HELD", held)
    monkeypatch.setattr(attention, "RELATIVE_ROWS", rows)
    q, k, v = (t.double() for t in qkv())
    rel = torch.randn(6, 20, 9, dtype=torch.float64)
    want, sums = plain_relative(q, k, v, rel, GRID, 0.3)
    torch.testing.assert_close(kernels.grid_attention(q, k, v, GRID, bias=RelPos(rel), scale=0.3), want)
    out, lse = kernels.grid_attention(q, k, v, GRID, bias=RelPos(rel), scale=0.3, want_lse=True)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(lse.double(), sums / torch.log(torch.tensor(2.0)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_the_cpu_is_computed_wide_and_given_back(dtype) -> None:
    q, k, v = (t.to(dtype) for t in qkv())
    out = kernels.grid_attention(q, k, v, GRID)
    assert out.dtype == dtype
    wide = kernels.grid_attention(q.float(), k.float(), v.float(), GRID)
    assert torch.equal(out, wide.to(dtype))
    similarity, index = kernels.nearest(q[0, 0], k[0, 0])
    assert similarity.dtype == torch.float32
    assert index.dtype == torch.int64


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 50, 5), (130, 33, 1)])
def test_nearest_equals_the_whole_product(shape, monkeypatch) -> None:
    monkeypatch.setattr(neighbours, "MEMORY_ROWS", 8)
    monkeypatch.setattr(neighbours, "QUERIES", 64)
    x, memory = torch.randn(shape[0], shape[2]), torch.randn(shape[1], shape[2])
    memory[-1] = memory[0]  # the first of equals
    best = (x @ memory.T).max(dim=1)
    similarity, index = kernels.nearest(x, memory)
    torch.testing.assert_close(similarity, best.values)
    assert torch.equal(index, best.indices)
    assert (index != len(memory) - 1).all() or len(memory) == 1


def test_nearest_of_nothing() -> None:
    similarity, index = kernels.nearest(torch.randn(3, 4), torch.randn(0, 4))
    assert (similarity == -torch.inf).all()
    assert (index == -1).all()
    assert kernels.nearest(torch.randn(0, 4), torch.randn(5, 4))[0].shape == (0,)


@pytest.mark.parametrize("held", [0, 2**22], ids=["rows", "symmetric"])
@pytest.mark.parametrize(
    "rule",
    [{"beta": 1.2, "gamma": 3.0}, {"gamma": 5.0}, {"linear": True, "floor": 0.3}],
    ids=["cut", "softmax", "linear"],
)
def test_affinity_in_rows_equals_the_whole_map(rule, held, monkeypatch) -> None:
    monkeypatch.setattr(affinity, "COSINES_HELD", held)
    monkeypatch.setattr(affinity, "AFFINITY_ROWS", 7)
    x = F.normalize(torch.randn(2, 30, 6, dtype=torch.float64) + 0.5, dim=-1)
    v = torch.randn(2, 30, 4, dtype=torch.float64)
    cosines = x @ x.mT
    if rule.get("linear"):
        want = torch.where(cosines >= 0.3, cosines, 0.0)
        want = want / (want.sum(-1, keepdim=True) + 1e-6)
    else:
        logits = cosines * rule["gamma"]
        if "beta" in rule:
            under = cosines < 1.2 * cosines.mean(dim=(1, 2), keepdim=True)
            logits = logits.masked_fill(under & ~torch.eye(30, dtype=torch.bool), -torch.inf)
        want = logits.softmax(-1)
    torch.testing.assert_close(kernels.affinity_apply(x, v, **rule), want @ v)
