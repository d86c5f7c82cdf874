"""What recipes read besides pixels, made up from the pixels, so that any recipe can be run."""

from __future__ import annotations

import torch

from densevl.recipes import Hints, Proxy, Recipe, get


class Attention:
    """Stands in for SAM's last attention: made from the pixels, so that each image has its own."""

    grid, covered, rel = (3, 4), (2, 3), None

    def __init__(self, pixels: torch.Tensor) -> None:
        means = torch.nn.functional.adaptive_avg_pool2d(pixels, self.grid).flatten(2).mT
        means = means - means.mean(dim=1, keepdim=True)
        self.q, self.k, self.v = (means[:, None] * scale for scale in (1.0, 0.7, 1.3))


def hints(recipe: str | Recipe, pixels: torch.Tensor, embed_dim: int = 24, patch: int = 8, width: int = 32) -> Hints:
    """What a recipe reads besides pixels (B, 3, H, W), made from the pixels themselves so that batches compare.

    Args:
        patch: of the proxy; its features are `width` random filters of it.
    """
    given, reads = {}, get(recipe).reads
    batch, (height, width_px) = len(pixels), pixels.shape[2:]
    generator = torch.Generator().manual_seed(7)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width_px), indexing="ij")
    if "proxy" in reads:
        kind = torch.Generator().manual_seed(Proxy.FEATURES.index(get(recipe).proxy.features))
        filters = torch.randn(width, 3, patch, patch, generator=kind)
        shift = 0.3 * torch.randn(width, generator=kind).view(-1, 1, 1)
        given["proxy"] = torch.nn.functional.conv2d(pixels, filters, stride=patch) / patch**1.5 + shift
    if "regions" in reads:
        # Nothing belongs to no region but in the last columns, so that the smallest id of a window may be another.
        given["regions"] = ((columns // 8 + 1) * ((rows > 12) | (columns < width_px - 8))).expand(batch, -1, -1)
    if "masks" in reads:
        given["masks"] = torch.stack([columns < 20, columns >= 12]).float().expand(batch, -1, -1, -1)
    if "sam" in reads:
        given["sam"] = Attention(pixels)
    if "text" in reads:
        given["text"] = torch.nn.functional.normalize(torch.randn(5, embed_dim, generator=generator))
    if "boxes" in reads:
        given["boxes"] = torch.tensor([[3.0, 5.0, 20.0, 30.0]]).expand(batch, 4)
    return Hints(**given)
