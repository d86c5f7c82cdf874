"""One comparison per operator, of its kernel against torch in float64; shared by value tests and mutation tests.

The operator is called as users call it, so that whatever module stands for a kernel's is put to the same test.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from densevl.inference import WindowGrid
from densevl.kernels import (
    Gaussian,
    RelPos,
    affinity_apply,
    affinity_mix,
    decode,
    dense_decode,
    dense_scores,
    explain,
    grid_attention,
    nearest,
    use,
)
from densevl.kernels.common import mix_limit
from densevl.kernels.resample import decode_tiling

# Of the largest value. In float32 the interpreter's products are numpy's, which round differently from CPU to CPU: seen
# up to 7.9e-6.
BARS = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def close(got: torch.Tensor, want: torch.Tensor, bar: float) -> None:
    assert got.shape == want.shape
    error = (got.double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1e-3)
    assert error <= bar, f"error {error:.2e} of the largest value, the bar is {bar:.0e}"


def random(*shape: int, dtype: torch.dtype = torch.float32, size: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape) * size).to(dtype)


def taken(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type itself, but float16 for float32 on a device: kernels take float32 in the interpreter alone."""
    return torch.float16 if dtype == torch.float32 and device.type != "cpu" else dtype


def check_decode(
    device: torch.device,
    image=(24, 44),
    crop=32,
    stride=16,
    patch=8,
    out=(21, 37),
    queries=40,
    batch=2,
    scale: float | None = 100.0,
    doubled=False,
) -> None:
    torch.manual_seed(0)
    windows = WindowGrid.place(*image, crop, stride, patch)
    plan = windows.plan(*out)
    scores = random(batch, plan.rows.matrix.shape[1], plan.cols.matrix.shape[1], queries, size=0.1)
    if doubled:
        scores = torch.cat([scores, scores], dim=-1)
    if decode_tiling(plan.rows.matrix, plan.cols.matrix).taps > decode.MOST_TAPS:  # on a device
        assert not explain(dense_decode, scores.to(device), plan, scale).kernel
        return
    with use("triton"):
        label, score, lse = dense_decode(scores.to(device), plan, scale)
    volume = dense_scores(scores.double(), plan)
    best = volume.max(dim=1)
    assert (score.cpu().double() - best.values).abs().max() < 1e-6
    chosen = volume.gather(1, label.cpu().long()[:, None])[:, 0]
    assert (best.values - chosen).max() < 1e-6  # equal labels, but for ties
    assert label.dtype == torch.int32
    assert not doubled or (label < queries).all()  # the first of equals
    if scale is None:
        assert lse is None
    else:
        assert (lse.cpu().double() - torch.logsumexp(scale * volume, dim=1)).abs().max() < 1e-4


def check_attention(
    device: torch.device,
    grid=(5, 7),
    prefix=1,
    prefix_keys=True,
    width=32,
    batch=2,
    heads=3,
    dtype=torch.float32,
    size=1.0,
    bias: str | None = "gaussian",
    scale: float | None = None,
    lse=True,
    shifted=False,
) -> None:
    torch.manual_seed(0)
    dtype = taken(dtype, device)
    prefix = 0 if bias == "rel" else prefix
    total = prefix + grid[0] * grid[1]
    # One fused projection: strides as a tower gives them.
    qkv = random(batch, total, 3, heads, width, dtype=dtype, size=size).to(device)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    first = 0 if prefix_keys else prefix
    k, v = k[:, :, first:], v[:, :, first:]
    rel = random(batch * heads, total, sum(grid), dtype=dtype).to(device) if bias == "rel" else None
    if shifted:  # rows in the middle of others, at odd addresses
        q, k, v = (F.pad(t, (1, 0))[..., 1:] for t in (q, k, v))
        rel = None if rel is None else F.pad(rel, (1, 0))[..., 1:]
    near = exact = Gaussian(1.7) if bias == "gaussian" else None
    if rel is not None:
        near, exact = RelPos(rel), RelPos(rel.cpu().double())
    with use("triton"):
        got = grid_attention(q, k, v, grid, prefix, near, scale, want_lse=lse)
    with use("torch"):
        wide = (t.cpu().double() for t in (q, k, v))
        want, sums = grid_attention(*wide, grid, prefix, exact, scale, want_lse=True)
    out = got[0] if lse else got
    close(out.cpu(), want, BARS[dtype])
    assert out.transpose(1, 2).is_contiguous()
    if lse:
        close(got[1].cpu(), sums, 1e-5 if dtype == torch.float32 else 1e-4)


def check_affinity(
    device: torch.device,
    tokens=150,
    width=40,
    values=24,
    batch=2,
    dtype=torch.float32,
    equal=False,
    **rule,
) -> None:
    torch.manual_seed(0)
    dtype = taken(dtype, device)
    common = torch.randn(batch, 1, width)
    x = common + (0.0 if equal else 1.0) * torch.randn(batch, tokens, width)
    x = F.normalize(x, dim=-1).to(dtype)
    v = random(batch, tokens, values, dtype=dtype)
    for key in ("beta", "floor"):
        if rule.get(key) is not None:
            rule[key] = _between(x, rule[key], key == "beta")
    with use("triton"):
        got = affinity_apply(x.to(device), v.to(device), **rule)
    with use("torch"):
        want = affinity_apply(x.double(), v.double(), **rule)
    close(got.cpu(), want, BARS[dtype])


def _between(x: torch.Tensor, near: float, relative: bool) -> float:
    """A threshold close to `near` with no cosine within rounding of it, so that no entry may flip."""
    cosines = (x.double() @ x.double().mT).flatten(1)
    if relative:
        cosines = cosines / cosines.mean(dim=1, keepdim=True)
    values = cosines.flatten().sort().values
    values = values[(values - near).abs() < 0.05]
    if len(values) < 2:
        return near
    widest = values.diff().argmax()
    return float((values[widest] + values[widest + 1]) / 2)


def check_mix(
    device: torch.device,
    grid=(5, 9),
    covered=(3, 8),
    heads=2,
    width=16,
    batch=2,
    values=24,
    dtype=torch.float32,
    rel=True,
    factor=1.2,
    negative: float | None = None,
) -> None:
    torch.manual_seed(0)
    dtype, total = taken(dtype, device), grid[0] * grid[1]
    qkv = random(batch, total, 3, heads, width, dtype=dtype)
    # Values in a few directions, so that few cosines are near a limit.
    directions = torch.randn(3, heads, width) + 0.5
    qkv[:, :, 2] = directions[torch.randint(3, (batch, total))].to(dtype)
    terms = random(batch * heads, total, sum(grid), dtype=dtype) if rel else None
    x = random(batch, covered[0] * covered[1], values, dtype=dtype)
    keywords = {"grid": grid, "covered": covered, "factor": factor, "negative": negative}
    q, k, v = qkv.to(device).permute(2, 0, 3, 1, 4).unbind(0)
    moved = None if terms is None else terms.to(device)
    with use("triton"):
        got = affinity_mix(q, k, v, x.to(device), rel=moved, **keywords)
    exact = None if terms is None else terms.double()
    q, k, v = qkv.double().permute(2, 0, 3, 1, 4).unbind(0)
    with use("torch"):
        want = affinity_mix(q, k, v, x.double(), rel=exact, **keywords)
    off = (got.cpu().double() - want).abs().amax(dim=-1)
    corner = v.unflatten(2, grid)[:, :, : covered[0], : covered[1]].flatten(2, 3)
    unit = F.normalize(corner, dim=-1)
    settled = _settled(unit, mix_limit(unit, factor, 0.9, negative))
    assert settled.double().mean() > 0.3
    assert off[settled].max() <= BARS[dtype] * want.abs().max()


def _settled(unit: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """Rows (B, n) none of whose cosines lies so close to the row's limit that rounding decides."""
    return ((unit @ unit.mT - limit[:, None, :, None]).abs() > 0.02).all(dim=-1).all(dim=1)


def check_nearest(device: torch.device, rows=70, memory=300, width=40, dtype=torch.float32, doubled=False) -> None:
    torch.manual_seed(0)
    dtype = taken(dtype, device)
    x = F.normalize(torch.randn(rows, width), dim=-1).to(dtype)
    bank = F.normalize(torch.randn(memory, width), dim=-1).to(dtype)
    if doubled:
        # Whole numbers, whose products are exact: of others, equal rows differ by rounding where they lie apart.
        x, bank = (torch.randint(-4, 5, t.shape).to(dtype) for t in (x, bank))
        bank = torch.cat([bank, bank])
    with use("triton"):
        similarity, index = nearest(x.to(device), bank.to(device))
    product = x.double() @ bank.double().mT
    best = product.max(dim=1)
    bar = 1e-6 if device.type == "cpu" else 4e-6  # tensor cores cut off where numpy rounds
    assert (similarity.cpu().double() - best.values).abs().max() < bar
    assert (best.values - product.gather(1, index.cpu()[:, None])[:, 0]).max() < bar
    if doubled:
        assert (index < memory).all()  # the first of equals
