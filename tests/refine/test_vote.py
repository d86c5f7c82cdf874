"""Majority votes and filters of label maps against plain loops."""

from __future__ import annotations

import pytest
import torch

from densevl.errors import LabelError, OptionError
from densevl.refine import grey_closing, majority_filter, majority_vote


def most(labels: torch.Tensor) -> int:
    """The most frequent label, the smallest among equals."""
    values = sorted(labels.tolist())
    return max(sorted(set(values)), key=values.count)


@pytest.mark.parametrize("seed", range(5))
def test_a_segment_map_equals_a_loop(seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 4, (9, 11), generator=generator).to(torch.int16)
    ids = torch.tensor([-5, -1, 0, 3, 10_000])[torch.randint(5, (9, 11), generator=generator)]
    want = labels.clone()
    for segment in (0, 3, 10_000):
        want[ids == segment] = most(labels[ids == segment])
    got = majority_vote(labels, ids)
    assert torch.equal(got, want)
    assert got.dtype == labels.dtype


@pytest.mark.parametrize("seed", range(5))
def test_where_masks_overlap_the_smallest_decides(seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 4, (9, 11), generator=generator)
    masks = torch.rand(6, 9, 11, generator=generator) < torch.tensor([0, 0.1, 0.5, 0.2, 0.2, 0.9]).view(6, 1, 1)
    masks[4] = masks[3].flip(0)  # as many pixels as the one before
    want = labels.clone()
    for index in sorted(range(6), key=lambda i: (-int(masks[i].sum()), -i)):
        if masks[index].any():
            want[masks[index]] = most(labels[masks[index]])
    assert torch.equal(majority_vote(labels, masks), want)


def test_without_regions_nothing_changes() -> None:
    labels = torch.randint(-1, 4, (5, 6))
    for regions in (torch.full((5, 6), -1), torch.zeros(0, 5, 6, dtype=torch.bool), torch.zeros(2, 5, 6).bool()):
        got = majority_vote(labels, regions)
        assert torch.equal(got, labels)
        assert got.data_ptr() != labels.data_ptr()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("side", [1, 3, 5])
def test_the_majority_filter_equals_a_loop(side, seed) -> None:
    labels = torch.randint(-1, 3, (7, 8), generator=torch.Generator().manual_seed(seed))
    want, reach = labels.clone(), side // 2
    for y in range(7):
        for x in range(8):
            around = labels[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1].flatten()
            best = most(around)
            if (around == best).sum() > (around == labels[y, x]).sum():
                want[y, x] = best
    assert torch.equal(majority_filter(labels, side), want)


def test_the_majority_filter_does_not_care_how_classes_are_numbered() -> None:
    labels = torch.zeros(9, 9, dtype=torch.int16)
    labels[:, 5:] = 4
    labels[4, 2] = 4
    labels[4, 7] = 0
    want = torch.where(torch.arange(9) < 5, 0, 4).expand(9, 9).to(torch.int16)
    assert torch.equal(majority_filter(labels), want)
    assert torch.equal(majority_filter(4 - labels), 4 - want)


def test_grey_closing_lets_higher_labels_win_and_wraps_at_8_bits() -> None:
    labels = torch.zeros(9, 9, dtype=torch.int64)
    labels[4, 2:7:2] = 2
    assert grey_closing(labels)[4].tolist() == [0, 0, 2, 2, 2, 2, 2, 0, 0]
    assert torch.equal(grey_closing(2 - labels), torch.full_like(labels, 2))  # low specks vanish
    assert grey_closing(torch.full((3, 3), 257)).unique().tolist() == [1]


@pytest.mark.parametrize("seed", range(3))
def test_grey_closing_equals_opencv(seed) -> None:
    cv2 = pytest.importorskip("cv2")
    labels = torch.randint(0, 300, (13, 17), generator=torch.Generator().manual_seed(seed))
    grey = labels.numpy().astype("uint8")
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (3, 3))
    assert (cv2.morphologyEx(grey, cv2.MORPH_CLOSE, kernel) == grey_closing(labels).numpy()).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda: majority_vote(torch.zeros(4, 4), torch.zeros(4, 4).long()),
        lambda: majority_vote(torch.zeros(4, 4).long(), torch.zeros(4, 5).long()),
        lambda: majority_vote(torch.zeros(4, 4).long(), torch.zeros(4, 4).bool()),
        lambda: majority_vote(torch.zeros(4, 4).long(), torch.zeros(1, 4, 4)),
        lambda: majority_filter(torch.zeros(4, 4)),
        lambda: majority_filter(torch.zeros(4, 4).long(), 2),
        lambda: grey_closing(torch.zeros(1, 4, 4).long()),
    ],
)
def test_maps_of_another_kind_are_refused(call) -> None:
    with pytest.raises((LabelError, OptionError)):
        call()
