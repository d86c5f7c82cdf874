"""What recipes read besides pixels, made up from the pixels, so that any recipe of the catalogue can be run."""

from __future__ import annotations

import torch

from densevl.recipes import get


class Attention:
    """Stands in for SAM's last attention: made from the pixels, so that each image has its own."""

    grid, covered, rel = (3, 4), (2, 3), None

    def __init__(self, pixels: torch.Tensor) -> None:
        means = torch.nn.functional.adaptive_avg_pool2d(pixels, self.grid).flatten(2).mT
        self.q, self.k, self.v = (means[:, None] * scale for scale in (1.0, 0.7, 1.3))


def hints(name: str, pixels: torch.Tensor, embed_dim: int = 24, patch: int = 8) -> dict[str, torch.Tensor]:
    """What a recipe reads besides pixels, made from the pixels themselves so that batches can be compared."""
    recipe, given = get(name), {}
    if recipe.reads_proxy:
        given["proxy"] = torch.nn.functional.unfold(pixels, patch, stride=patch).unflatten(
            2, (pixels.shape[2] // patch, pixels.shape[3] // patch)
        )
    if recipe.scope is not None:
        given["regions"] = (torch.arange(pixels.shape[3]) // 20).expand(len(pixels), *pixels.shape[2:])
    if recipe.readout == "regions":
        side = torch.arange(pixels.shape[3])
        given["regions"] = (
            torch.stack([side < 20, side >= 12]).float()[None, :, None].expand(len(pixels), -1, pixels.shape[2], -1)
        )
    if recipe.whole is not None:
        given["sam"] = Attention(pixels)
    if recipe.feedback is not None:
        given["text"] = torch.nn.functional.normalize(
            torch.randn(5, embed_dim, generator=torch.Generator().manual_seed(2))
        )
    if recipe.bias is not None and recipe.blocks > 1:
        given["boxes"] = torch.tensor([[3.0, 5.0, 20.0, 30.0]]).expand(len(pixels), 4)
    return given
