"""Decoding plans against the chain they stand for: upsample, pad, add, divide, interpolate."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from densevl.inference import WindowGrid
from densevl.kernels import AxisPlan, KernelError, dense_decode, dense_scores
from densevl.kernels.resample import bilinear_matrix, patch_axis_block, pixel_axis_block


@given(size=st.integers(1, 80), source=st.integers(1, 80))
@settings(deadline=None, max_examples=60)
def test_bilinear_matrix_is_torchs_bilinear(size, source) -> None:
    matrix = torch.from_numpy(bilinear_matrix(size, source))
    signal = torch.randn(1, 1, source, dtype=torch.float64)
    want = F.interpolate(signal, size=size, mode="linear", align_corners=False)
    torch.testing.assert_close((matrix @ signal[0, 0]), want[0, 0], atol=1e-12, rtol=0)
    assert (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(1), torch.ones(size, dtype=torch.float64))


def papers_chain(
    windows: WindowGrid, scores_by_window: torch.Tensor, patch: int, size: tuple[int, int]
) -> torch.Tensor:
    """What the papers' code does, in float64: (n, T, h, w) per-window scores to (T, H, W)."""
    rows, cols = windows.rows, windows.cols
    canvas = torch.zeros(scores_by_window.shape[1], rows.length, cols.length, dtype=torch.float64)
    count = torch.zeros(rows.length, cols.length, dtype=torch.float64)
    corners = [(top, left) for top in rows.starts for left in cols.starts]
    for (top, left), part in zip(corners, scores_by_window.double(), strict=True):
        full = F.interpolate(part[None], size=(rows.tokens * patch, cols.tokens * patch), mode="bilinear")[0]
        full = full[:, rows.before : rows.before + rows.crop, cols.before : cols.before + cols.crop]
        canvas[:, top : top + rows.crop, left : left + cols.crop] += full
        count[top : top + rows.crop, left : left + cols.crop] += 1
    return F.interpolate((canvas / count)[None], size=size, mode="bilinear")[0]


cases = st.fixed_dictionaries(
    {
        "height": st.integers(1, 70),
        "width": st.integers(1, 70),
        "crop": st.one_of(st.none(), st.integers(1, 48)),
        "stride": st.integers(1, 40),
        "patch": st.sampled_from([1, 4, 8]),
        "out": st.tuples(st.integers(1, 60), st.integers(1, 60)),
        "queries": st.integers(1, 9),
    }
).filter(lambda case: case["crop"] is None or case["crop"] >= case["patch"])


@given(case=cases)
@settings(deadline=None, max_examples=80)
def test_plan_equals_upsample_add_divide_interpolate(case) -> None:
    if case["crop"] is not None and case["stride"] > case["crop"]:
        case["stride"] = case["crop"]  # the papers' windows overlap or touch; gaps are tested below
    windows = WindowGrid.place(case["height"], case["width"], case["crop"], case["stride"], case["patch"])
    h, w = windows.rows.tokens, windows.cols.tokens
    by_window = torch.randn(len(windows), case["queries"], h, w)
    laid = windows.assemble(by_window.permute(0, 2, 3, 1).contiguous(), 1)
    plan = windows.plan(*case["out"])
    want = papers_chain(windows, by_window, case["patch"], case["out"])
    torch.testing.assert_close(dense_scores(laid, plan)[0].double(), want, atol=3e-6, rtol=0)

    label, score, lse = dense_decode(laid, plan, 7.0)
    best = want.max(0)
    near_tie = (
        (want.topk(2, dim=0).values.diff(dim=0).abs()[0] < 1e-5) if case["queries"] > 1 else torch.zeros_like(best[0])
    )
    assert ((label[0] == best.indices) | near_tie.bool()).all()
    torch.testing.assert_close(score[0].double(), best.values, atol=3e-6, rtol=0)
    torch.testing.assert_close(lse[0].double(), torch.logsumexp(7.0 * want, 0), atol=3e-5, rtol=0)


@given(case=cases)
@settings(deadline=None, max_examples=60)
def test_patch_blend_equals_averaging_tokens_on_one_grid(case) -> None:
    if case["crop"] is not None and case["stride"] > case["crop"]:
        case["stride"] = case["crop"]
    patch = case["patch"]
    windows = WindowGrid.place(case["height"], case["width"], case["crop"], case["stride"], patch, "patch")
    rows, cols = windows.rows, windows.cols
    by_window = torch.randn(len(windows), case["queries"], rows.tokens, cols.tokens, dtype=torch.float64)
    grid = torch.zeros(case["queries"], -(-case["height"] // patch), -(-case["width"] // patch), dtype=torch.float64)
    count = torch.zeros_like(grid[0])
    corners = [(top // patch, left // patch) for top in rows.starts for left in cols.starts]
    for (top, left), part in zip(corners, by_window, strict=True):
        grid[:, top : top + rows.tokens, left : left + cols.tokens] += part
        count[top : top + rows.tokens, left : left + cols.tokens] += 1
    assert (count > 0).all()
    full = F.interpolate((grid / count)[None], scale_factor=patch, mode="bilinear")[0]
    top, left = rows.margin[0], cols.margin[0]
    full = full[:, top : top + case["height"], left : left + case["width"]]
    want = F.interpolate(full[None], size=case["out"], mode="bilinear")
    laid = windows.assemble(by_window.float().permute(0, 2, 3, 1).contiguous(), 1)
    torch.testing.assert_close(dense_scores(laid, windows.plan(*case["out"])).double(), want, atol=3e-6, rtol=0)


def of_block(axis, blend: str, size: int, start: int, stop: int) -> tuple[tuple[int, ...], AxisPlan]:
    if blend == "pixel":
        return pixel_axis_block(
            axis.starts, axis.crop, axis.before, axis.after, axis.tokens, axis.length, size, start, stop
        )
    patch = axis.crop // axis.tokens
    return patch_axis_block(axis.starts, patch, axis.tokens, axis.margin, axis.length, size, start, stop)


@given(case=cases, blend=st.sampled_from(["pixel", "patch"]), share=st.tuples(st.floats(0, 1), st.floats(0, 1)))
@settings(deadline=None, max_examples=150)
def test_a_block_has_the_rows_of_the_whole_plan_bit_for_bit(case, blend, share) -> None:
    if case["crop"] is not None and case["stride"] > case["crop"]:
        case["stride"] = case["crop"]
    # An axis longer than the blocks that a whole plan is made of, and one shorter.
    windows = WindowGrid.place(6 * case["height"], case["width"], case["crop"], case["stride"], case["patch"], blend)
    height, width = case["out"][0] * 9, case["out"][1]
    whole = windows.plan(height, width)
    for axis, size, plan in ((windows.rows, height, whole.rows), (windows.cols, width, whole.cols)):
        start = min(int(min(share) * size), size - 1)
        stop = max(start + 1, int(max(share) * size))
        touched, block = of_block(axis, blend, size, start, stop)
        rows = plan.matrix[start:stop].unflatten(1, (len(axis.starts), axis.tokens))
        assert torch.equal(block.matrix, rows[:, list(touched)].flatten(1))
        assert list(touched) == sorted(set(touched))
        others = [i for i in range(len(axis.starts)) if i not in touched]
        assert (rows[:, others] == 0).all()
        assert (rows[:, list(touched)] != 0).flatten(2).any(dim=2).any(dim=0).all()  # none too many


def test_a_block_of_a_huge_axis_has_its_own_windows_alone() -> None:
    rows = WindowGrid.place(20_000, 64, 192, 96, 16).rows
    windows, block = of_block(rows, "pixel", 20_000, 9_000, 9_256)
    assert len(windows) == 5
    assert block.matrix.shape == (256, 5 * rows.tokens)
    torch.testing.assert_close(block.matrix.sum(dim=1), torch.ones(256))


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (5, 3), (-1, 2), (7, 12)])
@pytest.mark.parametrize("blend", ["pixel", "patch"])
def test_rows_outside_the_output_are_refused(blend, start, stop) -> None:
    with pytest.raises(KernelError, match=f"pixels {start} to {stop} are not within an output of 11"):
        of_block(WindowGrid.place(16, 16, None, 1, 8, blend).rows, blend, 11, start, stop)


@pytest.mark.parametrize("queries", [1, 33, 300])
def test_decode_over_many_tiles_equals_the_volume(queries) -> None:
    windows = WindowGrid.place(336, 500, 224, 112, 16)
    scores = torch.randn(2, len(windows.rows.starts) * 14, len(windows.cols.starts) * 14, queries)
    plan = windows.plan(131, 307)
    volume = dense_scores(scores, plan)
    label, score, lse = dense_decode(scores, plan, 40.0)
    torch.testing.assert_close(score, volume.amax(1), atol=2e-6, rtol=0)
    torch.testing.assert_close(volume.gather(1, label.long()[:, None])[:, 0], score, atol=2e-6, rtol=0)
    torch.testing.assert_close(lse, torch.logsumexp(40.0 * volume, 1), atol=2e-4, rtol=0)


def test_equal_scores_take_the_first_query() -> None:
    windows = WindowGrid.place(32, 32, None, 1, 8)
    label, _, _ = dense_decode(torch.ones(1, 4, 4, 5), windows.plan(32, 32))
    assert (label == 0).all()


def test_large_scores_do_not_overflow() -> None:
    windows = WindowGrid.place(16, 16, None, 1, 8)
    _, _, lse = dense_decode(torch.full((1, 2, 2, 3), 1e4), windows.plan(16, 16), 100.0)
    np.testing.assert_allclose(lse, 1e6 + np.log(3), rtol=1e-6)
