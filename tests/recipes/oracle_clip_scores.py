"""Float64 readings of CLIP-only methods that end in scores: CLIPer, FALIP, clip_prs, CLIP Surgery.

Written from the papers' public code, sharing nothing with densevl; see `oracle_clip` for the conventions.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from oracle_clip import Trunk, on_grid, resize, soft, unit
from torch import Tensor

# --- CLIPer without diffusion ----------------------------------------------------------------------------------------


def cliper(t: Trunk, pixels: Tensor, shared: bool = True, half: bool = True) -> tuple[Tensor, Tensor]:
    """linsun449/cliper.code, `encode_image`: features (L, 1 + N, E), one per source, and the last map (heads, T, T).

    `shared`: the column and row divisions work in place on the summed maps, so source l gets l + 1 of them and the
    returned map L; false: one for all. `half`: the position table is rounded to fp16 even in an fp32 model.
    """
    xs, attentions = t.run_all(pixels, "bilinear-half" if half else "bilinear")
    last = t.layers - 1
    total, features = sum(attentions[:-1]), []
    for layer in range(t.layers):
        source = t.ln1(xs[layer], layer) if layer < last else xs[layer]
        swept = total / total.sum(-2, keepdim=True)
        swept = swept / swept.sum(-1, keepdim=True)
        total = swept if shared else total
        even = (swept + swept.transpose(1, 2)) / 2
        even = (even - even.mean(-2, keepdim=True)).clamp(min=0)
        even = even / even.sum(-1, keepdim=True)
        features.append(t.project(t.out(even @ t.qkv(t.ln1(source, last), last)[2], last)))
    return torch.stack(features), even


def cliper_scores(
    t: Trunk,
    pixels: Tensor,
    foreground: Tensor,
    background: Tensor,
    scale: float = 100.0,
    threshold: float = 0.1,
    crop: int = 0,
    select: int = -1,
    zeroed: bool = True,
    **compat: bool,
) -> Tensor:
    """linsun449/cliper.code, `CLIPer.forward`: `seg` (foreground, h, w), mean over sources plus the affinity term.

    `crop` > 0 mixes in windows (stride 112) half and half. `zeroed`: thresholding the selected source happens in a
    view, so that the mean over sources sees the thresholded map too.
    """
    texts = torch.cat([foreground, background, foreground.mean(0, keepdim=True)]).double()
    grid, p = t.grid(pixels), t.patch

    def logits(part: Tensor) -> tuple[Tensor, Tensor]:
        features, attention = cliper(t, part, **compat)
        values = scale * unit(features[:, 1:]) @ unit(texts).T
        return values.transpose(1, 2).unflatten(2, t.grid(part)), attention.mean(0)[1:, 1:]

    raw, affinity = logits(pixels)
    seg = raw.softmax(1)[:, : len(foreground)]
    if crop:
        height, width = pixels.shape[1:]
        pred, pred_count = torch.zeros_like(raw), torch.zeros(grid)
        maps = torch.zeros(*grid, *grid, dtype=torch.float64)
        map_count = torch.zeros(*grid, *grid)
        for i in range(max(height - crop + 111, 0) // 112 + 1):
            for j in range(max(width - crop + 111, 0) // 112 + 1):
                y2, x2 = min(i * 112 + crop, height), min(j * 112 + crop, width)
                y1, x1 = max(y2 - crop, 0), max(x2 - crop, 0)
                values, attention = logits(pixels[:, y1:y2, x1:x2])
                ys, zs = slice(y1 // p, y2 // p), slice(x1 // p, x2 // p)
                maps[ys, zs, ys, zs] += attention.reshape(*values.shape[2:], *values.shape[2:])
                map_count[ys, zs, ys, zs] += 1
                pred[:, :, ys, zs] += values
                pred_count[ys, zs] += 1
        maps = (maps / (map_count + 1e-5)).flatten(2).flatten(0, 1)
        maps = maps / maps.sum(-1, keepdim=True)
        windows = ((pred / pred_count).flatten(2) @ maps).unflatten(2, grid)
        seg = (seg + windows.softmax(1)[:, : len(foreground)]) / 2
    chosen = seg[select]
    kept = torch.where(chosen < threshold * chosen.amax((1, 2), keepdim=True), 0, chosen)
    if zeroed:
        seg[select] = kept
    return (kept.flatten(1) @ affinity).unflatten(1, grid) + seg.mean(0)


def cliper_labels(
    seg: Tensor, size: tuple[int, int], presence: float, pixel: float, normalise: bool
) -> tuple[Tensor, Tensor]:
    """CLIPer's decision without diffusion: class maps (C, H, W) and labels (H, W), 0 background, 1 + class.

    `presence`: score_threshold; `pixel`: bkg_thre; `normalise`: min-max each map after it was set to its score.
    """
    score = seg.amax((1, 2))
    maps = resize(seg, size)
    maps = maps / (maps.amax((1, 2), keepdim=True) + 1e-5) * score[:, None, None]
    if normalise:
        maps = maps - maps.amin((1, 2), keepdim=True)
        maps = maps / (maps.amax((1, 2), keepdim=True) + 1e-6)
    present = (score > presence)[:, None, None]
    if pixel > 0:
        maps = torch.where(maps < pixel, 0, maps) * present
        value, label = maps.max(0)
        return maps, torch.where(value == 0, 0, label + 1)
    maps = maps * present
    return maps, torch.cat([(1 - maps.amax(0, keepdim=True)) ** 2, maps]).argmax(0)


# --- FALIP -----------------------------------------------------------------------------------------------------------


def falip_bias(
    box: tuple[float, float, float, float], grid: tuple[int, int], patch: int, peak: float = 0.2, single: bool = True
) -> Tensor:
    """FALIP's additive logits of the CLS query, (1 + N,). `box` x0 y0 x1 y1 in pixels of the resized image.

    `single`: the min-max scaling in float32, which loses up to 5 % of the peak in boxes of a few patches.
    """
    real = np.float32 if single else np.float64
    x0, y0, x1, y1 = (
        max(math.ceil(min(c, s) / patch), 1) - 1
        for c, s in zip(box, (grid[1] * patch, grid[0] * patch) * 2, strict=True)
    )
    rows, columns = y1 - y0 + 1, x1 - x0 + 1
    cells = np.zeros((rows, columns), real)
    for r in range(rows):
        for c in range(columns):
            distance = math.hypot(r - (rows - 1) / 2, c - (columns - 1) / 2)
            cells[r, c] = math.exp(-0.5 * (distance / 100) ** 2)
    tiny, low, high = real(1e-6), cells.min(), cells.max()
    cells = (cells - low + tiny) / (high + tiny - low) * real(peak)
    bias = torch.zeros(grid, dtype=torch.float64)
    bias[y0 : y1 + 1, x0 : x1 + 1] = torch.from_numpy(cells).double()
    return torch.cat([torch.zeros(1, dtype=torch.float64), bias.flatten()])


def falip(t: Trunk, pixels: Tensor, box: tuple[float, float, float, float], blocks: int = 4, **keywords) -> Tensor:
    """pumpkin805/FALIP, `encode_image(image, mask)`: the CLS embedding (E,); the bias acts in the last `blocks`."""
    x = t.embed(pixels, "scale")
    bias = torch.zeros(len(x), len(x), dtype=torch.float64)
    bias[0] = falip_bias(box, t.grid(pixels), t.patch, **keywords)
    for layer in range(t.layers):
        x, _ = t.block(x, layer, bias if layer >= t.layers - blocks else 0.0)
    return t.project(x[:1])[0]


# --- clip_prs --------------------------------------------------------------------------------------------------------


def clip_prs(t: Trunk, pixels: Tensor, rule: str = "antialias") -> tuple[Tensor, Tensor, Tensor]:
    """yossigandelsman/clip_prs, `prs.finalize`: attention parts (L, 1 + N, heads, E), the rest (1 + L, E: the
    embedding, then each MLP), both divided by the norm of the CLS embedding, and that embedding (E,). All parts
    together sum to the unit embedding."""
    xs, attentions = t.run_all(pixels, rule)
    count = 2 * t.layers + 1
    parts, rest = [], [xs[0][0]]
    for layer, attention in enumerate(attentions):
        name = t.name(layer)
        v = t.qkv(t.ln1(xs[layer], layer), layer)[2]
        weight = t.w[name + "attn.out_proj.weight"].unflatten(1, (t.heads, -1))
        part = torch.einsum("hm,hmc,dhc->mhd", attention[:, 0], v, weight)
        part = part + t.w[name + "attn.out_proj.bias"] / (part.shape[0] * t.heads)
        parts.append(part)
        rest.append(xs[layer + 1][0] - xs[layer][0] - part.sum((0, 1)))
    parts, rest = torch.stack(parts), torch.stack(rest)
    cls = xs[-1][0]
    mean, deviation = cls.mean(), torch.sqrt(cls.var(unbiased=False) + 1e-5)
    embedding = t.project(cls[None])[0]

    def share(x: Tensor, pieces: int) -> Tensor:
        y = t.w["ln_post.weight"] * (x - mean / pieces) / deviation + t.w["ln_post.bias"] / pieces
        return y @ t.w["proj"] / embedding.norm()

    return share(parts, count * parts.shape[1] * t.heads), share(rest, count), embedding


def clip_prs_heat(t: Trunk, pixels: Tensor, text: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """clip_prs' heat per text, minus the mean over texts: (C, h, w), or for `size` resized, clipped at zero and
    min-max scaled, as the segmentation script does for the one class with the highest global score."""
    parts, _, _ = clip_prs(t, pixels)
    scores = parts[:, 1:].sum((0, 2)) @ text.double().T
    heat = on_grid(scores - scores.mean(1, keepdim=True), t.grid(pixels))
    if size is None:
        return heat
    heat = resize(heat, size).clamp(min=0)
    low, high = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
    return (heat - low) / (high - low)


# --- CLIP Surgery ----------------------------------------------------------------------------------------------------


def clip_surgery(t: Trunk, pixels: Tensor, rule: str = "bilinear", depth: int = 6) -> Tensor:
    """xmed-lab/CLIP_Surgery, `encode_image` of the CS- models: (1 + N, E), CLS from the ordinary path."""
    xs, _ = t.run_all(pixels, rule)
    new = xs[t.layers - depth]
    for layer in range(t.layers - depth, t.layers):
        v = t.qkv(t.ln1(xs[layer], layer), layer)[2]
        new = new + t.out(soft(v, v) @ v, layer)
    return t.project(torch.cat([xs[-1][:1], new[1:]]))


def feature_surgery(features: Tensor, text: Tensor, redundant: Tensor | None = None, heat: float = 2.0) -> Tensor:
    """CLIP Surgery's similarity (1 + N, C) from unit features (CLS first) and unit texts; `redundant` (1, E)."""
    features, text = features.double(), text.double()
    if redundant is not None:
        return features @ (text - redundant.double()).T
    weight = torch.softmax(heat * features[:1] @ text.T, -1)
    weighted = features @ text.T * (weight / weight.mean())
    return weighted - weighted.mean(1, keepdim=True)


def similarity_map(similarity: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """CLIP Surgery's picture of patch similarities (N, C): min-max per text, then bilinear, (C, H, W)."""
    low, high = similarity.amin(0), similarity.amax(0)
    return resize(on_grid((similarity - low) / (high - low), grid), size)
