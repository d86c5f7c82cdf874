"""Float64 readings of CLIP-only methods, written from the papers' public code and sharing nothing with densevl.

Every function takes a `Trunk` and one normalised image `pixels` (3, H, W). Feature tensors are before L2
normalisation, in the joint space, tokens in row-major order with the CLS row first where the method has one.
A keyword that names a quirk of the original code is faithful by default; its other value is the repaired behaviour.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from oracle import Oracle


class Trunk(Oracle):
    """An untouched CLIP ViT in float64, every intermediate within reach."""

    def __init__(self, state: dict[str, Tensor], heads: int | None = None) -> None:
        super().__init__(state, heads or state["visual.class_embedding"].shape[0] // 64)

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        return pixels.shape[1] // self.patch, pixels.shape[2] // self.patch

    def embed(self, pixels: Tensor, rule: str) -> Tensor:
        patches = F.conv2d(pixels[None].double(), self.w["conv1.weight"], stride=self.patch)[0].flatten(1).T
        tokens = torch.cat([self.w["class_embedding"][None], patches])
        return self.norm(tokens + self.table(self.grid(pixels), rule), "ln_pre")

    def name(self, layer: int) -> str:
        return f"transformer.resblocks.{layer % self.layers}."

    def ln1(self, x: Tensor, layer: int) -> Tensor:
        return self.norm(x, self.name(layer) + "ln_1")

    def qkv(self, u: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """u (T, D), after LN1, to three (heads, T, d)."""
        name = self.name(layer) + "attn.in_proj_"
        parts = (u @ self.w[name + "weight"].T + self.w[name + "bias"]).chunk(3, -1)
        q, k, v = (p.reshape(len(u), self.heads, -1).transpose(0, 1) for p in parts)
        return q, k, v

    def out(self, y: Tensor, layer: int) -> Tensor:
        """y (heads, T, d) to (T, D)."""
        name = self.name(layer) + "attn.out_proj."
        return y.transpose(0, 1).flatten(1) @ self.w[name + "weight"].T + self.w[name + "bias"]

    def block(self, x: Tensor, layer: int, bias: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
        """The native block: its output (T, D) and its attention (heads, T, T)."""
        q, k, v = self.qkv(self.ln1(x, layer), layer)
        attention = soft(q, k, bias)
        x = x + self.out(attention @ v, layer)
        return x + self.mlp(x, self.name(layer)), attention

    def run_all(self, pixels: Tensor, rule: str = "scale") -> tuple[list[Tensor], list[Tensor]]:
        """xs[l] is the residual stream after l blocks, attentions[l] the map of block l (0-based)."""
        xs, attentions = [self.embed(pixels, rule)], []
        for layer in range(self.layers):
            x, attention = self.block(xs[-1], layer)
            xs.append(x)
            attentions.append(attention)
        return xs, attentions

    def project(self, x: Tensor) -> Tensor:
        return self.norm(x, "ln_post") @ self.w["proj"]


def soft(a: Tensor, b: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    return torch.softmax(a @ b.transpose(-1, -2) / math.sqrt(a.shape[-1]) + bias, -1)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, h, w) to (C, *size), bilinear, align_corners false."""
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def on_grid(scores: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, C) to (C, h, w)."""
    return scores.T.reshape(-1, *grid)


# --- ITACLIP ---------------------------------------------------------------------------------------------------------


def pixelclip(t: Trunk, pixels: Tensor) -> Tensor:
    """hsshin98/PixelCLIP, dense features: values of the last block, the CLS token that enters it as residual, MLP."""
    x = t.run_all(pixels, "size")[0][-2]
    last = t.layers - 1
    y = t.out(t.qkv(t.ln1(x, last), last)[2], last) + x[:1]
    return t.project(y + t.mlp(y, t.name(last)))[1:]


def itaclip(t: Trunk, pixels: Tensor, self_attention: bool = True, layers: tuple[int, ...] = (7, 8, 10)) -> Tensor:
    """m-arda-aydn/ITACLIP, `visual.forward(return_all=True, attn_self=True)`: (1 + N, E).

    `layers` count from 1. With `self_attention` false every collected map is the ordinary softmax(q k^T).
    """
    xs, _ = t.run_all(pixels)

    def collected(layer: int) -> Tensor:
        q, k, _ = t.qkv(t.ln1(xs[layer], layer), layer)
        return soft(q, q) + soft(k, k) if self_attention else soft(q, k)

    last = t.layers - 1
    middle = sum(collected(n - 1) for n in layers) / len(layers)
    v = t.qkv(t.ln1(xs[last], last), last)[2]
    return t.project(xs[last] + t.out((0.5 * collected(last) + 0.5 * middle) @ v, last))


def itaclip_logits(t: Trunk, pixels: Tensor, text: Tensor, views: bool = True, alpha: float = 0.75) -> Tensor:
    """m-arda-aydn/ITACLIP, `forward_feature` of one window: cosines (C, H, W).

    Grey and blurred views are averaged with the image as unit features, the mean not normalised again; the two
    mirrored views are scored, resized, mirrored back, averaged, and mixed in with weight 1 - alpha.
    """
    pixels, size = pixels.double(), pixels.shape[1:]
    score = lambda f: resize(on_grid(f[1:] @ text.double().T, t.grid(pixels)), size)  # noqa: E731
    plain = unit(itaclip(t, pixels))
    if not views:
        return score(plain)
    grey = (0.2989 * pixels[0] + 0.587 * pixels[1] + 0.114 * pixels[2]).expand(3, -1, -1)
    line = torch.exp(-0.5 * (torch.linspace(-5, 5, 11, dtype=torch.float64) / 5) ** 2)
    line = line / line.sum()
    padded = F.pad(pixels[:, None], (5, 5, 5, 5), mode="reflect")
    blurred = F.conv2d(padded, (line[:, None] * line[None])[None, None])[:, 0]
    mean = (plain + unit(itaclip(t, grey)) + unit(itaclip(t, blurred))) / 3
    mirrored = sum(score(unit(itaclip(t, pixels.flip(axis)))).flip(axis) for axis in (1, 2)) / 2
    return alpha * score(mean) + (1 - alpha) * mirrored


def closing(labels: Tensor, uint8: bool = True) -> Tensor:
    """ITACLIP's last step: 3 x 3 grey closing of the label ids (H, W); `uint8`: ids wrap at 256 first."""
    ids = (labels % 256 if uint8 else labels).double()[None, None]
    grown = F.max_pool2d(ids, 3, 1, 1)
    return -F.max_pool2d(-grown, 3, 1, 1)[0, 0].long()


# --- CLIPtrase -------------------------------------------------------------------------------------------------------


def cliptrase(t: Trunk, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """leaves162/CLIPtrase, `encode_image`: tokens (1 + N, E), and the affinity of the last block but one
    (1 + N, 1 + N): cosines of queries, keys and values, averaged over the three and over heads."""
    xs, _ = t.run_all(pixels)
    last = t.layers - 1
    parts = t.qkv(t.ln1(xs[last], last), last)
    x = xs[last] + t.out(sum(soft(p, p) for p in parts) @ parts[2], last)
    tokens = t.project(x + t.mlp(x, t.name(last)))
    parts = t.qkv(t.ln1(xs[last - 1], last - 1), last - 1)
    cosines = [unit(p) @ unit(p).transpose(1, 2) for p in parts]
    return tokens, sum(cosines).mean(0) / 3


def density_clusters(rows: Tensor, eps: float, min_samples: int) -> Tensor:
    """DBSCAN, euclidean, on rows: labels (N,), -1 for noise; a border point joins the first cluster to reach it."""
    near = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") <= eps
    core = near.sum(1) >= min_samples
    labels = torch.full((len(rows),), -1)
    for start in range(len(rows)):
        if labels[start] >= 0 or not core[start]:
            continue
        label, stack = int(labels.max()) + 1, [start]
        while stack:
            i = stack.pop()
            if labels[i] < 0:
                labels[i] = label
                stack += near[i].nonzero()[:, 0].tolist() if core[i] else []
    return labels


def median7(plane: Tensor) -> Tensor:
    """7 x 7 median of (H, W), the border mirrored with the edge repeated."""
    padded = torch.from_numpy(np.pad(plane.numpy(), 3, mode="symmetric"))
    return padded.unfold(0, 7, 1).unfold(1, 7, 1).flatten(2).median(-1).values


def cliptrase_segments(
    t: Trunk,
    pixels: Tensor,
    text: Tensor,
    background: Tensor | None = None,
    eps: float = 0.7,
    min_samples: int = 3,
    scale: float = 100.0,
    cls_gate: bool = False,
) -> dict[str, Tensor]:
    """leaves162/CLIPtrase, body of `self_clip`: `logits` (Q, H, W), `clusters` (N,), `segments` and `prediction`
    (H, W) or no `segments` when DBSCAN finds only noise. `cls_gate`: the VOC20 product with the CLS logits.
    Background texts are appended; any of them is class C. Runs on squares only in the original (side `image_size`).
    """
    grid, size = t.grid(pixels), tuple(pixels.shape[1:])
    tokens, affinity = cliptrase(t, pixels)
    queries = text.double() if background is None else torch.cat([text, background]).double()
    logits = resize(on_grid(scale * unit(tokens[1:]) @ queries.T, grid), size)
    if cls_gate:
        logits = logits * (scale * unit(tokens[:1]) @ queries.T)[0][:, None, None]
    prediction = logits.argmax(0)
    if background is not None:
        prediction = prediction.clamp(max=len(text))
    rows = (affinity[1:, 1:] - affinity[:1, 1:]).clamp(min=0)
    clusters = density_clusters(rows, eps, min_samples)
    result = {"logits": logits, "clusters": clusters, "affinity": rows}
    if clusters.max() >= 0:
        maps = torch.stack([rows[clusters == c].mean(0) for c in range(int(clusters.max()) + 1)]).reshape(-1, *grid)
        maps = resize(maps, (4 * grid[0], 4 * grid[1]))
        segments = resize(torch.stack([median7(m) for m in maps]), size).argmax(0)
        for c in segments.unique():
            inside = segments == c
            values, counts = prediction[inside].unique(return_counts=True)
            prediction[inside] = values[counts == counts.max()].min()
        result["segments"] = segments
    return result | {"prediction": prediction}


# --- ResCLIP ---------------------------------------------------------------------------------------------------------


def pamr(image: Tensor, maps: Tensor, steps: int = 10, dilations: tuple[int, ...] = (8, 16)) -> Tensor:
    """PAMR of maps (C, H, W) guided by image (3, H, W); borders replicate; deviation over 9 samples per dilation."""
    height, width = image.shape[1:]

    def around(x: Tensor, centre: bool) -> Tensor:
        pads = [(F.pad(x[None], (d, d, d, d), mode="replicate")[0], d) for d in dilations]
        cells = [(i, j) for i in range(3) for j in range(3) if centre or (i, j) != (1, 1)]
        return torch.stack([p[:, i * d : i * d + height, j * d : j * d + width] for p, d in pads for i, j in cells])

    image, maps = image.double(), maps.double()
    deviation = around(image, True).std(0)
    weights = torch.softmax((-(image - around(image, False)).abs() / (1e-8 + 0.1 * deviation)).mean(1), 0)
    for _ in range(steps):
        maps = (weights[:, None] * around(maps, False)).sum(0)
    return maps


def patch_labels(t: Trunk, pixels: Tensor, tokens: Tensor, text: Tensor, scale: float, threshold: float) -> Tensor:
    """ResCLIP's first reading: label of each patch (h, w), the commonest (smallest if tied) of its pixels' labels."""
    cosines = resize(on_grid(unit(tokens[1:]) @ text.double().T, t.grid(pixels)), tuple(pixels.shape[1:]))
    probability, label = torch.softmax(scale * pamr(pixels, cosines), 0).max(0)
    label = torch.where(probability < threshold, 0, label)
    return label.unfold(0, t.patch, t.patch).unfold(1, t.patch, t.patch).flatten(2).mode(-1).values


def label_affinity(
    labels: Tensor, std: float = 5.0, paths: bool = True, short_paths: bool = True, smooth: str = "flat"
) -> Tensor:
    """ResCLIP's label term (1 + N, 1 + N) from patch labels (h, w); zero for CLS.

    `paths`: a pair whose straight line leaves the label is damped by exp(-chebyshev distance / largest).
    `short_paths`: as in the code, every line is sampled with the step of the longest one, so only its first
    distance/largest part is looked at. `smooth`: "flat" blurs along the flattened tokens, across row ends;
    "row" within the grid row; "plane" over rows and columns.
    """
    h, w = labels.shape
    cell = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), -1).reshape(-1, 2)
    start, end = cell[:, None].expand(-1, h * w, 2), cell[None].expand(h * w, -1, 2)
    same = (labels.flatten()[:, None] == labels.flatten()[None]).double()
    if paths:
        far = (end - start).abs().amax(-1)
        clear = torch.ones_like(far, dtype=torch.bool)
        for s, step in enumerate(torch.linspace(0, 1, int(far.max()) + 1)):
            at = step if short_paths else (s / far.clamp(min=1)).clamp(max=1)[..., None].float()
            here = (start * (1 - at) + end * at).round().long()
            clear &= (labels[here[..., 0], here[..., 1]] == labels.flatten()[:, None]) | (s > far)
        same = torch.where(clear, same, same * torch.exp(-far / far.max()))
    taps = min(h * w, int(6 * std + 1)) // 2 * 2 + 1
    kernel = torch.exp(-((torch.arange(taps) - taps // 2) ** 2) / (2 * std**2)).double()
    kernel = (kernel / kernel.sum()).reshape(1, 1, -1)
    blur = lambda x: F.conv1d(x.reshape(-1, 1, x.shape[-1]), kernel, padding=taps // 2).reshape(x.shape)  # noqa: E731
    if smooth == "flat":
        same = blur(same)
    else:
        same = blur(same.reshape(-1, h, w))
        same = (blur(same.transpose(1, 2)).transpose(1, 2) if smooth == "plane" else same).reshape(h * w, -1)
    return F.pad(same / (same.sum(1, keepdim=True) + 1e-8), (1, 0, 1, 0))


def resclip(
    t: Trunk,
    pixels: Tensor,
    base: str = "naclip",
    rcs: tuple[float, float] | None = (2.0, 0.3),
    sfr: tuple[float, float] | None = None,
    text: Tensor | None = None,
    threshold: float = 0.1,
    scale: float = 40.0,
    std: float = 5.0,
    half: bool = True,
    **affinity: object,
) -> Tensor:
    """yvhangyang/ResCLIP, `visual.forward(return_all=True)`: (1 + N, E), with (tau, lambda) of each of its two parts.

    `base`: naclip and clearclip without residual and MLP, sclip and vanilla with. `half`: the label term and its
    product with lambda are rounded to fp16. `affinity`: keywords of `label_affinity`; `sfr` needs `text` (unit rows).
    """
    xs, attentions = t.run_all(pixels)
    x, last = xs[-2], t.layers - 1
    q, k, v = t.qkv(t.ln1(x, last), last)
    cross = sum(attentions[5:9]) / 4
    h, w = t.grid(pixels)
    omega: Tensor | float = 0.0
    if base == "naclip":
        y, z = torch.arange(h * w) // w, torch.arange(h * w) % w
        squared = (y[:, None] - y) ** 2 + (z[:, None] - z) ** 2
        omega = F.pad(torch.exp(-squared.double() / (2 * std**2)), (1, 0, 1, 0))

    def read(label: Tensor | None) -> Tensor:
        def one(a: Tensor, b: Tensor) -> Tensor:
            logits = a @ b.transpose(1, 2) / math.sqrt(a.shape[-1])
            if label is not None:
                tau, mix = sfr
                term = label / label.max()
                term = (mix * term.half()).double() if half else mix * term
                logits = tau * ((1 - mix) * logits + term)
            return torch.softmax(logits + omega, -1)

        pairs = {"naclip": [(k, k)], "clearclip": [(q, q)], "sclip": [(q, q), (k, k)], "vanilla": [(q, k)]}[base]
        attention = sum(one(a, b) for a, b in pairs)
        if rcs is not None:
            attention = rcs[0] * ((1 - rcs[1]) * attention + rcs[1] * cross)
        y = t.out(attention @ v, last)
        if base in ("sclip", "vanilla"):
            y = x + y
            y = y + t.mlp(y, t.name(last))
        return t.project(y)

    if sfr is None:
        return read(None)
    labels = patch_labels(t, pixels, read(None), text, scale, threshold)
    return read(label_affinity(labels, std, **affinity))
