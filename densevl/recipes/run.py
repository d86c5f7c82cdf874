"""The engine: pixels through a tower whose last blocks are rewired by a `Recipe`, to dense features.

Data flows one way: embedding, blocks as trained, rewired blocks, read-out. The engine knows the order of a recipe's
slots and nothing of any paper. It has two halves, `start` and `finish`, between which the windows of an image may be
joined. The model is never copied or edited. Shape letters: B batch, N tokens (leading ones first), D width, E joint
space, A heads, d head width, h/w patch grid.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from densevl.errors import RecipeError
from densevl.recipes.batch import Batch, Extra, Outcome, Pass
from densevl.recipes.blocks import with_ffn
from densevl.recipes.features import DenseFeatures
from densevl.recipes.hints import HOW, OPTIONAL, Hints
from densevl.recipes.part import Attention, shaped
from densevl.recipes.recipe import CLS, Recipe, SecondStream
from densevl.recipes.tower import Grid, Tower
from densevl.recipes.trunk import Projections, Trunk, run_trunk

State = Trunk | Outcome


def start(tower: Tower, pixels: torch.Tensor, recipe: Recipe, hints: Hints) -> State:
    """Run as far as windows are independent: the trained blocks, and the rewired end unless windows are joined before.

    Args:
        pixels: (B, 3, H, W) normalised, sides multiples of the patch.

    Raises:
        RecipeError: the tower lacks blocks that the recipe needs, or a hint is missing.
    """
    require(tower, recipe, hints)
    stitch = recipe.stitch
    trunk = run_trunk(
        tower,
        pixels,
        recipe.position_rule,
        leave=recipe.rewired,
        taps=recipe.taps(tower.depth),
        projects=recipe.projects if stitch is not None and stitch.projections else "",
    )
    return trunk if stitch is None or stitch.projections else _rewired(Batch(tower, trunk, hints), recipe)


def finish(tower: Tower, state: State, recipe: Recipe, hints: Hints) -> DenseFeatures:
    """Run the rest of a recipe, on one window's state or on the joined state of all windows."""
    if isinstance(state, Trunk):
        batch = Batch(tower, state, hints)
        outcome = _rewired(batch, recipe)
    else:
        batch, outcome = Batch(tower, Trunk(state.y_BND, {}, state.grid, state.prefix), hints), state
    if recipe.stitch is not None:
        outcome = recipe.stitch.mix(outcome, hints)

    def embed(y_BND: torch.Tensor) -> torch.Tensor:
        y_BNE = tower.read(y_BND)
        if not recipe.joint:
            return y_BNE
        lead, patches_BNE = y_BNE[:, : outcome.prefix], y_BNE[:, outcome.prefix :]
        for step in recipe.joint:
            patches_BNE = step(batch, patches_BNE, lead[:, :1], outcome.grid)
        return torch.cat([lead, patches_BNE], dim=1)

    dense = recipe.readout.read(batch, outcome, embed)
    if not isinstance(dense, DenseFeatures) or dense.features.shape[0] != outcome.y_BND.shape[0]:
        raise RecipeError(f"{recipe.readout!r} must give DenseFeatures of all {outcome.y_BND.shape[0]} images")
    return dense


def require(tower: Tower, recipe: Recipe, hints: Hints) -> None:
    """Refuse a recipe that cannot run here, with the reason."""
    name = f"recipe '{recipe.name}'"
    if recipe.rewired > tower.depth:
        if not tower.depth:
            raise RecipeError(f"{name} rewires attention, but the tower is {tower.kind}; use 'vanilla'")
        raise RecipeError(f"{name} rewires {recipe.rewired} blocks, the tower has {tower.depth}; use another recipe")
    if recipe.needs_cls and not tower.prefix:
        raise RecipeError(f"{name} works with the CLS token, and the tower is {tower.kind} without one; use another")
    taps = recipe.taps(tower.depth)
    if min(taps, default=0) < 0:
        raise RecipeError(f"{name} reads blocks before the last, the tower has {tower.depth}; use another recipe")
    if not isinstance(recipe.blocks, SecondStream) and max(taps, default=0) > tower.depth - recipe.rewired:
        raise RecipeError(f"{name} reads the output of a block that it rewires; tap earlier ones, or rewire fewer")
    for hint in sorted(recipe.reads - hints.given() - OPTIONAL):
        own = f", such as load_proxy('{recipe.proxy.model}')" if hint == "proxy" and recipe.proxy is not None else ""
        raise RecipeError(f"{name} reads {HOW[hint]}; give hints=Hints({hint}=...){own}")
    for hint in sorted(hints.given() - recipe.reads - {"text"}):  # every recipe accepts text
        raise RecipeError(f"{name} does not read {hint}; leave it out")
    hints.check(tower.embed_dim)


def _rewired(batch: Batch, recipe: Recipe) -> Outcome:
    """Run the rewired end of a tower, from the trunk's tokens to those after the last block."""
    tower, trunk = batch.tower, batch.trunk
    if recipe.is_trained or recipe.readout.leaves is not None:
        return Outcome(trunk.x_BND, (), trunk.grid, trunk.prefix)
    if isinstance(recipe.blocks, SecondStream):
        return Outcome(_second_stream(batch, recipe, recipe.blocks.blocks), (), trunk.grid, trunk.prefix)
    prefix = 0 if recipe.patches_only else trunk.prefix
    cls_B1D, x_BND = trunk.x_BND[:, :1], trunk.x_BND[:, trunk.prefix - prefix :]
    for step in recipe.before:
        x_BND = step(batch, x_BND, cls_B1D, trunk.grid)
    for index in range(tower.depth - recipe.blocks, tower.depth - 1):
        x_BND = _through(_pass(batch, recipe, index, x_BND, cls_B1D), recipe.attention)
    run = _pass(batch, recipe, tower.depth - 1, x_BND, cls_B1D, trunk.qkv)

    def through(other_BND: torch.Tensor, attention: Attention | None) -> torch.Tensor:
        patches, lead = other_BND[:, trunk.prefix - prefix :], other_BND[:, :1]
        chosen = attention or recipe.attention
        return _through(_pass(batch, recipe, tower.depth - 1, patches, lead, attention=chosen), chosen)

    extras = []
    for source in recipe.adds:
        given = source.tokens(run, through)
        if not isinstance(given, list):
            raise RecipeError(f"{source!r} gives a {type(given).__name__}; it must give a list of tensors (B, N, D)")
        extras += [(source, own_BND) for own_BND in given]
    y_BND = _through(run, recipe.attention)
    for source, own_BND in extras:
        shaped(source, own_BND, y_BND)
        if not source.after_norm:
            y_BND = y_BND + (own_BND if source.weight == 1 else source.weight * own_BND)
    kept = tuple(Extra(own_BND, source.weight) for source, own_BND in extras if source.after_norm)
    return Outcome(y_BND, kept, run.grid, prefix)


def _second_stream(batch: Batch, recipe: Recipe, blocks: int) -> torch.Tensor:
    """Patches of the sum of attention outputs, with leading tokens of the trained stream: (B, N, D)."""
    tower, trunk = batch.tower, batch.trunk
    x_BND = total_BND = trunk.x_BND
    for index in range(tower.depth - blocks, tower.depth):
        run = _pass(batch, recipe, index, x_BND, x_BND[:, :1])
        total_BND = total_BND + run.block.merge(recipe.attention(run, run.qkv["v"]))
        x_BND = tower.run(index, x_BND, trunk.grid)
        trunk.outputs[index + 1] = x_BND  # for read-outs that tap the blocks beside the stream
    return torch.cat([x_BND[:, : trunk.prefix], total_BND[:, trunk.prefix :]], dim=1)


def _pass(
    batch: Batch,
    recipe: Recipe,
    index: int,
    x_BND: torch.Tensor,
    cls_B1D: torch.Tensor,
    qkv: Projections | None = None,
    attention: Attention | None = None,
) -> Pass:
    """One rewired block on its input; projections are computed unless they are given."""
    chosen = attention or recipe.attention
    block, grid = batch.tower.view(index, batch.trunk.grid), batch.trunk.grid
    prefix = 0 if recipe.patches_only else batch.trunk.prefix
    if qkv:
        own = {letter: part[:, :, batch.trunk.prefix - prefix :] for letter, part in qkv.items()}
    else:
        own = block.project(block.norm(x_BND), chosen.projects)
    if chosen.grid != "tower":
        grid = _finer(batch, chosen.grid)
        own["v"] = _refined(own["v"], batch.trunk.grid, grid, swapped=chosen.swapped)

    def rest(heads_BANd: torch.Tensor) -> torch.Tensor:
        y_BND = block.merge(heads_BANd)
        if recipe.residual:
            y_BND = (cls_B1D if recipe.residual == CLS else x_BND) + y_BND
        if recipe.ffn:
            y_BND = with_ffn(block, y_BND)
        for step in recipe.after:
            y_BND = step(batch, y_BND, cls_B1D, grid)
        return y_BND

    return Pass(batch, block, x_BND, cls_B1D, own, grid, prefix, rest)


def _through(run: Pass, attention: Attention) -> torch.Tensor:
    """The block's output with an attention: (B, N, D)."""
    return run.finish(attention(run, run.qkv["v"]))


def _finer(batch: Batch, grid: str | int) -> Grid:
    """The grid of an attention: the proxy's, or one that is finer than the tower's by a factor."""
    height, width = batch.trunk.grid if isinstance(grid, int) else batch.hints.proxy.shape[-2:]
    factor = grid if isinstance(grid, int) else 1
    return height * factor, width * factor


def _refined(v_BANd: torch.Tensor, grid: Grid, finer: Grid, *, swapped: bool) -> torch.Tensor:
    """Values (B, A, h*w, d) interpolated to another grid."""
    joined = v_BANd.transpose(1, 2).flatten(2).mT.unflatten(2, grid[::-1] if swapped else grid)
    spread = F.interpolate(joined, size=finer, mode="bilinear", align_corners=False)
    return spread.flatten(2).mT.unflatten(2, (v_BANd.shape[1], -1)).transpose(1, 2)
