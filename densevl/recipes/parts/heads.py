"""Heads of the block paired with heads of a proxy, their logits mixed (CASS, CVPR 2025).

Shape letters: B batch, A heads, N patches, d head width. Everything is deterministic: the authors' randomised low-rank
decomposition is replaced by the exact one.
"""

from __future__ import annotations

from dataclasses import dataclass

from densevl import kernels
from densevl.errors import RecipeError
from densevl.kernels import Gaussian
from densevl.lazy import torch
from densevl.recipes.batch import Pass
from densevl.recipes.part import Attention, Proxy
from densevl.recipes.parts.attention import LOOKS, PAIRS
from densevl.recipes.values import at_least, check

TIE = 1e-9  # far above the rounding of distances in double precision, far below their differences
MIX = 10.0  # weight of the proxy's logits for heads at distance 1


@dataclass(frozen=True, repr=False)
class PairedHeads(Attention):
    """softmax((MIX w D + K) / (MIX w + 1) + neighbourhood) v: logits K of each head, D of its partner in the proxy.

    Heads are paired so that their spectra differ most; w is the distance of the two spectra. The proxy's map is reduced
    to its `rank` strongest directions.

    Attributes:
        proxy: its features are split into as many heads as the block has.
        pair, neighbourhood: of the block's own logits, see `attention.SelfAttention`.
        rank: directions kept. spectrum: eigenvalues compared. stretch: whether the kept singular values are stretched.
        swapped: use the pairs of heads the wrong way round, as in the authors' code.
    """

    patches_only = True

    proxy: Proxy
    pair: str = "kk"
    neighbourhood: Gaussian | None = None
    rank: int = 10
    spectrum: int = 20
    stretch: bool = True
    swapped: bool = False

    def __post_init__(self) -> None:
        check(self.pair, PAIRS, "pair of projections")
        at_least(self.rank, 1, "the rank of paired heads")
        at_least(self.spectrum, 1, "the spectrum of paired heads")

    def attend(self, run: Pass, v: torch.Tensor) -> torch.Tensor:
        a, b = run.qkv[self.pair[0]], run.qkv[self.pair[1]]
        heads, proxy_BNP = a.shape[1], run.batch.proxy(run.grid)
        if proxy_BNP.shape[-1] % heads:
            raise RecipeError(
                f"paired heads: the proxy's width {proxy_BNP.shape[-1]} is not a multiple of the {heads} heads here; "
                "use another proxy"
            )
        proxy = _matched(proxy_BNP.unflatten(2, (heads, -1)).transpose(1, 2), b, dims=(1, 2, 3))
        own_logits = a @ b.mT * a.shape[-1] ** -0.5
        proxy_logits = proxy @ proxy.mT * proxy.shape[-1] ** -0.5
        pairs = zip(own_logits, proxy_logits, strict=True)
        logits = torch.stack([self._mixed(own_ANN, other_ANN) for own_ANN, other_ANN in pairs])
        if self.neighbourhood is not None:
            logits = logits + kernels.gaussian_bias(run.grid, self.neighbourhood.std, 0).to(logits)
        return logits.softmax(dim=-1) @ v

    def _mixed(self, own_ANN: torch.Tensor, other_ANN: torch.Tensor) -> torch.Tensor:
        distance = _distances(other_ANN, own_ANN, self.spectrum)  # (proxy head, own head)
        pairs = torch.stack([torch.arange(len(own_ANN)), _assignment(1 - distance)])
        for_proxy, for_own = pairs.flip(0) if self.swapped else pairs
        weight = distance[for_own, for_proxy] if self.swapped else distance[for_proxy, for_own]
        order = for_own.argsort()
        low = _matched(self._low_rank(other_ANN[for_proxy[order]]), own_ANN, dims=(1, 2))
        w = MIX * weight[order].view(-1, 1, 1).to(own_ANN)
        return (w * low + own_ANN) / (w + 1)

    def _low_rank(self, maps_ANN: torch.Tensor) -> torch.Tensor:
        """The strongest directions of symmetric maps, singular values stretched, diagonal 0."""
        values, vectors = torch.linalg.eigh(maps_ANN.double())
        values, vectors = values[:, -self.rank :], vectors[:, :, -self.rank :]
        if self.stretch:
            low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
            values = (values - low) / (high - low).clamp(min=1e-12) * (1.5 * high - 0.5 * low) + 0.5 * low
        rebuilt = (vectors * values[:, None]) @ vectors.mT
        rebuilt.diagonal(dim1=1, dim2=2).zero_()
        return rebuilt.to(maps_ANN)

    def __str__(self) -> str:
        near = "" if self.neighbourhood is None else f", near ones more (Gaussian, {self.neighbourhood.std:g} patches)"
        return f"{LOOKS[self.pair]}{near}, each head's logits mixed with those of a paired head of another model"


def _matched(x: torch.Tensor, like: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """Shift and scale x to the range of `like`."""
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    to_low, to_high = like.amin(dims, keepdim=True), like.amax(dims, keepdim=True)
    return (x - low) / (high - low).clamp(min=1e-12) * (to_high - to_low) + to_low


def _distances(proxy: torch.Tensor, own: torch.Tensor, count: int) -> torch.Tensor:
    """Distance of the largest eigenvalues, normalised to unit sum, of each pair of maps (A, N, N): (A, A) float64."""

    def spectrum(maps: torch.Tensor) -> torch.Tensor:
        values = torch.linalg.eigvalsh(maps.double())[:, -count:]
        values = values / values.norm(dim=-1, keepdim=True)
        return values / values.abs().sum(dim=-1, keepdim=True)

    return (spectrum(proxy)[:, None] - spectrum(own)[None]).abs().sum(dim=-1)


def _assignment(cost: torch.Tensor) -> torch.Tensor:
    """The column of each row in the cheapest one-to-one assignment; of several, the one nearest to the diagonal.

    Distances of ordered spectra tie exactly, so otherwise rounding would decide.
    """
    from scipy.optimize import linear_sum_assignment

    place = torch.arange(len(cost), dtype=torch.float64)
    away = (place[:, None] - place[None]).square()
    return torch.from_numpy(linear_sum_assignment((cost.cpu().double() + TIE * away).numpy())[1])
