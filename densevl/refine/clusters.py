"""Segments without words, from the affinity of patches (CLIPtrase, Shao et al., ECCV 2024).

Patches with similar rows of the affinity matrix are clustered by density. Each cluster's mean row maps its place;
the maps are smoothed and enlarged, and every pixel goes to the cluster that is strongest there. `majority_vote` then
gives each segment one label.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from densevl.errors import RecipeError
from densevl.lazy import ndimage

NOISE = -1
ENLARGED = 4
MEDIAN = 7
LEAST_EPS = 0.1
PAPER_GRID = 14
"""Patches per side in CLIPtrase's smaller model; with fewer, things share clusters with ground, and votes lose them."""


def dbscan(points_ND: torch.Tensor, eps: float, min_samples: int) -> torch.Tensor:
    """DBSCAN (Ester et al., KDD 1996) in the Euclidean metric.

    A point is core if at least `min_samples` points, including itself, are within `eps`. Clusters are the connected
    components of core points, numbered by their first point. Another point within `eps` of a core point joins its
    cluster; of several, the one with the lowest number.

    Args:
        points_ND: (N, D) float. eps: above 0; min_samples: at least 1.

    Returns:
        (N,) int64 cluster of each point, -1 for noise.

    Raises:
        RecipeError: points have another shape, or a setting is out of range.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    if points_ND.ndim != 2:
        raise RecipeError(f"points to cluster are (N, D), not {tuple(points_ND.shape)}")
    if not eps > 0 or min_samples < 1:
        raise RecipeError(f"eps {eps} and min_samples {min_samples}: eps is above 0 and min_samples at least 1")
    exact = points_ND.double()  # the shortcut through a matrix product loses too many digits in float32
    near = torch.cdist(exact, exact, compute_mode="use_mm_for_euclid_dist") <= eps
    core = near.sum(dim=1) >= min_samples
    if not core.any():
        return torch.full_like(core, NOISE, dtype=torch.int64)
    links = csr_array(near[core][:, core].numpy(force=True))
    count, own = connected_components(links, directed=False)  # in the order of their first point
    number = torch.full_like(core, count, dtype=torch.int64)
    number[core] = torch.from_numpy(own).to(number)
    cluster = torch.where(near & core, number, count).amin(dim=1)
    return torch.where(cluster < count, cluster, NOISE)


def segment_by_affinity(
    affinity_NN: torch.Tensor,
    grid: tuple[int, int],
    size: tuple[int, int],
    *,
    eps: float | None = None,
    min_samples: int | None = None,
) -> torch.Tensor:
    """Segments of one image from the affinity of its patches.

    Args:
        affinity_NN: (N, N) float, N = h*w, row i how strongly patch i belongs with each patch; CLIPtrase takes the mean
            self-correlation of a late block less that of CLS, negatives cut to 0.
        grid: (h, w) of the patches. size: (H, W) of the result in pixels.
        eps, min_samples: of `dbscan` on the rows. None follows the paper, which has 0.7 and 3 for 14 x 14 patches, 1.1
            and 7 for 21 x 21: `eps` is linear in the square root of N, like distances of rows of N numbers, and
            `min_samples` in N, at least 2.

    Returns:
        (H, W) int64, clusters 0, 1, ...; all -1 if every patch is noise.

    Raises:
        RecipeError: the matrix does not fit the grid, or a setting is out of range.
    """
    count = grid[0] * grid[1]
    if affinity_NN.shape != (count, count):
        raise RecipeError(
            f"the affinity {tuple(affinity_NN.shape)} does not fit a grid of {grid[0]} x {grid[1]} patches: (N, N)"
        )
    affinity_NN = affinity_NN.float()
    eps = max(LEAST_EPS, (4 * math.sqrt(count) - 7) / 70) if eps is None else eps
    min_samples = max(2, round(3 + (count - PAPER_GRID**2) * 4 / 245)) if min_samples is None else min_samples
    cluster = dbscan(affinity_NN, eps, min_samples)
    total = int(cluster.max()) + 1
    if not total:
        return torch.full(size, NOISE, device=affinity_NN.device)
    members = F.one_hot(cluster.clamp(min=0), total).float() * (cluster >= 0)[:, None]
    maps = (members.T @ affinity_NN / members.sum(dim=0)[:, None]).unflatten(1, grid)
    strongest = torch.full(size, -torch.inf, device=affinity_NN.device)
    segment = torch.zeros(size, dtype=torch.int64, device=affinity_NN.device)
    for index, map_hw in enumerate(maps):  # one full-size map at a time
        large = F.interpolate(map_hw[None, None], scale_factor=ENLARGED, mode="bilinear", align_corners=False)
        # scipy's filter, on the CPU even for tensors of a GPU: a map is small, and is mirrored beyond its border
        steady = torch.from_numpy(ndimage.median_filter(large[0, 0].numpy(force=True), MEDIAN)).to(large.device)
        smooth = F.interpolate(steady[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        better = smooth > strongest
        segment = torch.where(better, index, segment)
        strongest = torch.where(better, smooth, strongest)
    return segment
