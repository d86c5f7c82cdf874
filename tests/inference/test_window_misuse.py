"""Windows, scores and hints that do not belong together are refused, and large numbers of regions stay apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from densevl import Ensemble, Segmenter
from densevl.errors import LabelError, ProtocolError, RecipeError
from densevl.inference import WindowGrid, slide, window_scores
from densevl.inference.cutting import cut
from densevl.recipes import Hints
from densevl.recipes.parts.heads import _assignment

SMALL = {"short_side": 48, "crop": 32, "stride": 16}


@pytest.fixture
def text() -> torch.Tensor:
    return F.normalize(torch.randn(5, 24), dim=-1)


def test_windows_laid_on_another_image_are_refused(tiny, text) -> None:
    windows = WindowGrid.place(32, 40, 24, 16, 8)
    with pytest.raises(ProtocolError, match="laid on 32x40 pixels, and the image has 32x64"):
        window_scores(tiny, torch.randn(1, 3, 32, 64), text, windows)


@pytest.mark.parametrize("foreground", [[False] * 5, [True] * 4])
def test_a_foreground_of_nothing_or_of_other_texts_is_refused(tiny, text, foreground) -> None:
    dense = tiny.encode_dense(torch.randn(1, 3, 32, 40), "cliper")
    with pytest.raises(LabelError, match="one bool for each text"):
        dense.score(text, torch.tensor(foreground))


def test_scores_of_some_windows_are_not_taken_for_all(tiny) -> None:
    segmenter = Segmenter(tiny, "sclip", templates="photo", protocol=SMALL)
    prepared = segmenter.prepare(np.zeros((60, 80, 3), np.uint8))
    dense = segmenter.run(prepared.parts)
    from densevl.vocabulary import LabelSet

    labels, policy = LabelSet.parse(["cat", "dog"]), segmenter.policy("none")
    segmenter.gather(prepared, dense, labels, policy)
    with pytest.raises(ProtocolError, match="scores are of 1 windows"):
        segmenter.gather(prepared, dense.part(slice(0, 1)), labels, policy)


def test_large_numbers_of_regions_stay_apart_in_windows() -> None:
    ids = (2**40 + torch.arange(32 * 32)).view(1, 1, 32, 32)
    windows = WindowGrid.place(32, 32, 16, 16, 8)
    assert torch.equal(cut(ids, windows, windows.corners)[0], ids[0, :, :16, :16])


@pytest.mark.parametrize("recipe", ["", 3, []])
def test_no_recipe_is_not_the_default_one(tiny, recipe) -> None:
    with pytest.raises(RecipeError):
        tiny.encode_dense(torch.randn(1, 3, 32, 40), recipe)


def test_pixels_that_no_mask_covers_get_no_label(tiny) -> None:
    masks = np.zeros((1, 60, 80), bool)
    masks[0, 10:40, 20:60] = True
    segmenter = Segmenter(tiny, "textregion", templates="photo", protocol=SMALL)
    result = segmenter(np.zeros((60, 80, 3), np.uint8), ["cat", "dog"], background="none", regions=masks)
    assert np.array_equal(result.labels >= 0, masks[0])
    assert not result.confidence[~masks[0]].any()
    assert result.at(0, 0, k=1) == [("nothing", 1.0)]
    other = Segmenter(tiny, "sclip", templates="photo", protocol=SMALL)
    both = Ensemble([(segmenter, 1.0), (other, 1.0)])
    assert (both(np.zeros((60, 80, 3), np.uint8), ["cat", "dog"], background="none", regions=masks).labels >= 0).all()


def test_head_pairs_that_tie_are_chosen_by_their_order_and_not_by_rounding() -> None:
    cost = torch.tensor([[0.3, 0.5], [0.1, 0.3]], dtype=torch.float64)  # 0.3 + 0.3 against 0.5 + 0.1
    for rounding in (-1e-12, 0, 1e-12):
        assert _assignment(cost + torch.tensor([[rounding, 0], [0, 0]])).tolist() == [0, 1]


def test_cass_gives_an_image_the_same_beside_others_and_at_any_batch(tiny, text) -> None:
    pixels = torch.randn(3, 3, 40, 56, generator=torch.Generator().manual_seed(4056))
    proxy = torch.randn(3, 32, 5, 7, generator=torch.Generator().manual_seed(1))

    def run(count: int, batch: int) -> torch.Tensor:
        hints = Hints(proxy=proxy[:count])
        return slide(
            tiny, pixels[:count], text, recipe="cass", crop=24, stride=16, proxy_scope="image", hints=hints, batch=batch
        )[0]

    for count, batch in ((1, 1), (1, 4), (2, 1), (3, 100)):
        torch.testing.assert_close(run(count, batch), run(1, 2), atol=2e-5, rtol=0)
