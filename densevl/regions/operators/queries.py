"""Regions embedded by their own copies of CLS, in one pass over the image: `cls_mask` and `cls_bias`.

Each copy is one more query over the tokens' keys and values. Tokens and the true CLS never see the copies, so all
regions share the image stream, which is the trained one. With nothing hidden, a copy equals CLS.
Dong et al., "MaskCLIP" of MLPC-UCSD (ICML 2023); SAN (CVPR 2023); FALIP (ECCV 2024).
Shape letters: B windows, R regions, N tokens (leading ones first), D width, E joint space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from densevl.errors import ModelError, RecipeError
from densevl.inference.sliding import windows_a_pass
from densevl.inference.windows import WindowGrid
from densevl.kernels.attention import attend
from densevl.proposals.base import Proposals
from densevl.recipes.blocks import with_ffn
from densevl.recipes.parts.attention import BoxAttention
from densevl.recipes.parts.regions import through
from densevl.recipes.tower import Tower
from densevl.recipes.trunk import run_trunk
from densevl.regions.operators.pull import reaches, window_areas, window_cover

if TYPE_CHECKING:
    from densevl.backbones.base import Backbone

Bias = Callable[[torch.Tensor, tuple[int, int]], torch.Tensor]
"""From covered shares (R, h*w) and the grid to a bias on attention logits over those patches, (R, h*w)."""

SEEN = 0.5
"""A region is read in every window that sees at least this fraction of what its best window sees."""
RULE = "size"


@torch.no_grad()
def look(
    tower: Tower, pixels: torch.Tensor, bias_BRN: torch.Tensor, *, start: int = 0, rule: str = RULE
) -> torch.Tensor:
    """Run a tower as trained and, beside it, R copies of CLS with an attention bias each.

    Args:
        pixels: (B, 3, H, W) normalised, sides multiples of the patch.
        bias_BRN: (B, R, N) float added to the attention logits of copy r over the tokens; -inf hides one. Every row
            needs a finite entry.
        start: the first block, 0-based, in which copies differ from the true CLS; earlier blocks are shared.
        rule: how positions are resized, from the recipe.

    Returns:
        (B, R, E) embeddings, not normalised; a row of zeros in `bias_BRN` gives the image embedding.
        (B, R, E) embeddings, not normalised; a row of zeros in `bias_BRN` gives the image embedding.
    """
    trunk = run_trunk(tower, pixels, rule, leave=tower.depth - start, taps=frozenset())
    grid, x_BND = trunk.grid, trunk.x_BND
    count, bias = x_BND.shape[1], bias_BRN[:, None].to(x_BND)
    # Tokens and copies share one matrix product wherever both take the same step.
    both = torch.cat([x_BND, x_BND[:, :1].expand(-1, bias.shape[2], -1)], dim=1)
    for index in range(start, tower.depth - 1):
        block = tower.view(index, grid)
        normed = block.norm(both)
        own = block.project(normed[:, :count], "qkv")
        q = block.unrotated().project(normed[:, count:], "q")["q"]
        heads = [
            attend(own["q"], own["k"], own["v"]),
            F.scaled_dot_product_attention(q, own["k"], own["v"], attn_mask=bias),
        ]
        both = block.merge(torch.cat([part.transpose(1, 2) for part in heads], dim=1).transpose(1, 2)).add_(both)
        both = with_ffn(block, both)
    block = tower.view(tower.depth - 1, grid)  # nothing reads the tokens after it
    own = block.project(block.norm(both[:, :count]), "kv")
    return tower.read(through(block, both[:, count:], own, bias))


def cls_mask(
    backbone: Backbone,
    pixels: torch.Tensor,
    masks: Proposals,
    *,
    windows: WindowGrid | None = None,
    start: int = 0,
    see_cls: bool = True,
    threshold: float = 0.5,
    soft: float | None = None,
) -> torch.Tensor:
    """Embed regions by copies of CLS that see only the patches of their own mask.

    Args:
        backbone: a CLIP whose embedding is read from CLS. pixels: (1, 3, H, W) normalised.
        masks: R masks of that photo, at any size. windows: the tower's windows; None takes the whole image at once.
        start: the first masked block; SAN starts at 9 of 12.
        see_cls: whether the copies also see the true CLS and registers, as in MaskCLIP.
        threshold: a patch is seen if at least this fraction of it is covered; the best covered patches always are. The
            papers take every patch that is touched, 0; 0.5 named more objects right on rendered scenes, at every size.
        soft: use soft * log(share) as the bias instead of a threshold.

    Returns:
        (R, E) float32 unit rows; zeros for an empty mask.

    Raises:
        ModelError: the model has no CLS to copy, or fewer blocks than `start`.
    """

    def bias(cover_RN: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        if soft is not None:
            return soft * cover_RN.clamp(min=1e-6).log()
        best = reaches(cover_RN, cover_RN.amax(dim=1, keepdim=True))
        return torch.where(reaches(cover_RN, max(threshold, 1e-6)) | best, 0.0, -torch.inf)

    return by_windows(backbone, pixels, masks, windows, bias, "cls_mask", start, see_cls)


def cls_bias(
    backbone: Backbone,
    pixels: torch.Tensor,
    masks: Proposals,
    *,
    windows: WindowGrid | None = None,
    start: int | None = None,
    peak: float = 0.2,
    std: float = 100.0,
) -> torch.Tensor:
    """Embed regions by copies of CLS that attend more to their own box, most to its middle (FALIP, shared keys).

    FALIP itself encodes the image once per region, and its later patches see the changed CLS (recipe "falip", `cls`).
    This takes one pass for all regions and comes close. Arguments and result as `cls_mask`; `start` None is two thirds
    of the blocks, `peak` and `std` (in patches) as `BoxAttention`.
    """
    spec = BoxAttention(std=std, peak=peak)

    def bias(cover_RN: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return _bumps(cover_RN.unflatten(1, grid) > 0, spec).flatten(1)

    return by_windows(backbone, pixels, masks, windows, bias, "cls_bias", start, True)


def _bumps(touched_Rhw: torch.Tensor, spec: BoxAttention) -> torch.Tensor:
    """A Gaussian over the box of each region's touched patches, stretched to 0..peak: (R, h, w) float32."""
    squares, within = [], torch.ones_like(touched_Rhw)
    for axis in (1, 2):
        used_Rn = touched_Rhw.any(dim=3 - axis)
        at = torch.arange(used_Rn.shape[1]).double()
        low = torch.where(used_Rn, at, torch.inf).amin(dim=1, keepdim=True)
        high = torch.where(used_Rn, at, -torch.inf).amax(dim=1, keepdim=True)
        squares.append((at - (low + high) / 2).square().unsqueeze(3 - axis))
        within = within & ((at >= low) & (at <= high)).unsqueeze(3 - axis)
    bump = torch.exp(-0.5 * (squares[0] + squares[1]) / spec.std**2)
    least = torch.where(within, bump, torch.inf).amin(dim=(1, 2), keepdim=True)
    most = torch.where(within, bump, -torch.inf).amax(dim=(1, 2), keepdim=True)
    stretched = torch.where(most > least, (bump - least) / (most - least), 1.0)  # a box of one patch is its own middle
    return torch.where(within, spec.peak * stretched, 0.0).float()


@torch.no_grad()
def by_windows(
    backbone: Backbone,
    pixels: torch.Tensor,
    masks: Proposals,
    windows: WindowGrid | None,
    bias: Bias,
    operator: str,
    start: int | None,
    see_cls: bool = True,
    look: Callable[..., torch.Tensor] = look,
) -> torch.Tensor:
    """Embed each region in the windows that see most of it; average the unit embeddings by how much they see.

    Args:
        bias: the bias on attention logits. operator: for messages. start: the first biased block. see_cls: whether
            leading tokens are seen. look: embeds regions in windows, with the arguments of `look`.
    """
    tower = cls_tower(backbone, operator)
    start = round(tower.depth * 2 / 3) if start is None else start
    if not 0 <= start < tower.depth:
        raise ModelError(f"start {start} leaves no block to look in; model '{backbone.name}' has {tower.depth}")
    windows = windows or whole_image(pixels, backbone.patch_size)
    grid = windows.rows.tokens, windows.cols.tokens

    def added(cover_RN: torch.Tensor) -> torch.Tensor:
        lead = cover_RN.new_full((len(cover_RN), tower.prefix), 0.0 if see_cls else -torch.inf)
        return torch.cat([lead, bias(cover_RN, grid)], dim=1)

    if len(windows) == 1 and len(masks):  # nothing to choose and nothing to average
        cover_RN = window_cover(masks, windows, 0, range(len(masks)))
        (part,) = windows.batches(pixels, 1)
        found_RE = look(tower, part, added(cover_RN)[None].to(backbone.device), start=start)[0]
        return F.normalize(found_RE.float(), dim=-1) * cover_RN.any(dim=1, keepdim=True).to(found_RE.device)
    areas_nR = window_areas(masks, windows)
    looked_nR = reaches(areas_nR, SEEN * areas_nR.amax(dim=0)) & (areas_nR > 0)
    total_RE = torch.zeros(len(masks), backbone.embed_dim)
    first = 0
    for part in windows.batches(pixels, windows_a_pass(backbone, windows)):
        numbers = range(first, first + len(part))
        first += len(part)
        chosen = {i: looked_nR[n].nonzero().flatten().tolist() for i, n in enumerate(numbers)}
        used = [i for i, some in chosen.items() if some]
        if not used:
            continue
        biases = [added(window_cover(masks, windows, numbers[i], chosen[i])) for i in used]
        padded = torch.nn.utils.rnn.pad_sequence(biases, batch_first=True).to(backbone.device)
        found = F.normalize(look(tower, part[used], padded, start=start).float(), dim=-1).cpu()
        for at, i in enumerate(used):
            seen = areas_nR[numbers[i], chosen[i], None]
            total_RE.index_add_(0, torch.tensor(chosen[i]), seen * found[at, : len(chosen[i])])
    return F.normalize(total_RE, dim=-1).to(backbone.device)


def whole_image(pixels: torch.Tensor, patch: int) -> WindowGrid:
    """One window over the whole image."""
    return WindowGrid.place(pixels.shape[2], pixels.shape[3], None, 1, patch)


def cls_tower(backbone: Backbone, operator: str) -> Tower:
    """The backbone's tower, if its image embedding is read from a CLS token that went through blocks.

    Raises:
        ModelError: it is not, so copies of CLS would be meaningless.
    """
    tower = getattr(backbone, "tower", None)
    why = "it is not a CLIP" if tower is None else f"its tower is {tower.kind}"
    if tower is not None and tower.depth and not tower.reads_cls:
        why += ", pooled over all patches"
    try:
        if tower is not None and tower.depth and tower.reads_cls and tower.view(0, (1, 1)) is not None:
            return tower
    except RecipeError:
        why = "its blocks cannot be taken apart"
    raise ModelError(
        f"operator '{operator}' looks with copies of CLS, but model '{backbone.name}' reads no image embedding from "
        f"such a token ({why}); use operator 'pool' or 'crop'"
    )
