"""Heads of the last block paired with heads of a proxy, their logits mixed (CASS, CVPR 2025).

Shape letters: B batch, A heads, N patches, d head width. Everything is deterministic: where the authors take a
randomised low-rank decomposition, the exact one is taken.
"""

from __future__ import annotations

import torch

from densevl.errors import RecipeError
from densevl.kernels import gaussian_bias
from densevl.recipes.attention import Looks
from densevl.recipes.parts import Gaussian, Pairing
from densevl.recipes.recipe import Recipe

MIX = 10.0  # weight of the proxy's logits for heads at distance 1


def pair_heads(looks: Looks, recipe: Recipe, spec: Pairing, proxy_BNP: torch.Tensor, compat: bool) -> torch.Tensor:
    """Attention (B, A, N, d) from logits K of the block's own term mixed with the paired D of the proxy.

    logits = (MIX w D + K) / (MIX w + 1) + bias, w the distance of the two heads' spectra.

    With `compat` the pairs are used the wrong way round, as in the authors' code.

    Raises:
        RecipeError: the proxy's features cannot be split into the block's heads.
    """
    kind, v = recipe.parts[0].kind, looks.own["v"]
    a, b = looks.own[kind[0]], looks.own[kind[1]]
    heads = a.shape[1]
    if proxy_BNP.shape[-1] % heads:
        raise RecipeError(
            f"recipe '{recipe.name}' pairs heads: the proxy's width {proxy_BNP.shape[-1]} is not a multiple of the "
            f"{heads} heads here; use another proxy"
        )
    proxy = proxy_BNP.unflatten(2, (heads, -1)).transpose(1, 2)
    proxy = _matched(proxy, b, dims=(1, 2, 3))
    own_logits = a @ b.mT * a.shape[-1] ** -0.5
    proxy_logits = proxy @ proxy.mT * proxy.shape[-1] ** -0.5
    mixed = []
    for own, other in zip(own_logits, proxy_logits, strict=True):
        distance = _distances(other, own, spec.spectrum)  # (proxy head, own head)
        partner = _assignment(1 - distance)  # own head of each proxy head
        pairs = torch.stack([torch.arange(heads), partner])
        for_proxy, for_own = pairs.flip(0) if compat else pairs
        weight = distance[pairs[0], pairs[1]] if not compat else distance[for_own, for_proxy]
        order = for_own.argsort()
        low = _low_rank(other[for_proxy[order]], spec)
        low = _matched(low, own, dims=(1, 2))
        w = MIX * weight[order].view(-1, 1, 1)
        mixed.append((w * low + own) / (w + 1))
    logits = torch.stack(mixed)
    if isinstance(recipe.bias, Gaussian):
        logits = logits + gaussian_bias(looks.grid, recipe.bias.std, 0).to(logits)
    return logits.softmax(dim=-1) @ v


def _matched(x: torch.Tensor, like: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """x moved and scaled to the range of `like`."""
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    to_low, to_high = like.amin(dims, keepdim=True), like.amax(dims, keepdim=True)
    return (x - low) / (high - low).clamp(min=1e-12) * (to_high - to_low) + to_low


def _distances(proxy: torch.Tensor, own: torch.Tensor, count: int) -> torch.Tensor:
    """Distance of the largest eigenvalues of each pair of maps (A, N, N): (A, A), normalised to unit sum first."""

    def spectrum(maps: torch.Tensor) -> torch.Tensor:
        values = torch.linalg.eigvalsh(maps.double())[:, -count:]
        values = values / values.norm(dim=-1, keepdim=True)
        return values / values.abs().sum(dim=-1, keepdim=True)

    return (spectrum(proxy)[:, None] - spectrum(own)[None]).abs().sum(dim=-1).to(own)


def _assignment(cost: torch.Tensor) -> torch.Tensor:
    """The column of each row in the cheapest one-to-one assignment."""
    from scipy.optimize import linear_sum_assignment

    return torch.from_numpy(linear_sum_assignment(cost.cpu().double().numpy())[1])


def _low_rank(maps: torch.Tensor, spec: Pairing) -> torch.Tensor:
    """The strongest directions of symmetric maps (A, N, N), singular values stretched, diagonal 0."""
    values, vectors = torch.linalg.eigh(maps.double())
    values, vectors = values[:, -spec.rank :], vectors[:, :, -spec.rank :]
    if spec.stretch:
        low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
        values = (values - low) / (high - low).clamp(min=1e-12) * (1.5 * high - 0.5 * low) + 0.5 * low
    rebuilt = (vectors * values[:, None]) @ vectors.mT
    rebuilt.diagonal(dim1=1, dim2=2).zero_()
    return rebuilt.to(maps)
