"""`Tower`: the interface of an image tower for the engine, whatever library built it.

A tower turns pixels into tokens, runs its blocks one by one, provides views of them (see `blocks.py`), and reads tokens
into the joint space. It holds the library's own modules and never copies or edits them.
Shape letters: B batch, N tokens (leading ones first, then h*w patches row by row), D width, E joint space.
"""

from __future__ import annotations

from typing import Protocol

import torch

from densevl.recipes.blocks import Block

Grid = tuple[int, int]


class Tower(Protocol):
    """An image tower as a stack of attention blocks.

    Attributes:
        kind: description that follows "the tower is" in messages.
        patch_size: pixels per patch, the total stride of a convolutional tower. embed_dim: E.
        depth: number of blocks; 0 if it runs as a whole, and then only "vanilla" applies.
        image_size: (H, W) it was trained at.
        prefix: leading tokens that are not patches (CLS, registers); 0 if there are none.
        reads_cls: whether the image embedding is read from token 0 alone.
        cls_readout: the layer norm and the matrix (D, E), if they alone read it; otherwise None or absent.
    """

    kind: str
    patch_size: int
    depth: int
    embed_dim: int
    image_size: tuple[int, int]
    prefix: int
    reads_cls: bool

    def embed(self, pixels: torch.Tensor, rule: str) -> torch.Tensor:
        """Normalised pixels (B, 3, H, W) to the tokens before the first block (B, N, D); `rule` resizes positions.

        A tower without blocks gives the tokens of its last layer.

        Raises:
            ImageError: the tower takes only its trained size.
        """

    def run(self, index: int, x_BND: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Run block `index` (0-based) as trained."""

    def view(self, index: int, grid: Grid) -> Block:
        """The parts of block `index`; raises RecipeError if it cannot be taken apart."""

    def read(self, y_BND: torch.Tensor) -> torch.Tensor:
        """Read tokens after the last block one by one into the joint space: (B, N, E), not normalised.

        This is the tower's own read-out as if the token were the only one. With an attention pool its softmax is then
        1, which leaves the value, the output projection and the pool's own MLP.
        """

    def pool(self, x_BND: torch.Tensor) -> torch.Tensor:
        """All tokens after the last block to the image embedding, as trained: (B, E), not normalised."""
