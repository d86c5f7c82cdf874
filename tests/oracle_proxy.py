"""Slow float64 readings of ProxyCLIP, FSA and CASS, from the papers' public code; they share nothing with densevl.

Input: a state dict in OpenAI naming (`visual.*`), normalised pixels (3, H, W), and the proxy's features as a tensor,
so no proxy model is needed. Output: patch features (N, joint) in row-major order, before L2 normalisation.
QuickGELU, LayerNorm eps 1e-5. A `compat` switch asks for the behaviour of the public code where it is a slip.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MINUS_INF = -math.inf


class Trunk:
    """The vision tower: `run` gives x^0 .. x^L (N+1, D), x^0 being the tokens after `ln_pre`."""

    def __init__(self, state: dict[str, Tensor], heads: int | None = None, positions: str = "scale") -> None:
        """`positions`: "scale" (bicubic, factor (n + 0.1) / n0, most repositories), "size" (bicubic to a size)."""
        self.w = {k.removeprefix("visual."): v.double() for k, v in state.items() if k.startswith("visual.")}
        self.width = self.w["class_embedding"].numel()
        self.heads = heads or self.width // 64
        self.patch = self.w["conv1.weight"].shape[-1]
        self.layers = len([k for k in self.w if k.endswith("attn.in_proj_weight")])
        self.positions = positions

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        return pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch

    def norm(self, x: Tensor, name: str) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-5) * self.w[name + ".weight"] + self.w[name + ".bias"]

    def linear(self, x: Tensor, name: str, rows: slice = slice(None), mark: str = ".") -> Tensor:
        return x @ self.w[name + mark + "weight"][rows].T + self.w[name + mark + "bias"][rows]

    def block_name(self, layer: int) -> str:
        return f"transformer.resblocks.{layer % self.layers}."

    def mlp(self, x: Tensor, layer: int) -> Tensor:
        b = self.block_name(layer)
        y = self.linear(self.norm(x, b + "ln_2"), b + "mlp.c_fc")
        return self.linear(y * torch.sigmoid(1.702 * y), b + "mlp.c_proj")

    def project(self, x: Tensor, layer: int, which: str) -> Tensor:
        """q, k or v of LN1(x): (n, D)."""
        b, part = self.block_name(layer), "qkv".index(which)
        rows = slice(part * self.width, (part + 1) * self.width)
        return self.linear(self.norm(x, b + "ln_1"), b + "attn.in_proj", rows, "_")

    def out(self, x: Tensor, layer: int) -> Tensor:
        return self.linear(x, self.block_name(layer) + "attn.out_proj")

    def block(self, x: Tensor, layer: int, allowed: Tensor | None = None) -> Tensor:
        """An untouched block; `allowed` (n, n) bool, True where row may look at column."""
        q, k, v = (self.split(self.project(x, layer, n)) for n in "qkv")
        rows = []
        for h in range(self.heads):
            logits = q[h] @ k[h].T / math.sqrt(q.shape[-1])
            if allowed is not None:
                logits = logits.masked_fill(~allowed, MINUS_INF)
            rows.append(torch.softmax(logits, -1) @ v[h])
        x = x + self.out(torch.cat(rows, 1), layer)
        return x + self.mlp(x, layer)

    def split(self, x: Tensor) -> Tensor:
        """(n, D) to (heads, n, D / heads)."""
        return x.reshape(len(x), self.heads, -1).transpose(0, 1)

    def read(self, x: Tensor) -> Tensor:
        return self.norm(x, "ln_post") @ self.w["proj"]

    def table(self, grid: tuple[int, int]) -> Tensor:
        table = self.w["positional_embedding"]
        side = math.isqrt(len(table) - 1)
        if grid == (side, side):
            return table
        image = table[1:].T.reshape(1, self.width, side, side)
        if self.positions == "scale":
            factor = tuple((n + 0.1) / side for n in grid)
            image = F.interpolate(image, scale_factor=factor, mode="bicubic")
        else:
            image = F.interpolate(image, size=grid, mode="bicubic")
        assert image.shape[-2:] == grid
        return torch.cat([table[:1], image[0].flatten(1).T])

    def embed(self, pixels: Tensor) -> Tensor:
        patches = F.conv2d(pixels.double()[None], self.w["conv1.weight"], stride=self.patch)[0]
        tokens = torch.cat([self.w["class_embedding"][None], patches.flatten(1).T])
        return self.norm(tokens + self.table(self.grid(pixels)), "ln_pre")

    def run(self, pixels: Tensor, last: int | None = None) -> list[Tensor]:
        stream = [self.embed(pixels)]
        for layer in range(self.layers if last is None else last):
            stream.append(self.block(stream[-1], layer))
        return stream


def unit(x: Tensor, dim: int = -1) -> Tensor:
    return x / x.norm(dim=dim, keepdim=True)


def resize(tokens: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(h*w, D) on `grid` to (h'*w', D) on `size`, bilinear, align_corners False."""
    image = tokens.T.reshape(1, -1, *grid)
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False)[0].flatten(1).T


def relative_map(proxy: Tensor, beta: float, gamma: float, mean: float | None = None) -> Tensor:
    """softmax(gamma (G - beta mean G)), entries below zero dropped; proxy (D, h, w) to (N, N)."""
    f = unit(proxy.double().flatten(1).T)
    g = f @ f.T
    g = gamma * (g - beta * (g.mean() if mean is None else mean))
    return torch.softmax(g.masked_fill(g < 0, MINUS_INF), -1)


def batch_mean(proxies: list[Tensor]) -> float:
    """The one mean of G that the public ProxyCLIP and Trident code uses for a whole batch (of windows)."""
    return float(torch.stack([(f := unit(p.double().flatten(1).T)) @ f.T for p in proxies]).mean())


def proxy_values(trunk: Trunk, x: Tensor, grid: tuple[int, int], size: tuple[int, int], compat: bool) -> Tensor:
    """Values of the last block for the patches of x^{L-1}, on the proxy's grid.

    compat: the public code folds the h*w values into a (w, h) map (harmless for squares, a scramble otherwise).
    """
    v = trunk.project(x, -1, "v")[1:]
    return resize(v, grid[::-1] if compat else grid, size)


def proxyclip_tokens(
    trunk: Trunk,
    pixels: Tensor,
    proxy: Tensor,
    beta: float = 1.2,
    gamma: float = 3.0,
    mean: float | None = None,
    compat: bool = False,
) -> Tensor:
    """ProxyCLIP's last-block output before LN_post: (hp*wp, D). No residual, no MLP, no CLS; one map for all heads."""
    x = trunk.run(pixels, trunk.layers - 1)[-1]
    v = proxy_values(trunk, x, trunk.grid(pixels), tuple(proxy.shape[1:]), compat)
    return trunk.out(relative_map(proxy, beta, gamma, mean) @ v, -1)


def proxyclip(state: dict, pixels: Tensor, proxy: Tensor, heads: int | None = None, **options) -> Tensor:
    """mc-lan/ProxyCLIP, `encode_image(img, external_feats, beta, gamma)`: (hp*wp, joint) on the proxy's grid."""
    trunk = Trunk(state, heads)
    return trunk.read(proxyclip_tokens(trunk, pixels, proxy, **options))


def fsa(
    state: dict,
    pixels: Tensor,
    proxy: Tensor,
    text: Tensor,
    heads: int | None = None,
    sharpness: float = 3.0,
    top_p: float = 0.45,
    beta: float = 1.2,
    gamma: float = 3.0,
    compat: bool = False,
) -> Tensor:
    """chi-chi-zx/FSA on ProxyCLIP: (hp*wp, joint). text: unit rows (C, joint).

    r = softmax over classes of (20 cos(first pass) - 35 cos(uniform attention)); s = 1 / (1 + max(0, KL(r_i || r_j)))
    with 1e-10 inside the logarithms; per row keep the sorted prefix of softmax(s) with cumulative sum <= p (and always
    the largest); A' = softmax(s exp(sharpness s)); values through (A'A + AA' + A') / 3.
    """
    trunk = Trunk(state, heads)
    x = trunk.run(pixels, trunk.layers - 1)[-1]
    v = proxy_values(trunk, x, trunk.grid(pixels), tuple(proxy.shape[1:]), compat)
    first = relative_map(proxy, beta, gamma)
    text = text.double()
    n = len(first)
    seen = 20 * unit(trunk.read(trunk.out(first @ v, -1))) @ text.T
    plain = 35 * unit(trunk.read(trunk.out(v.mean(0, keepdim=True).expand(n, -1), -1))) @ text.T
    r = torch.softmax(seen - plain, -1)
    logs = torch.log(r + 1e-10)
    second = torch.full((n, n), MINUS_INF, dtype=torch.float64)
    for i in range(n):
        divergence = (r[i] * (logs[i] - logs)).sum(1).clamp(min=0)
        s = 1 / (1 + divergence)
        order = torch.argsort(s, descending=True)
        kept = torch.cumsum(torch.softmax(s[order], 0), 0) <= top_p
        kept[0] = True
        keep = order[kept]
        second[i, keep] = s[keep] * torch.exp(sharpness * s[keep])
    second = torch.softmax(second, -1)
    return trunk.read(trunk.out((second @ first + first @ second + second) / 3 @ v, -1))


def value_range(source: Tensor, target: Tensor) -> Tensor:
    """Stretch `source` so that its smallest and largest entry are those of `target`."""
    low, high = target.min(), target.max()
    return (source - source.min()) / (source.max() - source.min()) * (high - low) + low


def gauss(grid: tuple[int, int], std: float) -> Tensor:
    """exp(-d^2 / 2 std^2) between all patches of a grid: (N, N), peak 1."""
    h, w = grid
    y, x = (t.flatten().double() for t in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    return torch.exp(-((y[:, None] - y) ** 2 + (x[:, None] - x) ** 2) / (2 * std**2))


def cass(
    state: dict,
    pixels: Tensor,
    keys: Tensor,
    heads: int | None = None,
    std: float = 5.0,
    eigen: int = 20,
    rank: int | None = None,
    energy: float = 0.95,
    stretch: bool = True,
    compat: bool = False,
    draw: bool = False,
) -> tuple[Tensor, Tensor]:
    """MICV-yonsei/CASS, "spectral": patch features (h*w, joint) and the CLS embedding (joint,), on CLIP's grid.

    keys: the proxy's last-block keys per head (heads, d, hp, wp), as many heads and channels as CLIP's.
    compat: the assignment's rows (proxy heads) and columns (CLIP heads) trade places when it is applied, and the rank
    is 10: the 95 % test of the public code compares the first 10 values with their own sum, so it always passes
    at the start. The public code draws its singular vectors at random (torch.svd_lowrank in float64, once per head in
    order, from the global seed): draw=True does the same, otherwise they are exact.
    """
    trunk = Trunk(state, heads)
    grid = trunk.grid(pixels)
    x = trunk.run(pixels, trunk.layers - 1)[-1]
    k, v = (trunk.split(trunk.project(x, -1, n)[1:]) for n in "kv")
    image = F.interpolate(keys.double(), size=grid, mode="bilinear", align_corners=False)
    proxy = value_range(image.flatten(2).transpose(1, 2), k)
    scale = k.shape[-1] ** -0.5
    own, other = (scale * t @ t.transpose(1, 2) for t in (k, proxy))
    spectra = []
    for stack in (other, own):
        values = torch.stack([torch.linalg.eigvalsh(m).flip(0)[:eigen] for m in stack])
        values = values / values.norm(dim=1, keepdim=True)
        spectra.append(values / values.abs().sum(1, keepdim=True))
    cost = torch.zeros(trunk.heads, trunk.heads)  # float32 as in the public code: exact ties of the total are common
    for i in range(trunk.heads):
        for j in range(trunk.heads):
            cost[i, j] = 1 - (spectra[0][i].sort()[0] - spectra[1][j].sort()[0]).abs().sum()
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(cost.numpy())
    outputs: list[Tensor | None] = [None] * trunk.heads
    for i, j in zip(rows, columns, strict=True):
        mine, theirs = (i, j) if compat else (j, i)  # head of CLIP, head of the proxy
        weight = 10 * (1 - cost[i, j])
        u, s, vt = torch.linalg.svd(other[theirs])
        share = torch.cumsum(s, 0) / s.sum()
        kept = rank or (10 if compat else int((share < energy).sum()) + 1)
        u, s, v_t = u[:, :kept], s[:kept], vt[:kept]
        if draw:
            u, s, basis = torch.svd_lowrank(other[theirs], q=kept)
            v_t = basis.T
        if stretch and kept > 1:
            span = 1.5 * s.max() - 0.5 * s.min()
            s = (s - s.min()) / (s.max() - s.min()) * span + 0.5 * s.min()
        low = (u * s) @ v_t
        low.fill_diagonal_(0)
        mixed = (weight * value_range(low, own[mine]) + own[mine]) / (weight + 1)
        outputs[mine] = torch.softmax(mixed + gauss(grid, std), -1) @ v[mine]
    tokens = trunk.out(torch.cat(outputs, 1), -1)  # type: ignore[arg-type]
    return trunk.read(tokens), trunk.read(trunk.block(x, -1)[:1])[0]


def cass_scores(
    features: Tensor, cls: Tensor, text: Tensor, mix: float = 0.25, move: float = 0.04, height: float = 0.09
) -> Tensor:
    """CASS's scores (N, C): (1 - mix) patch cosine with moved texts + mix CLS cosine with the given ones.

    In each Ward cluster of texts (cosine distances, cut at `height`) the text nearest to the image's CLS moves by
    `move` towards the mean of its two nearest patches.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    f, text = unit(features), text.double()
    glob = unit(cls) @ text.T
    table = (1 - unit(text) @ unit(text).T).clamp(min=0).numpy().copy()
    for i in range(len(table)):
        table[i, i] = 0
    labels = fcluster(linkage(squareform((table + table.T) / 2), method="ward"), t=height, criterion="distance")
    moved = text.clone()
    for label in sorted(set(labels)):
        members = [i for i in range(len(text)) if labels[i] == label]
        chosen = max(members, key=lambda i: float(glob[i]))
        nearest = (f @ unit(text[chosen])).topk(min(2, len(f))).indices
        moved[chosen] = unit((1 - move) * unit(text[chosen]) + move * unit(f[nearest].mean(0)))
    return (1 - mix) * f @ moved.T + mix * glob
