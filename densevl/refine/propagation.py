"""Label propagation (LPOSS and LPOSS+, Stojnić et al., CVPR 2025): scores spread over a graph of similar places.

With W the graph's symmetric weights, D their row sums and S = D^-1/2 W D^-1/2, scores Y become Z with
(I - alpha S) Z = Y. The graph of `propagate_patches` covers patches of all windows together, weighted by cosines of
a proxy's features and by distance; that of `PixelPropagation` is over the pixels of a photo, weighted by colour.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch.nn import functional as F

from densevl.errors import ImageError, RecipeError
from densevl.refine.color import rgb_to_lab
from densevl.refine.solvers import Graph, chebyshev, conjugate_gradients

ALPHA = 0.95
TOLERANCE = 1e-3
PIXEL_TOLERANCE = 1e-2  # 17 steps; about half the error of the ten steps of the paper's code
COMPAT_ITERATIONS, COMPAT_TOLERANCE = 10, 1e-6
ROWS_AT_ONCE = 1024  # patches whose distances to all others are held
CHANNELS_AT_ONCE = 16
STRIP_ROWS = 64
LAB_SCALE = (100.0, 128.0, 128.0)


class PatchGraph:
    """S of the patches' k nearest neighbours: w = max(0, cos)^power * exp(-falloff * distance in pixels).

    Attributes:
        matrix: (N, N) sparse, symmetric; a pair in which each is among the other's nearest counts twice.
    """

    def __init__(
        self,
        features_ND: torch.Tensor,
        positions_N2: torch.Tensor,
        *,
        neighbours: int = 400,
        power: float = 3.0,
        falloff: float = 0.01,
    ) -> None:
        """Build the graph.

        Args:
            features_ND: (N, D) float, a proxy's features of N patches ("v" of DINO in the paper), of any norm.
            positions_N2: (N, 2) float, the centres of the patches in pixels; patches of overlapping windows may share
                one.
            neighbours: of each patch, including itself; at most N.

        Raises:
            RecipeError: the two do not have the same N patches, or neighbours is under 1.
        """
        count = len(features_ND)
        if features_ND.ndim != 2 or positions_N2.shape != (count, 2) or not count:
            raise RecipeError(
                f"features {tuple(features_ND.shape)} and positions {tuple(positions_N2.shape)} are not those of the "
                "same patches: (N, D) and (N, 2)"
            )
        if neighbours < 1:
            raise RecipeError(f"neighbours is {neighbours}; it must be at least 1")
        unit_ND = F.normalize(features_ND.float(), dim=-1)
        places_N2 = positions_N2.to(unit_ND)
        nearest = min(neighbours, count)
        weights, columns = [], []
        for rows in torch.arange(count, device=unit_ND.device).split(ROWS_AT_ONCE):
            cosine, which = (unit_ND[rows] @ unit_ND.T).topk(nearest, dim=1)
            distance = (places_N2[rows, None] - places_N2[which]).norm(dim=-1)
            weight = cosine.clamp(min=0) ** power * torch.exp(-falloff * distance)
            weights.append(weight.masked_fill_(which == rows[:, None], 0).flatten())
            columns.append(which.flatten())
        weight, column = torch.cat(weights), torch.cat(columns)
        row = torch.arange(count, device=unit_ND.device).repeat_interleave(nearest)
        total = torch.zeros(count, device=unit_ND.device).index_add_(0, row, weight).index_add_(0, column, weight)
        scale = torch.where(total > 0, total, 1).rsqrt()
        weight = weight * scale[row] * scale[column]
        pairs = torch.stack([torch.cat([row, column]), torch.cat([column, row])])
        entries = torch.sparse_coo_tensor(pairs, weight.repeat(2), (count, count), check_invariants=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
            self.matrix = entries.coalesce().to_sparse_csr()  # multiplies three times as fast as the list of entries

    def __call__(self, z_NT: torch.Tensor) -> torch.Tensor:
        """S z: (N, T) to (N, T)."""
        return self.matrix @ z_NT

    def propagate(
        self, scores_NT: torch.Tensor, *, alpha: float = ALPHA, tolerance: float = TOLERANCE, steps: int | None = None
    ) -> torch.Tensor:
        """Z of the scores: (N, T) float to (N, T) float32.

        Args:
            alpha: between 0 and 1: how far scores travel.
            tolerance: the remaining error, relative to the exact result; every column is solved as if alone.
            steps: of conjugate gradients per column; the paper's code runs 10. None solves to the tolerance.

        Raises:
            RecipeError: alpha or the tolerance is out of range.
        """
        return _solve(self, scores_NT.float(), (0,), alpha, tolerance, steps)


def propagate_patches(
    scores_NT: torch.Tensor, features_ND: torch.Tensor, positions_N2: torch.Tensor, *, compat: bool = False
) -> torch.Tensor:
    """LPOSS with the paper's constants: `PatchGraph(features, positions).propagate(scores)`, (N, T) float32.

    Raises:
        RecipeError: the three do not have the same N patches.
    """
    if scores_NT.ndim != 2 or len(scores_NT) != len(features_ND):
        raise RecipeError(f"scores {tuple(scores_NT.shape)} are not (N, T) for the N = {len(features_ND)} patches")
    return PatchGraph(features_ND, positions_N2).propagate(scores_NT, steps=COMPAT_ITERATIONS if compat else None)


class PixelPropagation:
    """LPOSS+ for one photo: similar pixels of a neighbourhood share their scores.

    w = exp(-|difference in scaled Lab| / temperature) for all pixels within `radius` rows and columns. The weights are
    stored once per pair; scores are read by shifting, so there is no list of edges.
    """

    def __init__(
        self,
        image: torch.Tensor,
        *,
        radius: int = 6,
        temperature: float = 0.01,
        alpha: float = ALPHA,
        tolerance: float = PIXEL_TOLERANCE,
        compat: bool = False,
    ) -> None:
        """Compute the weights: 2 * radius * (radius + 1) float32 maps of the photo's size.

        Args:
            image: (B, 3, H, W) float RGB within 0..1.
            radius: 6 is the paper's neighbourhood of 13 x 13.
            alpha, tolerance: as for `PatchGraph.propagate`. compat: run the ten steps of the paper's code.

        Raises:
            ImageError: it is not such an image.
            RecipeError: radius, temperature, alpha or tolerance is out of range.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ImageError(f"the photo to spread scores on is (B, 3, H, W), not {tuple(image.shape)}")
        if image.numel() and (image.amin() < -0.01 or image.amax() > 1.01):
            raise ImageError("the photo to spread scores on is RGB within 0..1, neither 0..255 nor normalised")
        if radius < 1 or not temperature > 0:
            raise RecipeError(f"radius {radius} and temperature {temperature}: both must be above 0")
        _check_solver(alpha, tolerance)
        self.alpha, self.tolerance = alpha, tolerance
        self.steps = COMPAT_ITERATIONS if compat else None
        lab = rgb_to_lab(image.float()) / torch.tensor(LAB_SCALE, device=image.device).view(3, 1, 1)
        height, width = image.shape[-2:]
        self._pairs, total = [], torch.zeros_like(image[:, 0], dtype=torch.float32)
        # on a CPU, rows are processed in strips that stay in its cache
        strip = STRIP_ROWS if image.device.type == "cpu" else height
        for here, there in _overlaps(radius, height, width, strip):
            squares = (lab[(..., *here)] - lab[(..., *there)]).square_()
            weight = squares.sum(dim=1).sqrt_().div_(-temperature).exp_()
            total[(..., *here)] += weight
            total[(..., *there)] += weight
            self._pairs.append((here, there, weight))
        scale = torch.where(total > 0, total, 1).rsqrt()
        for here, there, weight in self._pairs:
            weight.mul_(scale[(..., *here)]).mul_(scale[(..., *there)])

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Spread (B, C, H, W) float scores, each channel separately; the result has the same shape, float32."""
        parts = scores.float().split(CHANNELS_AT_ONCE, dim=1)
        solved = [_solve(self._spread, part, (-2, -1), self.alpha, self.tolerance, self.steps) for part in parts]
        return torch.cat(solved, dim=1) if solved else scores.float()

    def _spread(self, z_BCHW: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(z_BCHW)
        for here, there, weight_Bhw in self._pairs:
            weight = weight_Bhw[:, None]
            out[(..., *here)].addcmul_(weight, z_BCHW[(..., *there)])
            out[(..., *there)].addcmul_(weight, z_BCHW[(..., *here)])
        return out


def _overlaps(
    radius: int, height: int, width: int, strip: int
) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Rows and columns of pixels that have a neighbour at some offset, and of those neighbours; every pair once."""
    for top in range(0, height, strip):
        for dy in range(radius + 1):
            end = min(top + strip, height - dy)
            for dx in range(-radius, radius + 1):
                if (dy == 0 and dx <= 0) or end <= top or abs(dx) >= width:
                    continue  # the other half of the neighbourhood is its mirror image
                left, right = max(-dx, 0), max(dx, 0)
                here = (slice(top, end), slice(left, width - right))
                yield here, (slice(top + dy, end + dy), slice(right, width - left))


def _check_solver(alpha: float, tolerance: float) -> None:
    if not 0 < alpha < 1:
        raise RecipeError(f"alpha is {alpha}; it must be between 0 and 1, both excluded")
    if not 0 < tolerance < 1:
        raise RecipeError(f"tolerance is {tolerance}; it must be between 0 and 1, both excluded")


def _solve(
    graph: Graph, y: torch.Tensor, dims: tuple[int, ...], alpha: float, tolerance: float, steps: int | None
) -> torch.Tensor:
    _check_solver(alpha, tolerance)
    if steps is None:
        return chebyshev(graph, y, alpha, tolerance)
    return conjugate_gradients(graph, y, alpha, iterations=steps, tolerance=COMPAT_TOLERANCE, dims=dims)
