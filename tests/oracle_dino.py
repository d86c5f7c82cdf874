"""A slow float64 reading of DINO's ViT (facebookresearch/dino, the names of timm), to feed the proxy oracles."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
F64 = torch.float64


def renormalise(pixels: Tensor) -> Tensor:
    """CLIP-normalised pixels (3, H, W) to ImageNet statistics, as ProxyCLIP, Trident and CorrCLIP do."""
    (m, s), (mean, std) = ([torch.tensor(v, dtype=F64).view(3, 1, 1) for v in pair] for pair in (CLIP, IMAGENET))
    return (pixels.double() * s + m - mean) / std


def linear(w: dict[str, Tensor], x: Tensor, name: str) -> Tensor:
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def norm(w: dict[str, Tensor], x: Tensor, name: str, eps: float) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * w[name + ".weight"] + w[name + ".bias"]


def table(positions: Tensor, grid: tuple[int, int], rule: str = "scale") -> Tensor:
    """(1 + h*w, D). "scale": DINO's own rule (bicubic, factor (n + 0.1) / n0); "size_antialias": timm's."""
    side = math.isqrt(len(positions) - 1)
    if grid == (side, side):
        return positions
    image = positions[1:].T.reshape(1, -1, side, side)
    if rule == "scale":
        image = F.interpolate(image, scale_factor=tuple((n + 0.1) / side for n in grid), mode="bicubic")
    else:
        image = F.interpolate(image, size=grid, mode="bicubic", antialias=True)
    return torch.cat([positions[:1], image[0].flatten(1).T])


def dino(
    state: dict, pixels: Tensor, heads: int = 3, eps: float = 1e-6, rule: str = "scale"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ImageNet-normalised pixels to (x (1+N, D) after the final norm, q, k, v (heads, 1+N, d) of the last block)."""
    w = {n: t.double() for n, t in state.items()}
    filters = w["patch_embed.proj.weight"]
    patches = F.conv2d(pixels.double()[None], filters, w["patch_embed.proj.bias"], stride=filters.shape[-1])[0]
    grid = int(patches.shape[1]), int(patches.shape[2])
    x = torch.cat([w["cls_token"][0], patches.flatten(1).T]) + table(w["pos_embed"][0], grid, rule)
    q = k = v = x
    for layer in range(len([n for n in w if n.endswith("attn.qkv.weight")])):
        b = f"blocks.{layer}."
        u = linear(w, norm(w, x, b + "norm1", eps), b + "attn.qkv")
        q, k, v = u.reshape(len(x), 3, heads, -1).permute(1, 2, 0, 3)
        x = after_attention(w, b, x, stitched_attention(q, k, v), eps)
    return norm(w, x, "norm", eps), q, k, v


def patch_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (1+N, D), or heads (heads, 1+N, d), CLS first, to (D, h, w), or (heads, d, h, w)."""
    image = tokens[..., 1:, :].transpose(-1, -2)
    return image.reshape(*image.shape[:-1], *grid)


def after_attention(w: dict[str, Tensor], b: str, x: Tensor, attended: Tensor, eps: float) -> Tensor:
    x = x + linear(w, attended, b + "attn.proj")
    return x + linear(w, F.gelu(linear(w, norm(w, x, b + "norm2", eps), b + "mlp.fc1")), b + "mlp.fc2")


def stitched_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k) v for q, k, v (heads, N, d), of one image or stitched from windows: (N, D)."""
    a = torch.softmax(q.double() @ k.double().transpose(1, 2) / math.sqrt(q.shape[-1]), -1)
    return (a @ v.double()).transpose(0, 1).flatten(1)


def dino_tail(state: dict, x: Tensor, q: Tensor, k: Tensor, v: Tensor, eps: float = 1e-6) -> Tensor:
    """The rest of the last block on (stitched) tokens x (N, D) and q, k, v: residual, MLP, final norm: (N, D)."""
    w = {n: t.double() for n, t in state.items()}
    last = max(int(n.split(".")[1]) for n in w if n.startswith("blocks."))
    return norm(w, after_attention(w, f"blocks.{last}.", x.double(), stitched_attention(q, k, v), eps), "norm", eps)
