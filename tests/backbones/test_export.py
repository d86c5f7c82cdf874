"""What an exported graph stands on: an encoder that torch.export takes, dynamic in batch, sides and words."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim, export
from torch.nn import functional as F

RECIPES = ["vanilla", "maskclip", "sclip", "naclip", "clearclip", "gem"]


class Encoder(torch.nn.Module):
    """Pixels (B, 3, H, W) and unit words (T, D) to scores (B, h, w, T)."""

    def __init__(self, backbone, recipe: str) -> None:
        super().__init__()
        self.model, self.encode, self.recipe = backbone.model, backbone.encode_dense, recipe

    def forward(self, pixels: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        return self.encode(pixels, self.recipe).score(words)


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_exported_encoder_takes_any_batch_size_and_vocabulary(tiny, recipe) -> None:
    patch, dims = (
        tiny.patch_size,
        [Dim(name, min=low, max=64) for name, low in (("b", 1), ("h", 2), ("w", 2), ("t", 2))],
    )
    generator = torch.Generator().manual_seed(0)

    def inputs(batch: int, height: int, width: int, words: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.randn(batch, 3, height * patch, width * patch, generator=generator)
        return pixels, F.normalize(torch.randn(words, tiny.embed_dim, generator=generator), dim=-1)

    encoder = Encoder(tiny, recipe)
    sizes = {"pixels": {0: dims[0], 2: patch * dims[1], 3: patch * dims[2]}, "words": {0: dims[3]}}
    program = export(encoder, inputs(2, 5, 7, 3), dynamic_shapes=sizes, strict=False)
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("densevl" in target for target in targets), "an operator of densevl cannot be run elsewhere"
    ran = program.module()
    for case in [(1, 3, 9, 5), (3, 4, 4, 2), (2, 8, 3, 7)]:  # smaller, the trained grid of 4 x 4, larger
        given = inputs(*case)
        torch.testing.assert_close(ran(*given), encoder(*given), atol=2e-6, rtol=0)
