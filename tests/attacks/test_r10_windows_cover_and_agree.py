"""R10: windows cover every pixel in any order, and change nothing for a model that sees single pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from densevl.backbones import Backbone
from densevl.errors import DensevlError, ImageError, LabelError, ProtocolError
from densevl.inference import WindowGrid, slide
from densevl.inference.canvas import Canvas
from densevl.inference.cutting import at, cut
from densevl.inference.windows import AxisWindows
from densevl.kernels import dense_scores
from densevl.recipes import Hints
from densevl.recipes.features import DenseFeatures


class Pointwise(Backbone):
    """A model whose feature of a pixel is the pixel: windows must change nothing."""

    name, summary, patch_size, embed_dim, logit_scale = "pointwise", "", 1, 3, 1.0
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    text_fingerprint, device = "pointwise", torch.device("cpu")
    seen, default_recipe = 0, None

    def encode_dense(self, pixels, recipe=None, *, hints=None, position_rule=None, compat=False):
        self.seen += len(pixels)
        return DenseFeatures(pixels)

    def encode_image(self, pixels):
        return pixels.mean((2, 3))

    def encode_text(self, texts):
        return torch.randn(len(texts), 3, generator=torch.Generator().manual_seed(0))


@given(
    length=st.integers(1, 2000),
    crop=st.integers(1, 2000),
    overlap=st.none() | st.floats(0, 1),
    patch=st.integers(1, 32),
)
@settings(deadline=None, max_examples=300)
def test_every_pixel_is_covered_and_no_window_leaves_the_image(length, crop, overlap, patch) -> None:
    stride = None if overlap is None else max(1, round(crop * (1 - overlap)))
    axis = AxisWindows.place(length, crop, stride, patch)
    covered = np.zeros(length, bool)
    for start in axis.starts:
        assert start >= 0
        assert start + axis.crop <= length
        covered[start : start + axis.crop] = True
    assert covered.all()
    assert len(set(axis.starts)) == len(axis.starts)
    assert axis.before + axis.crop + axis.after == axis.tokens * patch
    assert abs(axis.before - axis.after) <= 1
    assert axis.before + axis.after < patch


@given(length=st.integers(1, 2000), most=st.integers(1, 40), patch=st.integers(1, 32))
@settings(deadline=None, max_examples=300)
@pytest.mark.parametrize("blend", ["pixel", "patch"])
def test_tiles_are_few_even_and_overlap_by_a_patch(blend, length, most, patch) -> None:
    tiles = AxisWindows.place(length, most * patch, None, patch, blend)
    sliding = AxisWindows.place(length, most * patch, max(1, most * patch // 2), patch, blend)
    total = -(-length // patch)
    assert tiles.tokens <= most
    assert len(tiles.starts) <= len(sliding.starts) or most < 4  # half a patch is the least a small window can step
    steps = np.diff(tiles.starts)
    assert max(steps, default=0) - min(steps, default=0) <= (1 if blend == "pixel" else patch)
    if len(tiles.starts) > 1 and most > 1:
        assert (steps < tiles.crop).all()
        assert len(tiles.starts) * tiles.tokens < total + 2 * len(tiles.starts)


@pytest.mark.parametrize(
    ("size", "count", "tokens"),
    [((336, 448), 6, 660), ((560, 1008), 15, 2730), ((224, 224), 1, 196), ((7, 500), 3, 36)],
)
def test_tiles_of_the_usual_sizes(size, count, tokens) -> None:
    tiles = WindowGrid.place(*size, 224, None, 16)
    assert (len(tiles), len(tiles) * tiles.rows.tokens * tiles.cols.tokens) == (count, tokens)


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    crop=st.integers(1, 40),
    step=st.none() | st.floats(0.2, 1),
    batch=st.integers(1, 9),
    blend=st.sampled_from(["pixel", "patch"]),
)
@settings(deadline=None, max_examples=60)
def test_windows_change_nothing_for_a_pointwise_model(height, width, crop, step, batch, blend) -> None:
    pixels = torch.rand(2, 3, height, width) + 0.1
    text = torch.randn(4, 3)
    stride = None if step is None else max(1, int(crop * step))
    got = slide(Pointwise(), pixels, text, crop=crop, stride=stride, batch=batch, blend=blend)
    want = torch.einsum("bdhw,td->bthw", F.normalize(pixels, dim=1), F.normalize(text, dim=1))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("blend", ["pixel", "patch"])
def test_windows_in_any_order_give_the_same_labels(tiny, blend) -> None:
    pixels, text = torch.randn(1, 3, 53, 70), F.normalize(torch.randn(5, tiny.embed_dim), dim=1)
    windows = WindowGrid.place(53, 70, 32, 16, 8, blend)
    crops = torch.cat(list(windows.batches(pixels, 4)))
    scores: list[torch.Tensor] = [torch.empty(0)] * len(crops)
    for index in torch.randperm(len(crops)).tolist():
        features = F.normalize(tiny.encode_dense(crops[index : index + 1], "sclip").features[0], dim=0)
        scores[index] = torch.einsum("dhw,td->hwt", features, text)
    shuffled = dense_scores(windows.assemble(torch.stack(scores), 1), windows.plan(53, 70))
    straight = slide(tiny, pixels, text, recipe="sclip", crop=32, stride=16, blend=blend)
    torch.testing.assert_close(shuffled, straight, atol=1e-5, rtol=0)
    best = straight.topk(2, 1).values
    assert ((shuffled.argmax(1) == straight.argmax(1)) | (best[:, 0] - best[:, 1] < 1e-5)).all()


def test_windows_are_cut_where_the_plan_thinks_they_are() -> None:
    image = torch.arange(45 * 61, dtype=torch.float32).view(1, 1, 45, 61).expand(1, 3, -1, -1)
    for blend in ("pixel", "patch"):
        windows = WindowGrid.place(45, 61, 20, 11, 8, blend)
        cut = torch.cat(list(windows.batches(image, 3)))
        assert cut.shape == (len(windows), 3, windows.rows.tokens * 8, windows.cols.tokens * 8)
        rows, cols = windows.rows, windows.cols
        whole = F.pad(image, (*cols.margin, *rows.margin))
        corners = [(top, left) for top in rows.starts for left in cols.starts]
        for (top, left), part in zip(corners, cut, strict=True):
            inner = part[:, rows.before :, cols.before :][:, : rows.crop, : cols.crop]
            assert torch.equal(inner, whole[0, :, top : top + rows.crop, left : left + cols.crop])


def test_a_gap_between_windows_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"stride 50 .* crop 20"):
        slide(Pointwise(), torch.rand(1, 3, 90, 90), torch.randn(2, 3), crop=20, stride=50)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_batch_size_does_not_matter(tiny, batch) -> None:
    pixels = torch.randn(2, 3, 53, 70)
    text = torch.randn(3, tiny.embed_dim)
    one = slide(tiny, pixels, text, crop=32, stride=16, batch=1)
    torch.testing.assert_close(slide(tiny, pixels, text, crop=32, stride=16, batch=batch), one, atol=1e-5, rtol=0)


def test_strings_and_embeddings_score_alike(tiny) -> None:
    pixels = torch.randn(1, 3, 40, 40)
    by_string = slide(tiny, pixels, ["a cat", "a dog"], crop=32, stride=16)
    by_vector = slide(tiny, pixels, tiny.encode_text(["a cat", "a dog"]) * 3.0, crop=32, stride=16)
    torch.testing.assert_close(by_string, by_vector, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda b: slide(b, torch.rand(1, 3, 8, 8), []), LabelError),
        (lambda b: slide(b, torch.rand(1, 3, 8, 8), torch.randn(2, 3), crop=0), ProtocolError),
        (lambda b: slide(b, torch.rand(1, 3, 8, 8), torch.randn(2, 3), stride=0), ProtocolError),
        (lambda b: slide(b, torch.rand(1, 3, 8, 8), torch.randn(2, 3), blend="feature"), ProtocolError),
        (lambda b: slide(b, torch.rand(1, 3, 8, 8), "cat"), LabelError),
        (lambda b: slide(b, torch.rand(3, 8, 8), torch.randn(2, 3)), ImageError),
        (lambda b: slide(b, torch.rand(1, 3, 8, 8), torch.randn(2, 5)), LabelError),
    ],
    ids=["no-text", "crop-0", "stride-0", "blend", "one-string", "no-batch-axis", "text-of-another-model"],
)
def test_impossible_requests_say_so_in_one_line(call, error) -> None:
    with pytest.raises(error) as caught:
        call(Pointwise())
    assert isinstance(caught.value, DensevlError)
    assert "\n" not in str(caught.value)


def test_window_count_follows_the_papers_formula() -> None:
    assert len(WindowGrid.place(560, 1008, 224, 112, 16)) == 4 * 8
    assert len(WindowGrid.place(336, 448, 224, 112, 16)) == 2 * 3
    assert WindowGrid.place(301, 517, 224, 112, 16).rows.starts == (0, 77)


@pytest.mark.parametrize(("height", "width"), [(40, 56), (37, 50)])
def test_stitched_tokens_decode_like_their_windows(height, width) -> None:
    """Averaging window tokens on one patch grid first, then decoding that, is what "patch" blend does at once."""
    windows = WindowGrid.place(height, width, 24, 8, 8, "patch")
    h, w = windows.rows.tokens, windows.cols.tokens
    scores = torch.randn(2 * len(windows), h, w, 3)
    canvas = Canvas(windows, 2)
    canvas.add(scores.flatten(1, 2))
    stitched = canvas.mean()
    whole = windows.whole()
    got = dense_scores(stitched.unflatten(1, (whole.rows.tokens, whole.cols.tokens)), whole.plan(height, width))
    want = dense_scores(windows.assemble(scores, 2), windows.plan(height, width))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("blend", ["pixel", "patch"])
@pytest.mark.parametrize("size", [(37, 50), (40, 56), (20, 61)])
def test_a_part_of_a_map_is_what_the_window_shows(blend, size) -> None:
    """A map that is linear in the place is cut exactly; integer maps keep their values."""
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    places = torch.stack([y, x])[None]
    windows = WindowGrid.place(*size, 24, 8, 8, blend)
    h, w = windows.rows.tokens, windows.cols.tokens
    parts = cut(places, windows, windows.corners, (h, w))
    for (top, left), part in zip(windows.corners, parts, strict=True):
        for axis, start, tokens, values in (
            (windows.rows, top, h, part[0, :, 0]),
            (windows.cols, left, w, part[1, 0]),
        ):
            span = axis.before + axis.crop + axis.after
            centres = start - axis.margin[0] - axis.before + (torch.arange(tokens) + 0.5) * span / tokens
            torch.testing.assert_close(values, centres.clamp(0.5, axis.length - 0.5), atol=1e-3, rtol=0)
    ids = (torch.arange(size[1]) // 10).expand(1, *size)
    found = at(Hints(regions=ids), windows, windows.corners).regions
    assert set(found.unique().tolist()) <= set(ids.unique().tolist())
