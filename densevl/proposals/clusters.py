"""Regions from dense features: similar patches, clustered without words or further weights.

"ncut" follows the normalised cut (Shi and Malik, PAMI 2000) in the form of Ng, Jordan and Weiss (NeurIPS 2001): k-means
on the leading eigenvectors of the normalised affinity, as in unsupervised segmentation with DINO features (Melas-
Kyriazi et al., CVPR 2022). "kmeans" clusters the features themselves.

Shape letters: N patches, D features, K clusters, h/w patch grid, H/W image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from densevl.errors import ProposalError, suggest
from densevl.images import UInt8Array, keep_ratio_size, read_image, resize
from densevl.proposals.base import Proposals, Proposer
from densevl.proposals.components import components

METHODS = ("kmeans", "ncut")
MOST_PATCHES = 1024
"""Largest number of patches for the normalised cut, which needs eigenvectors of an N x N matrix; larger grids are
averaged down."""
ROUNDS = 50

Features = Callable[[UInt8Array], torch.Tensor]


class ClusterProposer(Proposer):
    """Connected regions of similar features.

    Args:
        encoder: a backbone (`encode_dense`), a proxy (`encode`), or a function from uint8 RGB (H, W, 3) to features
            (D, h, w) that cover the image.
        clusters: K, at least 2. method: one of `METHODS`.
        side: longer side of the image for a backbone or proxy, in pixels. seed: of the first centres.
        min_share: regions smaller than this fraction of the image are left out.

    Raises:
        ProposalError: the encoder is none of these, or a setting is out of range.
    """

    def __init__(
        self,
        encoder: Any,
        *,
        clusters: int = 8,
        method: str = "kmeans",
        side: int = 448,
        seed: int = 0,
        min_share: float = 0.002,
    ) -> None:
        if method not in METHODS:
            raise ProposalError(f"no method '{method}'{suggest(method, METHODS)}: {', '.join(METHODS)}")
        if clusters < 2 or side < 1 or not 0 <= min_share < 1:
            raise ProposalError(
                f"clusters {clusters} (at least 2), side {side} (at least 1), min_share {min_share} (0-1)"
            )
        self.name = "clusters"
        self.clusters, self.method, self.seed, self.min_share = clusters, method, seed, min_share
        self._features = _features_of(encoder, side)

    @torch.no_grad()
    def __call__(self, image: Any) -> Proposals:
        """See `Proposer.__call__`; largest region first, quality the mean cosine of its cluster to its centre."""
        rgb = read_image(image)
        features_Dhw = self._features(rgb).float().cpu()
        if features_Dhw.ndim != 3:
            raise ProposalError(f"the encoder gave features {tuple(features_Dhw.shape)}: (D, h, w)")
        centre_KD, tightness_K = self._centres(features_Dhw)
        segments = _painted(F.normalize(features_Dhw, dim=0), centre_KD, rgb.shape[:2])
        least = max(1, int(self.min_share * segments.size))
        masks, quality = [], []
        for cluster in np.unique(segments):
            parts = components(segments == cluster)
            areas = np.bincount(parts.ravel())
            for part in 1 + np.flatnonzero(areas[1:] >= least):
                masks.append(parts == part)
                quality.append(float(tightness_K[cluster].clamp(0, 1)))
        found = Proposals.from_masks(masks, rgb.shape[:2], quality=quality or None)
        return found.select(np.argsort(-found.areas, kind="stable"))

    def _centres(self, features_Dhw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit centres (K, D) in feature space, and the mean cosine of their members (K,)."""
        if self.method == "ncut":
            step = int(np.ceil(np.sqrt(features_Dhw[0].numel() / MOST_PATCHES)))
            if step > 1:
                features_Dhw = F.avg_pool2d(features_Dhw, step, ceil_mode=True)
        points_ND = F.normalize(features_Dhw.flatten(1).T, dim=1)
        clusters = min(self.clusters, len(points_ND))
        space = points_ND if self.method == "kmeans" else _spectrum(points_ND, clusters)
        member_NK = F.one_hot(kmeans(space, clusters, self.seed), clusters).float()
        member_NK = member_NK[:, member_NK.any(dim=0)]
        centre_KD = F.normalize(member_NK.T @ points_ND, dim=1)
        tightness_K = (member_NK * (points_ND @ centre_KD.T)).sum(dim=0) / member_NK.sum(dim=0)
        return centre_KD, tightness_K


def kmeans(points_ND: torch.Tensor, clusters: int, seed: int = 0) -> torch.Tensor:
    """k-means (Lloyd 1982) from the centres of k-means++ (Arthur and Vassilvitskii, SODA 2007); same seed, same result.

    Args:
        points_ND: (N, D) float, N at least `clusters`.

    Returns:
        (N,) int64 cluster of each point; coinciding points may give fewer clusters.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(points_ND), (1,), generator=generator))]
    nearest = _squared(points_ND, points_ND[chosen])[:, 0]
    while len(chosen) < clusters and float(nearest.max()) > 0:
        chosen.append(int(torch.multinomial(nearest, 1, generator=generator)))
        nearest = torch.minimum(nearest, _squared(points_ND, points_ND[chosen[-1:]])[:, 0])
    centres_KD = points_ND[chosen]
    cluster = _squared(points_ND, centres_KD).argmin(dim=1)
    for _ in range(ROUNDS):
        member_NK = F.one_hot(cluster, len(centres_KD)).to(points_ND.dtype)
        count = member_NK.sum(dim=0)[:, None]
        centres_KD = torch.where(count > 0, member_NK.T @ points_ND / count.clamp(min=1), centres_KD)
        moved = _squared(points_ND, centres_KD).argmin(dim=1)
        if torch.equal(moved, cluster):
            break
        cluster = moved
    return cluster


def _squared(points_ND: torch.Tensor, centres_KD: torch.Tensor) -> torch.Tensor:
    return torch.cdist(points_ND, centres_KD, compute_mode="donot_use_mm_for_euclid_dist") ** 2


def _spectrum(points_ND: torch.Tensor, clusters: int) -> torch.Tensor:
    """Unit rows (N, K) of the leading eigenvectors of the normalised affinity of unit points."""
    affinity_NN = (points_ND @ points_ND.T).clamp(min=0).double() ** 2  # squared, to suppress weak similarity
    root_N = affinity_NN.sum(dim=1).clamp(min=1e-12).rsqrt()
    _, vectors = torch.linalg.eigh(root_N[:, None] * affinity_NN * root_N)
    return F.normalize(vectors[:, -clusters:], dim=1).float()


def _painted(features_Dhw: torch.Tensor, centre_KD: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """The nearest centre of every pixel, int64 (H, W); cosines are upsampled one cluster at a time."""
    best, segment = torch.full(size, -torch.inf), torch.zeros(size, dtype=torch.int64)
    cosine_Khw = torch.einsum("kd,dhw->khw", centre_KD, features_Dhw)
    for index, cosine_hw in enumerate(cosine_Khw):
        large = F.interpolate(cosine_hw[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
        better = large > best
        best = torch.where(better, large, best)
        segment[better] = index
    return segment.numpy()


def _features_of(encoder: Any, side: int) -> Features:
    """The function from an image to features, by the kind of encoder."""
    if hasattr(encoder, "encode_dense"):
        return lambda rgb: encoder.encode_dense(_pixels(encoder, rgb, side)).features[0]
    if hasattr(encoder, "encode") and hasattr(encoder, "prepare"):
        return lambda rgb: encoder.from_clip(_pixels(encoder, rgb, side), encoder.mean, encoder.std)[0]
    if callable(encoder):
        return lambda rgb: torch.as_tensor(encoder(rgb))
    if encoder is None:
        raise ProposalError(
            "proposals 'clusters' are of a model's features: give encoder=, a backbone (densevl.load_backbone), or "
            "name regions with them (RegionClassifier, densevl regions)"
        )
    raise ProposalError(
        f"clusters need an encoder, not {type(encoder).__name__}: a backbone (densevl.load_backbone), a proxy, or a "
        "function from an image to features (D, h, w)"
    )


def _pixels(model: Any, rgb: UInt8Array, side: int) -> torch.Tensor:
    """Resize to sides that are multiples of the model's patch, and normalise: (1, 3, H', W')."""
    patch = int(model.patch_size)
    fitted = keep_ratio_size(rgb.shape[0], rgb.shape[1], side, side)
    height, width = (max(patch, round(length / patch) * patch) for length in fitted)
    pixels = torch.from_numpy(resize(rgb, (height, width))).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.mean, model.std))
    return ((pixels - mean) / std).to(getattr(model, "device", "cpu"))
