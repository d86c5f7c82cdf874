"""The reference times of a run: bare passes of the tower, and only its matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from densevl.backbones import Backbone
from densevl.errors import ModelError
from densevl.kernels.linear import linear


def bare_pass(backbone: Backbone, batch: int) -> Callable[[], Any]:
    """The library's own image pass at its trained size, which a fork of CLIP cannot avoid."""
    pixels = torch.randn(batch, 3, *trained_size(backbone), device=backbone.device)
    return lambda: backbone.encode_image(pixels)


def products(backbone: Backbone, batch: int) -> Callable[[], Any]:
    """Only the matrix products of such a pass, in float32, by the library that is faster here.

    They are patch embedding, projections, both products of attention, MLPs and read-out, without norms, softmax,
    activations or sums.

    Raises:
        ModelError: the tower has no attention blocks.
    """
    tower: Any = getattr(backbone, "tower", None)
    if tower is None or not tower.depth:
        raise ModelError(f"model '{backbone.name}' has no attention blocks whose products could be counted")
    height, width = (side // tower.patch_size for side in tower.image_size)
    patches = height * width
    tokens, device = patches + tower.prefix, backbone.device
    pairs = []
    heads = 1
    for index in range(tower.depth):
        view = tower.view(index, (height, width))
        heads = view.heads
        for weight in _matrices(view):
            pairs.append((torch.randn(batch * tokens, weight.shape[1], device=device), weight.float()))
    width = pairs[0][0].shape[1]
    patch = 3 * tower.patch_size**2
    pairs.append((torch.randn(batch * patches, patch, device=device), torch.randn(width, patch, device=device)))
    pairs.append((torch.randn(batch, width, device=device), torch.randn(tower.embed_dim, width, device=device)))
    q, k, v = (torch.randn(batch * heads, tokens, width // heads, device=device) for _ in range(3))
    scores, mixed = torch.empty(batch * heads, tokens, tokens, device=device), torch.empty_like(v)

    def run() -> None:
        for x, weight in pairs:
            linear(x, weight)
        for _ in range(tower.depth):
            torch.bmm(q, k.mT, out=scores)
            torch.bmm(scores, v, out=mixed)

    return torch.no_grad()(run)


def trained_size(backbone: Backbone) -> tuple[int, int]:
    """(H, W) of the library's own pass.

    Raises:
        ModelError: it has no tower with a size of its own.
    """
    tower: Any = getattr(backbone, "tower", None)
    if tower is None:
        raise ModelError(f"model '{backbone.name}' has no CLIP tower to compare with; name a CLIP model")
    return tuple(tower.image_size)


def _matrices(view: Any) -> list[torch.Tensor]:
    """The weights of a block's linear layers, including its joint projection."""
    joint = view.joint()
    layers = [module.weight for module in view.module.modules() if isinstance(module, nn.Linear)]
    return [*([] if joint is None else [joint]), *(weight for weight in layers if weight is not joint)]
