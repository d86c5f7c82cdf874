"""Slow float64 readings of CorrCLIP, TextRegion, Trident and OV-Stitcher from public code (see oracle_proxy)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from oracle_proxy import MINUS_INF, Trunk, batch_mean, proxyclip_tokens, resize, unit


def nearest(ids: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest resize of an integer map (H, W), in float32 as the public code does (source index floor(i * H / h))."""
    return F.interpolate(ids.float()[None, None], size=size, mode="nearest")[0, 0].to(ids.dtype)


def merge_regions(ids: Tensor, features: Tensor, eps: float = 0.2, blank: int | None = 0) -> Tensor:
    """CorrCLIP's merge: regions (h, w) whose mean unit features have (largest cosine - cosine) <= eps, linked
    transitively (DBSCAN with min_samples 1). `blank` pixels stay; None: every pixel belongs to a region."""
    regions = [r for r in sorted(set(ids.flatten().tolist())) if r != blank]
    if len(regions) < 2:
        return ids
    f = features.reshape(*ids.shape, -1)
    means = unit(torch.stack([f[ids == r].mean(0) for r in regions]))
    cosine = means @ means.T
    near = (cosine.max() - cosine) <= eps
    cluster = list(range(len(regions)))
    for i in range(len(regions)):
        for j in range(len(regions)):
            if near[i, j] and cluster[i] != cluster[j]:
                old, new = max(cluster[i], cluster[j]), min(cluster[i], cluster[j])
                cluster = [new if c == old else c for c in cluster]
    merged = ids.clone()
    for region, c in zip(regions, cluster, strict=True):
        merged[ids == region] = 10000 + c
    return merged


def scope(cosine: Tensor, ids: Tensor, blank: int | None) -> Tensor:
    """(N, N) bool: same region, or one of the two unsegmented and the cosine above the mean of all pairs."""
    flat = ids.flatten()
    same = flat[:, None] == flat[None]
    if blank is None:
        return same
    free = flat == blank
    loose = (free[:, None] | free[None]) & (cosine > cosine.mean())
    return (same & ~free[:, None]) | loose


def corrclip(
    state: dict,
    pixels: Tensor,
    proxy: Tensor,
    ids: Tensor,
    heads: int | None = None,
    weights: tuple[float, float] = (1.0, 0.5),
    spatial: tuple[int, int] | None = None,
    temperature: float = 4.0,
    eps: float | None = 0.2,
    factor: int | None = None,
    blank: int | None = 0,
    compat: bool = False,
) -> Tensor:
    """zdk258/CorrCLIP v1: (hp*wp, joint) on the proxy's grid.

    proxy: q + k of the proxy's last block (D, hp, wp); ids: integer region map (H, W), `blank` where unsegmented.
    spatial: first and last x^l (1-based) whose mean feeds the spatial branch; default L-6..L-2 for 12 blocks,
    L-13..L-2 for 24, L-29..L-2 for 32, else 3..L-2.
    factor: v2 works on a grid so many times as fine as the tower's. eps: None does not merge regions.
    compat: the smallest id present counts as unsegmented, whatever it is.
    """
    trunk = Trunk(state, heads)
    depth = trunk.layers
    count = {12: 5, 24: 12, 32: 28}.get(depth, depth - 4)
    first, last = spatial or (depth - 1 - count, depth - 2)
    grid, size = trunk.grid(pixels), (int(proxy.shape[1]), int(proxy.shape[2]))
    f = proxy.double().flatten(1).T
    if factor:
        f, size = resize(f, size, (grid[0] * factor, grid[1] * factor)), (grid[0] * factor, grid[1] * factor)
    f = unit(f)
    cosine = f @ f.T
    ids = nearest(ids, size)
    blank = int(ids.min()) if compat else blank
    merged = ids if eps is None else merge_regions(ids, f, eps, blank)
    a = torch.softmax((temperature * cosine).masked_fill(~scope(cosine, merged, blank), MINUS_INF), -1)

    coarse = nearest(merged, grid).flatten()
    regions = sorted(set(coarse.tolist()))
    r, n = len(regions), len(coarse)
    x = trunk.embed(pixels)
    x = torch.cat([x[:1].expand(r, -1), x])
    allowed = torch.zeros(r + 1 + n, r + 1 + n, dtype=torch.bool)
    allowed[r:, r:] = True
    allowed[:r, r] = True
    for row, region in enumerate(regions):
        allowed[row, r + 1 :] = coarse == region
    stream = [x]
    for layer in range(depth):
        stream.append(trunk.block(stream[-1], layer, allowed))
    painted = torch.zeros(n, trunk.width, dtype=torch.float64)
    for row, region in enumerate(regions):
        painted[coarse == region] = stream[-1][row]
    index = nearest(torch.arange(n).reshape(grid), size).flatten()
    total = weights[1] * trunk.norm(painted[index], "ln_post")
    middle = torch.stack([stream[level][r:] for level in range(first, last + 1)]).mean(0)
    for weight, source in ((1.0, stream[depth - 1][r:]), (weights[0], middle)):
        v = resize(trunk.project(source, -1, "v")[1:], grid, size)
        total = total + weight * trunk.norm(trunk.out(a @ v, -1), "ln_post")
    return total @ trunk.w["proj"]


def vote(labels: Tensor, ids: Tensor, blank: int | None = 0) -> Tensor:
    """Majority label inside every region of `ids` (both (H, W)); ties to the smallest label; `blank` pixels stay."""
    voted = labels.clone()
    for region in sorted(set(ids.flatten().tolist())):
        if region != blank:
            inside = ids == region
            voted[inside] = torch.bincount(labels[inside].flatten()).argmax()
    return voted


def textregion(
    state: dict,
    whole: Tensor | None,
    tiles: list[list[Tensor]],
    masks: Tensor,
    heads: int | None = None,
    threshold: float | None = 0.07,
    compat: bool = False,
) -> tuple[Tensor, Tensor]:
    """avaxiao/TextRegion: region features (R', joint) before normalisation, and which masks were kept (R,) bool.

    whole: the image at the model's size; tiles[y][x]: crops at the same size; masks (R, H, W) in [0, 1].
    Values of the whole image are stretched over the tile grid (bilinear) and the tiles' are added; masks shrink to
    that grid (bilinear, no antialias). A patch is global when (mean over its own regions - mean over the other
    regions) of its mean cosine with the region's patches is under `threshold`; it leaves every mask.
    Region = O(mask v) + MLP(LN2 .), LN_post, projection; the sum over the mask is not divided by its area.
    compat: with tiles and a threshold, the public code normalises the values in place (through a view), so the region
    sums unit-length value vectors.
    """
    trunk = Trunk(state, heads)

    def values(pixels: Tensor) -> Tensor:
        return trunk.project(trunk.run(pixels, trunk.layers - 1)[-1], -1, "v")[1:]

    cell = trunk.grid(tiles[0][0] if tiles else whole)
    size = (cell[0] * len(tiles), cell[1] * len(tiles[0])) if tiles else cell
    total = torch.zeros(*size, trunk.width, dtype=torch.float64)
    if whole is not None:
        total += resize(values(whole), trunk.grid(whole), size).reshape(*size, -1)
    for y, row in enumerate(tiles):
        for x, tile in enumerate(row):
            here = slice(y * cell[0], (y + 1) * cell[0]), slice(x * cell[1], (x + 1) * cell[1])
            total[here] += values(tile).reshape(*cell, -1)
    v = total.flatten(0, 1)
    small = F.interpolate(masks.double()[None], size=size, mode="bilinear", align_corners=False)[0].flatten(1)
    small = small.clamp(0, 1)
    kept = small.sum(1) > 0
    small = small[kept]
    if threshold is not None:
        cosine = unit(v) @ unit(v).T
        inside = (small > 0).double()
        belongs = cosine @ inside.T / inside.sum(1)
        own = (belongs * inside.T).sum(1) / (inside.sum(0) + 1e-9)
        other = (belongs * (1 - inside).T).sum(1) / ((1 - inside).sum(0) + 1e-9)
        small = small.clone()
        small[:, own - other < threshold] = 0
        if compat and tiles:
            v = unit(v)
    alive = small.sum(1) > 0
    kept[kept.clone()] = alive
    y = trunk.out(small[alive] @ v, -1)
    return trunk.read(y + trunk.mlp(y, -1)), kept


def textregion_scores(features: Tensor, masks: Tensor, text: Tensor, scale: float = 50.0) -> Tensor:
    """Probabilities (C, H, W): softmax over classes of scale * sum over masks of mask * cosine (overlaps add)."""
    cosine = unit(features) @ text.double().T
    return torch.softmax(scale * torch.einsum("rc,rhw->chw", cosine, masks.double().clamp(0, 1)), 0)


def stitch(parts: list[Tensor], places: list[tuple[int, int]], whole: tuple[int, int]) -> Tensor:
    """Mean of overlapping maps (D, h, w) at (top, left) on a `whole` grid: (D, H, W)."""
    total = torch.zeros(parts[0].shape[0], *whole, dtype=torch.float64)
    count = torch.zeros(whole, dtype=torch.float64)
    for part, (top, left) in zip(parts, places, strict=True):
        here = slice(top, top + part.shape[1]), slice(left, left + part.shape[2])
        total[:, here[0], here[1]] += part.double()
        count[here] += 1
    return total / count


def sam_map(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, valid: tuple[int, int], factor: float, raise_negative: bool = False
) -> Tensor:
    """Trident's global map (n, n) over the valid corner of SAM's grid.

    q, k, v (heads, G, G, d) of the last block on the padded grid, bias (heads, G*G, G*G) the relative-position logits
    (unscaled, added to q k / sqrt d). Softmax over the WHOLE grid, then cut to the corner. Entries survive where the
    cosine of v of their head exceeds min(0.9, factor * mean over heads and columns); mean over heads; rows sum to 1.
    """
    side = q.shape[1]
    flat = [t.double().flatten(1, 2) for t in (q, k)]
    attention = torch.softmax(flat[0] @ flat[1].transpose(1, 2) * q.shape[-1] ** -0.5 + bias.double(), -1)
    corner = (torch.arange(valid[0])[:, None] * side + torch.arange(valid[1])).flatten()
    attention = attention[:, corner][:, :, corner]
    unit_v = unit(v.double().flatten(1, 2)[:, corner])
    cosine = unit_v @ unit_v.transpose(1, 2)
    limit = factor * cosine.mean((0, 2))[:, None]
    if raise_negative:
        limit = torch.where(limit < 0, 0.6, limit)
    limit = limit.clamp(max=0.9)
    kept = torch.where(cosine > limit, attention, 0.0).mean(0)
    return kept / kept.sum(1, keepdim=True)


def trident(
    state: dict,
    windows: list[Tensor],
    places: list[tuple[int, int]],
    whole: tuple[int, int],
    proxies: list[Tensor],
    sam: Tensor,
    valid: tuple[int, int],
    heads: int | None = None,
    compat: bool = False,
) -> Tensor:
    """YuHengsss/Trident without SAM refinement: (valid h * valid w, joint).

    windows (3, c, c) with their (top, left) in patches, `whole` the image in patches, proxies (D, hp, wp) per window,
    sam: `sam_map`. ProxyCLIP outputs (after the out-projection) are averaged on the whole grid, times round(hp / h)
    when the proxy's grid is finer, resized to the valid grid, multiplied by `sam`, then LN_post and projection.
    compat: one mean of G for all windows, and the swapped fold of values.
    """
    trunk = Trunk(state, heads)
    mean = batch_mean(proxies) if compat else None
    parts, ratio = [], 1
    for window, proxy in zip(windows, proxies, strict=True):
        grid, size = trunk.grid(window), (int(proxy.shape[1]), int(proxy.shape[2]))
        y = proxyclip_tokens(trunk, window, proxy, mean=mean, compat=compat)
        ratio = size[1] // grid[1] if size[1] % grid[1] == 0 else round(size[0] / grid[0])
        target = (grid[0] * ratio, grid[1] * ratio)
        y = y if size == target else resize(y, size, target)
        parts.append(y.T.reshape(-1, *target))
    fine = whole[0] * ratio, whole[1] * ratio
    spliced = stitch(parts, [(top * ratio, left * ratio) for top, left in places], fine)
    return trunk.read(sam @ resize(spliced.flatten(1).T, fine, valid))


def ov_stitcher(
    state: dict,
    windows: list[Tensor],
    places: list[tuple[int, int]],
    whole: tuple[int, int],
    attention: Tensor,
    heads: int | None = None,
) -> Tensor:
    """OV-Stitcher's CLIP side (paper; no public code): values of x^{L-1} of all windows stitched, one attention map.

    places and `whole` in patches; attention (N, N) on the whole grid, rows sum to 1 (e.g. `stitched_attention`).
    """
    trunk = Trunk(state, heads)
    parts = []
    for window in windows:
        v = trunk.project(trunk.run(window, trunk.layers - 1)[-1], -1, "v")[1:]
        parts.append(v.T.reshape(-1, *trunk.grid(window)))
    v = stitch(parts, places, whole).flatten(1).T
    return trunk.read(trunk.out(attention.double() @ v, -1))
