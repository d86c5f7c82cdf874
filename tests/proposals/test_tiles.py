"""Tiles of large photos: where they lie, and that borders leave no mark on what crosses them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from densevl.errors import ProposalError
from densevl.images import read_image
from densevl.proposals import Proposals, Proposer, load_proposer
from densevl.proposals.sam.mini_sam import WEIGHTS
from densevl.proposals.tiles import TiledProposer, join_tiles, tiles
from densevl.shipped import is_shipped


class Colours(Proposer):
    """Finds each colour there is, if there is enough of it, in images up to a size."""

    name = "colours"
    largest = 64

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, image: Any) -> Proposals:
        rgb = read_image(image)
        self.sizes.append(rgb.shape[:2])
        if max(rgb.shape[:2]) > self.largest:
            return Proposals.empty(rgb.shape[:2])
        found = [(rgb == colour).all(axis=2) for colour in np.unique(rgb.reshape(-1, 3), axis=0) if colour.any()]
        return Proposals.from_masks(found, rgb.shape[:2])


def scene() -> np.ndarray:
    """A long bar that crosses every tile, a square within one, and one on a border."""
    photo = np.zeros((100, 230, 3), np.uint8)
    photo[40:52, 5:220] = (250, 0, 0)
    photo[70:80, 10:20] = (0, 250, 0)
    photo[5:30, 55:75] = (0, 0, 250)
    return photo


@pytest.mark.parametrize("size", [(100, 230), (64, 65), (64, 64), (10, 500), (65, 64)])
@pytest.mark.parametrize("overlap", [0.1, 0.25, 0.5])
def test_tiles_cover_the_image_and_overlap(size, overlap) -> None:
    laid = tiles(size, 64, overlap)
    seen = np.zeros(size, int)
    for left, top, right, bottom, _ in laid:
        assert right - left <= 64
        assert bottom - top <= 64
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1
    columns = sorted({(crop.left, crop.right) for crop in laid})
    shared = [one[1] - two[0] for one, two in itertools.pairwise(columns)]
    assert all(pixels >= 64 * overlap - 1 for pixels in shared)


def test_what_a_border_cuts_is_whole_again() -> None:
    inner = Colours()
    found = TiledProposer(inner, 64)(scene())
    wanted = [(scene() == colour).all(axis=2) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    assert len(found) == 3
    for mask in wanted:
        assert any((mask == each).all() for each in found.masks())
    assert inner.sizes[-1] == (100, 230), "the whole photo is asked about too"
    inner.sizes.clear()
    TiledProposer(inner, 64, whole=False)(scene())
    assert (100, 230) not in inner.sizes


def test_a_small_photo_needs_no_tiles() -> None:
    inner = Colours()
    TiledProposer(inner, 64)(scene()[:50, :60])
    assert inner.sizes == [(50, 60)]


def test_pieces_that_disagree_stay_apart() -> None:
    crops = tiles((40, 100), 64, 0.4)
    one, two = np.zeros((1, 40, 64), bool), np.zeros((1, 40, 64), bool)
    one[0, 5:15, 20:] = True
    two[0, 20:35, :30] = True  # elsewhere in what both see
    masks = [Proposals.from_masks(part, quality=[q]) for part, q in ((one, 0.4), (two, 0.8))]
    assert len(join_tiles(masks, crops, (40, 100), 0.5)) == 2
    two[0] = False
    two[0, 5:15, :50] = True
    masks[1] = Proposals.from_masks(two, quality=[0.8])
    joined = join_tiles(masks, crops, (40, 100), 0.5)
    assert len(joined) == 1
    assert joined.boxes[0].tolist() == [20, 5, 86, 15]
    assert 0.4 < joined.quality[0] < 0.8


@pytest.mark.parametrize("settings", [{"side": 4}, {"overlap": 0.0}, {"overlap": 0.6}, {"join": 0}])
def test_impossible_tiles_are_refused(settings) -> None:
    with pytest.raises(ProposalError, match="at least 8 pixels"):
        TiledProposer(Colours(), **{"side": 64, **settings})


def test_nothing_found_is_nothing() -> None:
    assert len(TiledProposer(Colours(), 64)(np.zeros((80, 90, 3), np.uint8))) == 0


def test_mini_sam_in_tiles_by_name() -> None:
    pytest.importorskip("segment_anything")
    if not is_shipped(WEIGHTS):
        pytest.skip("this checkout holds no mini-sam")
    photo = np.full((96, 160, 3), 200, np.uint8)
    photo[20:60, 60:110] = (200, 30, 30)
    propose = load_proposer("mini-sam", tile=96, points_per_side=6)
    found = propose(photo)
    assert propose.name == "tiles of mini-sam"
    assert found.size == (96, 160)
    square = np.zeros((96, 160), bool)
    square[20:60, 60:110] = True
    iou = [(mask & square).sum() / (mask | square).sum() for mask in found.masks()]
    assert max(iou) > 0.8
    assert propose.prompt(photo, points=[[80, 40]]).mask(0)[40, 80]
