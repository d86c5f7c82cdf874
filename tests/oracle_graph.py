"""Slow float64 readings of CLIP-DINOiser, LPOSS, DeCLIP and RADSeg from the papers' public code (see oracle_proxy)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from oracle_proxy import MINUS_INF, Trunk, resize, unit


def maskclip(trunk: Trunk, x: Tensor) -> Tensor:
    """MaskCLIP with residual and MLP, before LN_post: v' = O(v) + x, v' + MLP(LN2 v'); CLS first."""
    y = trunk.out(trunk.project(x, -1, "v"), -1) + x
    return y + trunk.mlp(y, -1)


def pool(features: Tensor, proxy: Tensor, gamma: float, grid: tuple[int, int]) -> Tensor:
    """Rows of cos(proxy) below gamma set to zero, over their sum + 1e-6, times the features on the proxy's grid."""
    size = (int(proxy.shape[1]), int(proxy.shape[2]))
    if size != grid:
        features = resize(features, grid, size)
    f = unit(proxy.double().flatten(1).T)
    g = f @ f.T
    g = g.masked_fill(g < gamma, 0)
    return g @ features / (g.sum(1, keepdim=True) + 1e-6)


def dino_clip(state: dict, pixels: Tensor, proxy: Tensor, gamma: float = 0.2, heads: int | None = None) -> Tensor:
    """wysoczanska/clip_dinoiser, class DinoCLIP without FOUND: (hp*wp, joint). proxy: last-block values (or keys)."""
    trunk = Trunk(state, heads, "size")
    features = trunk.read(maskclip(trunk, trunk.run(pixels, trunk.layers - 1)[-1])[1:])
    return pool(features, proxy, gamma, trunk.grid(pixels))


def clip_dinoiser(
    state: dict, pixels: Tensor, convolutions: dict[str, Tensor], gamma: float = 0.2, tap: int = -3, heads=None
) -> tuple[Tensor, Tensor]:
    """CLIP_DINOiser: features (h*w, joint) and the foreground logit (h*w,).

    convolutions: `obj_proj.{weight,bias}` (256, D, 3, 3), (256,) and `bkg_decoder.{weight,bias}` (1, D, 1, 1), (1,).
    Both read LN2(x + attention) inside block `tap`; obj_proj pads by repeating the border, bkg_decoder sees unit
    vectors.
    """
    trunk = Trunk(state, heads, "size")
    grid = trunk.grid(pixels)
    stream = trunk.run(pixels, trunk.layers - 1)
    layer = tap % trunk.layers
    before = stream[layer]
    q, k, v = (trunk.split(trunk.project(before, layer, n)) for n in "qkv")
    attended = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), -1) @ v
    inner = before + trunk.out(attended.transpose(0, 1).flatten(1), layer)
    tapped = trunk.norm(inner, trunk.block_name(layer) + "ln_2")[1:].T.reshape(1, trunk.width, *grid)
    w = {n: t.double() for n, t in convolutions.items()}
    border = w["obj_proj.weight"].shape[-1] // 2
    padded = F.pad(tapped, (border,) * 4, mode="replicate")
    proxy = F.conv2d(padded, w["obj_proj.weight"], w["obj_proj.bias"])[0]
    front = F.conv2d(unit(tapped, 1), w["bkg_decoder.weight"], w["bkg_decoder.bias"]).flatten()
    features = trunk.read(maskclip(trunk, stream[-1])[1:])
    return pool(features, proxy, gamma, grid), front


def dinoiser_scores(features: Tensor, text: Tensor, front: Tensor | None = None, delta: float = 0.99) -> Tensor:
    """Probabilities (N, C): softmax of 100 cosines; where the largest is under delta and sigmoid(front) <= 0.5,
    class 0 becomes 1 (the others stay)."""
    p = torch.softmax(100 * unit(features) @ text.double().T, -1)
    if front is not None:
        p[(p.max(1).values < delta) & (torch.sigmoid(front) <= 0.5), 0] = 1
    return p


def lposs_matrix(
    proxy: Tensor, places: Tensor, k: int = 400, gamma: float = 3.0, sigma: float = 0.01, power: float = 1.0
) -> Tensor:
    """Normalised graph (N, N): k largest cosines per row (itself included), max(0, cos)^gamma exp(-sigma d^power),
    W + W^T, zero diagonal, D^-1/2 W D^-1/2. proxy (N, D), places (N, 2) patch centres in pixels of the image."""
    f = unit(proxy.double())
    cosine = f @ f.T
    n = len(f)
    w = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in cosine[i].topk(min(k, n)).indices.tolist():
            d = float((places[i].double() - places[j].double()).norm())
            w[i, j] = max(0.0, float(cosine[i, j])) ** gamma * math.exp(-sigma * d**power)
    w = w + w.T
    w.fill_diagonal_(0)
    degree = w.sum(1)
    degree[degree == 0] = 1
    return w / torch.sqrt(degree[:, None] * degree[None])


def centres(grid: tuple[int, int], patch: int, origin: tuple[int, int] = (0, 0)) -> Tensor:
    """(h*w, 2) patch centres (y, x): origin + patch // 2 + index * patch."""
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.stack([y.flatten(), x.flatten()], 1) * patch + patch // 2 + torch.tensor(origin)


def conjugate_gradient(a: Tensor, b: Tensor, steps: int | None = 10, tolerance: float = 1e-6) -> Tensor:
    """Plain CG from zero, one right-hand side; stops after `steps` or at |r| <= tolerance |b|. steps None: solve."""
    if steps is None:
        return torch.linalg.solve(a, b)
    x, r = torch.zeros_like(b), b.clone()
    if b.norm() == 0:
        return x
    p, rho = r.clone(), r @ r
    for _ in range(steps):
        q = a @ p
        step = rho / (p @ q)
        x, r = x + step * p, r - step * q
        if r.norm() <= tolerance * b.norm():
            break
        rho, old = r @ r, rho
        p = r + rho / old * p
    return x


def lposs(
    features: Tensor, text: Tensor, proxy: Tensor, places: Tensor, alpha: float = 0.95, steps: int | None = 10, **graph
) -> Tensor:
    """vladan-stojnic/LPOSS at patch level: scores (N, C), not normalised.

    features (N, joint): MaskCLIP features (residual and MLP kept, positions "size"), all windows one after another,
    on the proxy's grid; text unit rows. (I - alpha S) Z = cosines by CG of at most 10 steps per class.
    """
    s = lposs_matrix(proxy, places, **graph)
    a = torch.eye(len(s), dtype=torch.float64) - alpha * s
    y = unit(features.double()) @ text.double().T
    return torch.stack([conjugate_gradient(a, column, steps) for column in y.T], 1)


def declip(state: dict, pixels: Tensor, mode: str = "qq", heads: int | None = None) -> Tensor:
    """xiaomoguhz/DeCLIP on an OpenAI-style ViT (`encode_dense`), before its normalisation: (h*w, joint).

    Fine-tuned weights, ordinary names; inference is the self-self last block without residual and MLP (CLS among the
    keys), positions bicubic to a size. mode: qq, kk, csa (qq + kk, rows sum to 2), maskclip (residual and MLP kept).
    """
    trunk = Trunk(state, heads, "size")
    x = trunk.run(pixels, trunk.layers - 1)[-1]
    q, k, v = (trunk.split(trunk.project(x, -1, n)) for n in "qkv")
    if mode == "maskclip":
        y = x + trunk.out(trunk.project(x, -1, "v"), -1)
        return trunk.read(y + trunk.mlp(y, -1))[1:]
    chosen = {"qq": [q], "kk": [k], "csa": [q, k]}[mode]
    maps = [torch.softmax(t @ t.transpose(1, 2) / math.sqrt(q.shape[-1]), -1) for t in chosen]
    return trunk.read(trunk.out((sum(maps) @ v).transpose(0, 1).flatten(1), -1))[1:]


def recursive_block(trunk: Trunk, x: Tensor, layer: int = -1, scale: float = 10.0) -> Tensor:
    """RADSeg's last block on any tower: o = O(softmax(qk) v) cut in heads again, A = softmax(scale cos(o), negatives
    dropped), x + O(A v), then the MLP; CLS (and registers) take part as rows and columns."""
    q, k, v = (trunk.split(trunk.project(x, layer, n)) for n in "qkv")
    a = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), -1)
    o = unit(trunk.split(trunk.out((a @ v).transpose(0, 1).flatten(1), layer)))
    cosine = scale * o @ o.transpose(1, 2)
    a = torch.softmax(cosine.masked_fill(cosine < 0, MINUS_INF), -1)
    x = x + trunk.out((a @ v).transpose(0, 1).flatten(1), layer)
    return x + trunk.mlp(x, layer)


def global_aggregation(features: Tensor, scale: float = 10.0) -> Tensor:
    """RADSeg's step on the stitched map (N, D): softmax(scale (G - mean G), negatives dropped) times the features."""
    f = unit(features.double())
    g = f @ f.T
    g = scale * (g - g.mean())
    return torch.softmax(g.masked_fill(g < 0, MINUS_INF), -1) @ features.double()
