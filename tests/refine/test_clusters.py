"""DBSCAN against its definition, and segments from affinities against the steps written out with numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from densevl.errors import RecipeError
from densevl.refine import dbscan, majority_vote, segment_by_affinity


def grown(points: np.ndarray, eps: float, min_samples: int) -> list[int]:
    """DBSCAN as its authors tell it: clusters grown one after another from the first core point left."""
    near = [np.flatnonzero(np.linalg.norm(points - point, axis=1) <= eps) for point in points]
    label, clusters = [-1] * len(points), 0
    for start in range(len(points)):
        if label[start] != -1 or len(near[start]) < min_samples:
            continue
        label[start], open_ = clusters, [start]
        while open_:
            point = open_.pop()
            if len(near[point]) >= min_samples:
                for other in near[point]:
                    if label[other] == -1:
                        label[other] = clusters
                        open_.append(other)
        clusters += 1
    return label


@pytest.mark.parametrize("seed", range(40))
def test_dbscan_equals_its_definition(seed) -> None:
    generator = np.random.default_rng(seed)
    points = generator.normal(size=(generator.integers(1, 70), generator.integers(1, 4)))
    points = (points * 4).round() / 4 if seed % 2 else points  # with ties, and points within reach of two clusters
    eps, min_samples = generator.uniform(0.1, 0.9), int(generator.integers(1, 7))
    assert dbscan(torch.from_numpy(points), eps, min_samples).tolist() == grown(points, eps, min_samples)


def test_a_long_chain_is_one_cluster() -> None:
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    assert dbscan(order[:, None].float(), 1.0, 2).unique().tolist() == [0]


def median7(image: np.ndarray) -> np.ndarray:
    """Median of the 7 x 7 pixels around each; beyond the border the image is mirrored, its edge repeated."""
    around = np.lib.stride_tricks.sliding_window_view(np.pad(image, 3, mode="symmetric"), (7, 7))
    return np.median(around, axis=(2, 3)).astype(image.dtype)


def test_segments_equal_the_papers_steps() -> None:
    generator = torch.Generator().manual_seed(1)
    group = (torch.arange(6)[:, None] // 3 + 2 * (torch.arange(8) // 5)).flatten()
    affinity = (group[:, None] == group) * 0.8 + 0.1 * torch.rand(48, 48, generator=generator)
    affinity[5] = 3 * torch.rand(48, generator=generator)  # noise
    labels = torch.tensor(grown(affinity.numpy(), 0.7, 3))
    assert labels.unique().tolist() == [-1, 0, 1, 2, 3]
    maps = torch.stack([affinity[labels == index].mean(dim=0) for index in range(4)]).view(1, 4, 6, 8)
    maps = F.interpolate(maps, scale_factor=4, mode="bilinear")[0].numpy()
    maps = torch.from_numpy(np.stack([median7(each) for each in maps]))
    want = F.interpolate(maps[None], size=(96, 130), mode="bilinear")[0].argmax(dim=0)
    got = segment_by_affinity(affinity, (6, 8), (96, 130), eps=0.7, min_samples=3)
    assert torch.equal(got, want)
    assert majority_vote(torch.zeros_like(got), got).shape == (96, 130)


def test_all_noise_gives_no_segment_and_so_no_vote() -> None:
    segment = segment_by_affinity(10 * torch.rand(12, 12), (3, 4), (30, 40))
    assert segment.unique().tolist() == [-1]
    labels = torch.randint(0, 3, (30, 40))
    assert torch.equal(majority_vote(labels, segment), labels)


@pytest.mark.parametrize(("side", "eps", "least"), [(14, 0.7, 3), (21, 1.1, 7), (2, 0.1, 2)])
def test_settings_left_out_are_the_papers_for_each_grid(side, eps, least) -> None:
    steps = torch.randint(0, 5, (side**2, 1)) * (eps / 3)
    affinity = steps * F.normalize(torch.ones(1, side**2))  # rows differ by multiples of eps / 3
    given = segment_by_affinity(affinity, (side, side), (40, 40), eps=eps, min_samples=least)
    assert torch.equal(segment_by_affinity(affinity, (side, side), (40, 40)), given)


@pytest.mark.parametrize(
    "call",
    [
        lambda: dbscan(torch.zeros(3), 1, 1),
        lambda: dbscan(torch.zeros(3, 2), 0, 1),
        lambda: dbscan(torch.zeros(3, 2), 1, 0),
        lambda: segment_by_affinity(torch.zeros(4, 5), (2, 2), (4, 4)),
    ],
)
def test_impossible_settings_are_refused(call) -> None:
    with pytest.raises(RecipeError):
        call()
