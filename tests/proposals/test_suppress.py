"""Masks that say the same twice: exact on packed masks, whatever the sizes; and small parts told apart."""

from __future__ import annotations

import numpy as np
import pytest

from densevl.proposals import Proposals
from densevl.proposals.components import components, tidy
from densevl.proposals.suppress import unlike, unlike_boxes


def _blobs(size: tuple[int, int], count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    masks = []
    for _ in range(count):
        row, column = rng.random(2) * size
        masks.append(((y - row) / rng.uniform(1, 12)) ** 2 + ((x - column) / rng.uniform(1, 12)) ** 2 < 1)
    return np.array(masks)


def _plain(masks: np.ndarray, scores: np.ndarray, above: float) -> list[int]:
    """Greedy, on whole bool masks."""
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        both = [(masks[index] & masks[other]).sum() for other in kept]
        either = [(masks[index] | masks[other]).sum() for other in kept]
        if not any(b > above * e for b, e in zip(both, either, strict=True)):
            kept.append(int(index))
    return kept


@pytest.mark.parametrize("size", [(20, 20), (17, 31), (40, 9)])
@pytest.mark.parametrize("above", [0.0, 0.3, 0.7, 1.0])
def test_packed_and_plain_masks_give_the_same(size, above: float) -> None:
    masks = _blobs(size, 60, seed=size[0])
    masks[5] = False
    masks[6] = masks[7]
    scores = np.random.default_rng(1).integers(0, 5, 60) / 5  # with ties
    assert unlike(Proposals.from_masks(masks), scores, above).tolist() == _plain(masks, scores, above)


def test_a_ring_is_not_its_disc() -> None:
    y, x = np.mgrid[:40, :40]
    disc = np.hypot(y - 20, x - 20) < 15
    ring = disc & (np.hypot(y - 20, x - 20) > 12)
    found = Proposals.from_masks([disc, ring])
    assert unlike(found, np.array([0.9, 0.8]), 0.7).tolist() == [0, 1]
    assert unlike_boxes(found, np.array([0.9, 0.8]), 0.7).tolist() == [0]


def test_a_stray_pixel_hides_no_duplicate() -> None:
    mask = np.zeros((40, 40), bool)
    mask[3:20, 3:20] = True
    stray = mask.copy()
    stray[39, 39] = True
    found = Proposals.from_masks([mask, stray])
    assert unlike(found, np.array([0.9, 0.8]), 0.7).tolist() == [0]
    assert unlike_boxes(found, np.array([0.9, 0.8]), 0.7).tolist() == [0, 1]


def test_no_masks_are_kept_of_none() -> None:
    assert unlike(Proposals.empty((4, 5)), np.zeros(0), 0.7).tolist() == []


def test_five_thousand_masks_take_seconds() -> None:
    corners = np.random.default_rng(0).random((5000, 2)) * 180
    found = Proposals.from_boxes(np.hstack([corners, corners + 20]), (200, 200))
    kept = unlike(found, found.quality, 0.5)
    assert kept[0] == 0
    assert 50 < len(kept) < 5000


@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (23, 31), (64, 5)])
def test_components_are_those_of_scikit_image(density: float, size) -> None:
    measure = pytest.importorskip("skimage.measure")
    mask = np.random.default_rng(0).random(size) < density
    np.testing.assert_array_equal(components(mask), measure.label(mask, connectivity=2))


def test_a_spiral_is_one_component() -> None:
    mask = np.zeros((41, 41), bool)
    for ring in range(0, 20, 2):
        mask[ring, ring : 41 - ring] = mask[ring : 41 - ring, 40 - ring] = True
        mask[40 - ring, ring : 41 - ring] = mask[ring + 2 : 41 - ring, ring] = True
        mask[ring + 2, ring : ring + 3] = True
    assert components(mask).max() == 1


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.6, 0.9])
@pytest.mark.parametrize("area", [1, 3, 20, 10_000])
def test_small_parts_go_as_in_the_package(density: float, area: int) -> None:
    amg = pytest.importorskip("segment_anything.utils.amg")
    pytest.importorskip("cv2")
    mask = np.random.default_rng(3).random((30, 37)) < density
    expected, holes = amg.remove_small_regions(mask, area, "holes")
    expected, islands = amg.remove_small_regions(expected, area, "islands")
    result, changed = tidy(mask, area)
    np.testing.assert_array_equal(result, expected)
    assert changed == (holes or islands)
