"""One pass of an image tower that keeps every block's tokens, and the features that anomaly scores read from them.

Shape letters: B images, N tokens (leading ones first), D width, E joint space, h/w patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from densevl.errors import RecipeError
from densevl.kernels.attention import attend
from densevl.recipes.features import DenseFeatures
from densevl.recipes.hints import Hints
from densevl.recipes.recipe import Recipe
from densevl.recipes.run import finish, require
from densevl.recipes.tower import Grid, Tower
from densevl.recipes.trunk import Trunk, run_trunk

STAGES = ("auto", "block", "norm", "joint")
QUARTERS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, eq=False)
class Pass:
    """The output of one run of the trained tower.

    Attributes:
        outputs: depth + 1 tensors (B, N, D), tokens after block l, 0 before the first; fewer if the run was cut short.
        grid: (h, w).
    """

    tower: Tower
    outputs: tuple[torch.Tensor, ...]
    grid: Grid

    @torch.no_grad()
    def image(self) -> torch.Tensor:
        """The image embeddings (B, E), not normalised."""
        return self.tower.pool(self.outputs[-1]).float()

    @torch.no_grad()
    def patches(self, layer: int, stage: str = "block") -> torch.Tensor:
        """Patch tokens (B, D, h, w) after a block (1-based).

        Args:
            stage: "block", as they are; "norm", after the last norm; "joint", in the joint space; "auto", after the
                norm if the tower has one apart from its read-out, otherwise in the joint space.

        Raises:
            RecipeError: the tower has no such stage.
        """
        tokens = self.outputs[layer]
        readout = getattr(self.tower, "cls_readout", None)
        if stage == "auto":
            stage = "joint" if readout is None else "norm"
        if stage == "norm":
            if readout is None:
                raise RecipeError(
                    f"stage 'norm' needs a tower that reads CLS alone; this is {self.tower.kind}: 'joint'"
                )
            tokens = readout[0](tokens)
        elif stage == "joint":
            tokens = self.tower.read(tokens)
        return tokens[:, self.tower.prefix :].float().mT.unflatten(2, self.grid)

    @torch.no_grad()
    def rewired(self, recipe: Recipe) -> DenseFeatures:
        """Dense features by a recipe, from the blocks that have run already.

        Raises:
            RecipeError: the recipe needs more than this pass holds.
        """
        if recipe.stitch or recipe.spread or recipe.readout.leaves is not None:
            raise RecipeError(
                f"recipe '{recipe.name}' works on windows or regions; anomaly maps take one of the others"
            )
        require(self.tower, recipe, Hints())
        taps = dict(enumerate(self.outputs))
        trunk = Trunk(taps[len(taps) - 1 - recipe.rewired], taps, self.grid, self.tower.prefix)
        return finish(self.tower, trunk, recipe, Hints())

    @torch.no_grad()
    def value_streams(self, blocks: int, layers: Sequence[int]) -> list[torch.Tensor]:
        """Patch features (B, E, h, w) of the V-V stream after several blocks.

        A second stream runs beside the trained one over the last `blocks` blocks. It only adds attention of values to
        values, without the MLP (CLIP Surgery; AnomalyCLIP, ICLR 2024; the layers are APRIL-GAN's idea).

        Raises:
            RecipeError: the tower has fewer blocks, or a layer lies before the stream begins.
        """
        depth, tower = len(self.outputs) - 1, self.tower
        if not 1 <= blocks <= depth or not layers or not depth - blocks < min(layers) <= max(layers) <= depth:
            raise RecipeError(
                f"a value stream over {blocks} blocks read after {list(layers)} does not fit a tower of {depth}; "
                f"layers lie within the last blocks, counted from 1"
            )
        total, found = self.outputs[depth - blocks], {}
        for index in range(depth - blocks, depth):
            block = tower.view(index, self.grid)
            v = block.project(block.norm(self.outputs[index]), "v")["v"]
            total = total + block.merge(attend(v, v, v))
            if index + 1 in layers:
                patches = tower.read(total)[:, tower.prefix :]
                found[index + 1] = patches.float().mT.unflatten(2, self.grid)
        return [found[layer] for layer in layers]


@torch.no_grad()
def run(tower: Tower, pixels: torch.Tensor, rule: str = "size", last: int | None = None) -> Pass:
    """Run normalised pixels (B, 3, H, W), sides multiples of the patch, through a tower once.

    Args:
        last: the block to stop after, if nothing later is read; None runs all.
    """
    last = tower.depth if last is None else last
    trunk = run_trunk(tower, pixels, rule, leave=tower.depth - last, taps=frozenset(range(last + 1)))
    return Pass(tower, tuple(trunk.outputs.values()), trunk.grid)


def layers_at(shares: Sequence[float | int], depth: int) -> tuple[int, ...]:
    """Block numbers (1-based): whole numbers are kept, fractions of the depth (0..1] are rounded to the nearest block.

    Raises:
        RecipeError: the tower does not have the block.
    """
    found = []
    if not depth:
        return (0,)  # a tower that runs as a whole
    for share in shares:
        layer = share if isinstance(share, int) else max(1, round(share * depth))
        if not 1 <= layer <= depth:
            raise RecipeError(
                f"layer {share} is outside the tower's {depth} blocks; give 1 to {depth}, or a share 0..1"
            )
        found.append(layer)
    return tuple(dict.fromkeys(found))
