"""Views: mirrored windows come back exactly, other grids are read at the right places, ITACLIP's mix is the paper's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from conftest import DATA
from densevl.errors import ProtocolError
from densevl.inference import WindowGrid, window_scores
from densevl.inference.views import NAMED, Views, blurred, mirror, regrid, view_scores
from densevl.kernels import dense_scores
from densevl.recipes import Hints
from recipes.oracle_clip import Trunk, itaclip_logits

PATCH = 8
GRIDS = [(64, 64, 32, 16), (50, 77, 32, 16), (61, 45, 27, 11), (40, 90, None, 16), (9, 200, 32, 24), (64, 96, 32, 20)]


def pooled(pixels, windows, hints=None):
    """A model whose tokens are the mean colours of their patches: it does not care which way an image is turned."""
    parts = [F.avg_pool2d(part, PATCH).permute(0, 2, 3, 1) for part in windows.batches(pixels, 4)]
    return windows.assemble(torch.cat(parts), len(pixels)), windows


def grid_of(size, blend) -> WindowGrid:
    height, width, crop, stride = size
    return WindowGrid.place(height, width, crop, stride, PATCH, blend)


@pytest.mark.parametrize("size", GRIDS, ids=str)
@pytest.mark.parametrize("blend", ["pixel", "patch"])
@pytest.mark.parametrize("flips", [("h",), ("v",), ("h", "v")], ids="".join)
def test_mirrored_views_come_back_to_their_places(size, blend, flips) -> None:
    windows = grid_of(size, blend)
    pixels = torch.randn(2, 3, *size[:2], generator=torch.Generator().manual_seed(0))
    plain, _ = pooled(pixels, windows)
    scores, grid = view_scores(pooled, lambda scale: (pixels, windows), Views(flips), Hints())
    assert grid == windows
    torch.testing.assert_close(scores, plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("flip", ["h", "v"])
def test_mirroring_twice_gives_the_windows_back(flip) -> None:
    windows = grid_of((61, 45, 27, 11), "pixel")
    assert mirror(mirror(windows, flip), flip) == windows
    assert mirror(windows, flip) != windows


@pytest.mark.parametrize("size", GRIDS, ids=str)
@pytest.mark.parametrize("blend", ["pixel", "patch"])
def test_another_grid_reads_what_decoding_has_at_that_place(size, blend) -> None:
    """The finest grid there is has a token at each pixel, so both ways must give the same map."""
    windows = grid_of(size, blend)
    height, width = size[:2]
    rows, cols = (len(axis.starts) * axis.tokens for axis in (windows.rows, windows.cols))
    scores = torch.randn(2, rows, cols, 3, generator=torch.Generator().manual_seed(2))
    got = regrid(scores, windows, WindowGrid.place(height, width, None, 1, 1))
    want = dense_scores(scores, windows.plan(height, width)).permute(0, 2, 3, 1)
    torch.testing.assert_close(got, want, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("size", "blend"),
    [((40, 90, None, 16), "pixel"), ((40, 90, None, 16), "patch"), ((64, 96, 32, 32), "pixel")],
    ids=["one window", "one window on patches", "side by side"],
)
def test_a_grid_read_at_its_own_tokens_is_itself(size, blend) -> None:
    windows = grid_of(size, blend)
    pixels = torch.randn(1, 3, *size[:2], generator=torch.Generator().manual_seed(3))
    scores, _ = pooled(pixels, windows)
    torch.testing.assert_close(regrid(scores, windows, windows), scores, atol=1e-6, rtol=0)


def test_another_image_size_is_read_at_the_same_share_of_the_image() -> None:
    """A ramp from 0 to 1 over an image of twice the size: every inner token reads its own place."""
    own, other = grid_of((128, 160, None, 16), "pixel"), grid_of((64, 80, 32, 16), "pixel")
    ramp = ((torch.arange(20) + 0.5) / 20).expand(1, 16, 20)[..., None].contiguous()
    got = regrid(ramp, own, other)[0, 0, :, 0]
    want = [(start + 8 * token + 4) / 80 for start in other.cols.starts for token in range(4)]
    torch.testing.assert_close(got, torch.tensor(want))


def test_the_first_scale_gives_the_grid_and_all_scales_count_alike() -> None:
    looks = []

    def lay(scale):
        windows = WindowGrid.place(round(64 * scale), round(80 * scale), 32, 16, PATCH)
        return torch.full((1, 3, windows.rows.length, windows.cols.length), scale), windows

    def look(pixels, windows, hints):
        looks.append(windows)
        return pooled(pixels, windows)

    views = Views(("h",), (1.0, 0.5, 2.0))
    scores, grid = view_scores(look, lay, views, Hints())
    assert grid == lay(1.0)[1]
    assert len(looks) == len(views) == 6
    rows, cols = slice(2, -2), slice(2, -2)  # away from what zero padding of the smallest scale darkens
    torch.testing.assert_close(scores[:, rows, cols], torch.full_like(scores[:, rows, cols], 3.5 / 3))


@pytest.mark.parametrize(
    ("views", "want"),
    [
        (Views(), {"plain": 0.5, "h": 0.5}),
        (Views(("h", "v"), grey=True), {"plain": 0.25, "grey": 0.25, "h": 0.25, "v": 0.25}),
        (Views((), blur=True, flip_share=0.3), {"plain": 0.5, "blur": 0.5}),
        (NAMED["itaclip"], {"plain": 0.25, "grey": 0.25, "blur": 0.25, "v": 0.125, "h": 0.125}),
    ],
    ids=["flip", "equal", "a share without flips", "itaclip"],
)
def test_views_are_weighed(views, want) -> None:
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    windows = WindowGrid.place(32, 32, None, 16, PATCH)
    kinds = ["plain", *(["grey"] if views.grey else []), *(["blur"] if views.blur else []), *views.flips]
    calls = iter(kinds)

    def look(given, windows, hints):  # one text for each kind of view
        kind = next(calls)
        return torch.eye(len(kinds))[kinds.index(kind)].expand(1, 4, 4, -1).clone(), windows

    scores, _ = view_scores(look, lambda scale: (pixels, windows), views, Hints())
    assert dict(zip(kinds, scores[0, 0, 0].tolist(), strict=True)) == pytest.approx(want)


def test_segments_are_mirrored_with_the_image() -> None:
    windows = WindowGrid.place(16, 24, None, 16, PATCH)
    pixels, regions = torch.zeros(1, 3, 16, 24), torch.arange(16 * 24).view(1, 16, 24)
    seen = []
    hints = Hints(regions=regions)
    look = lambda *a: seen.append(a[2].regions) or pooled(*a)  # noqa: E731
    view_scores(look, lambda s: (pixels, windows), Views(("h", "v")), hints)
    assert [torch.equal(a, b) for a, b in zip(seen, (regions, regions.flip(2), regions.flip(1)), strict=True)] == [
        True
    ] * 3


@pytest.mark.parametrize("size", [(1, 1), (5, 30), (6, 6)])
def test_tiny_images_can_be_blurred(size) -> None:
    torch.testing.assert_close(blurred(torch.ones(1, 3, *size)), torch.ones(1, 3, *size))


def test_itaclip_of_one_window_is_the_authors(golden_clip) -> None:
    rgb = np.asarray(Image.open(DATA / "golden" / "astronaut_224x224.png").convert("RGB"))
    pixels = golden_clip.normalize(rgb)[None]
    text = F.normalize(torch.randn(6, 64, generator=torch.Generator().manual_seed(4)), dim=-1)
    windows = WindowGrid.place(224, 224, 224, 112, 16)

    def look(given, grid, hints):
        return window_scores(golden_clip, given, text, grid, recipe="itaclip")

    scores, grid = view_scores(look, lambda scale: (pixels, windows), NAMED["itaclip"], Hints())
    want = itaclip_logits(Trunk(golden_clip._model.state_dict()), pixels[0], text)
    torch.testing.assert_close(dense_scores(scores, grid.plan(224, 224))[0], want.float(), atol=5e-6, rtol=0)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Views(("x",)), "take 'h', 'v' or both"),
        (lambda: Views(("h", "h")), "each once"),
        (lambda: Views(scales=()), "one or more|at least one"),
        (lambda: Views(scales=(0.1,)), "0.25"),
        (lambda: Views(flip_share=2), "within 0..1"),
        (lambda: Views.parse("flips"), "closest: flip"),
        (lambda: Views.parse(""), "known: flip"),
    ],
)
def test_mistaken_views_are_one_line(make, reason) -> None:
    with pytest.raises(ProtocolError, match=reason) as caught:
        make()
    assert "\n" not in str(caught.value)
