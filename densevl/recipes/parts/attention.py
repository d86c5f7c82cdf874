"""Attention by a tower's own projections: the block's, another block's, or the maps of several blocks.

Parts hold an N x N map only if their method needs the map itself. Shape letters: B batch, A heads, N tokens, d head
width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from densevl import kernels
from densevl.errors import RecipeError
from densevl.kernels import Gaussian
from densevl.lazy import F, torch
from densevl.recipes.batch import Pass
from densevl.recipes.part import Attention, Slots
from densevl.recipes.values import at_least, block_numbers, check, listed, positive, scaled

PAIRS = ("qk", "qq", "kk", "vv")
LOOKS = {
    "qk": "queries look at keys, as trained",
    "qq": "queries look at queries",
    "kk": "keys look at keys",
    "vv": "values look at values",
}
ADAPTIVE = "adaptive"


def _near(neighbourhood: Gaussian | None) -> str:
    return "" if neighbourhood is None else f", near ones more (Gaussian, {neighbourhood.std:g} patches)"


@dataclass(frozen=True, repr=False)
class Identity(Attention):
    """Each token reads only its own value (MaskCLIP, ECCV 2022)."""

    def attend(self, run: Pass, v: torch.Tensor) -> torch.Tensor:
        return v

    def __str__(self) -> str:
        return "each patch reads only its own value"


@dataclass(frozen=True, repr=False)
class SelfAttention(Attention):
    """softmax(temperature * a b^T / sqrt(d) + neighbourhood) v, with a and b projections of the block.

    Attributes:
        pair: "qk" is the trained attention; "qq", "kk", "vv" compare a projection with itself.
        neighbourhood: a Gaussian of the distance in patches, added to the logits (NACLIP, WACV 2025).
        temperature: factor of the logits.
    """

    pair: str = "qk"
    neighbourhood: Gaussian | None = None
    temperature: float = 1.0
    steerable = True

    def __post_init__(self) -> None:
        check(self.pair, PAIRS, "pair of projections")
        positive(self.temperature, "temperature")

    def attend(self, run: Pass, v: torch.Tensor) -> torch.Tensor:
        a, b = run.qkv[self.pair[0]], run.qkv[self.pair[1]]
        scale = v.shape[-1] ** -0.5 * (self.temperature * run.temperature)
        return kernels.grid_attention(a, b, v, run.grid, run.prefix, self.neighbourhood, scale, extra=run.bias_B1NN)

    def __str__(self) -> str:
        heat = "" if self.temperature == 1 else f", logits times {self.temperature:g}"
        return LOOKS[self.pair] + _near(self.neighbourhood) + heat


@dataclass(frozen=True, repr=False)
class CosineAttention(Attention):
    """softmax(temperature * cos(a, b) + neighbourhood) v: self-self attention of unit vectors (GEM, CVPR 2024).

    Attributes:
        pair: as `SelfAttention`.
        temperature: factor of the cosines; "adaptive" is each image's mean token norm over sqrt(d).
        iterations: how often a projection is first replaced by its own attention average; for "qq", "kk", "vv".
        neighbourhood: as `SelfAttention`.
    """

    pair: str
    temperature: float | str = ADAPTIVE
    iterations: int = 0
    neighbourhood: Gaussian | None = None
    steerable = True

    def __post_init__(self) -> None:
        check(self.pair, PAIRS, "pair of projections")
        if self.temperature != ADAPTIVE:
            positive(self.temperature, f"temperature is a number or {ADAPTIVE!r}; it")  # type: ignore[arg-type]
        at_least(self.iterations, 0, "the number of iterations")
        if self.iterations and self.pair == "qk":
            raise RecipeError(f"{self.iterations} iterations of {self.pair}: only qq, kk and vv average themselves")

    def attend(self, run: Pass, v: torch.Tensor) -> torch.Tensor:
        scale, factor = run.temperature, 1.0
        if isinstance(self.temperature, str):
            norm_B = run.u_BND.norm(dim=-1).mean(dim=1)
            factor = (norm_B / v.shape[-1] ** 0.5).view(-1, 1, 1, 1)
        else:
            scale *= self.temperature

        def look(a: torch.Tensor, b: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            near = self.neighbourhood
            return kernels.grid_attention(a * factor, b, values, run.grid, run.prefix, near, scale, extra=run.bias_B1NN)

        a, b = (F.normalize(run.qkv[letter], dim=-1) for letter in self.pair)
        for _ in range(self.iterations):
            a = b = F.normalize(look(a, b, b), dim=-1)
        return look(a, b, v)

    def __str__(self) -> str:
        sharpened = ", sharpened per image" if self.temperature == ADAPTIVE else f", times {self.temperature:g}"
        return f"{LOOKS[self.pair]} by the cosine{sharpened}{_near(self.neighbourhood)}"


@dataclass(frozen=True, repr=False)
class BlockAttention(Attention):
    """The average of the attention maps of other blocks, from those blocks' own projections.

    Attributes:
        pair: as `SelfAttention`, of projections of those blocks.
        blocks: their numbers; on a small tower several may coincide.
    """

    projects = "v"  # its pairs come from other blocks

    pair: str
    blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        check(self.pair, PAIRS, "pair of projections")
        object.__setattr__(self, "blocks", block_numbers(self.blocks))

    def own_taps(self, depth: int) -> frozenset[int]:
        return frozenset(number - 1 for number in scaled(self.blocks, depth))

    def attend(self, run: Pass, v: torch.Tensor) -> torch.Tensor:
        maps = []
        for number in self.blocks:
            other = run.batch.projections(number, "".join(sorted(set(self.pair))), run.prefix)
            a, b = other[self.pair[0]], other[self.pair[1]]
            maps.append(kernels.grid_attention(a, b, v, run.grid, run.prefix, None, v.shape[-1] ** -0.5))
        return sum(maps[1:], start=maps[0]) / len(maps)

    def __str__(self) -> str:
        return f"{LOOKS[self.pair]}, in {listed(self.blocks)}"


@dataclass(frozen=True, repr=False)
class BalancedMaps(Attention):
    """The trained maps of other blocks summed, normalised over rows and columns, and sharpened (CLIPer, ICCV 2025).

    The map stays in the batch's memo under "map", (B, A, N, N), for a read-out that spreads scores along it.

    Attributes:
        blocks: their numbers.
        in_place: as in the authors' code, normalise the sum in place, so that each use normalises it once more.
    """

    blocks: tuple[int, ...]
    in_place: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", block_numbers(self.blocks))

    def own_taps(self, depth: int) -> frozenset[int]:
        return frozenset(number - 1 for number in scaled(self.blocks, depth))

    def attend(self, run: Pass, v: torch.Tensor) -> torch.Tensor:
        memo, key = run.batch.memo, (self, "sum")
        if key not in memo:
            memo[key] = self._sum(run)
        if self not in memo or self.in_place:
            balanced = _balance(memo[key])
            memo[key] = balanced if self.in_place else memo[key]
            memo[self] = memo["map"] = _sharpen(balanced)
        return memo[self] @ v

    def objection(self, recipe: Slots) -> str | None:
        if self.in_place and not recipe.adds:
            return "in_place is about a map that further sources use as well; there are none, so leave it out"
        return None

    def _sum(self, run: Pass) -> torch.Tensor:
        """(B, A, N, N); blocks that coincide on a small tower count once."""
        depth = run.batch.tower.depth
        total: torch.Tensor | None = None
        for number in {scaled((number,), depth): number for number in self.blocks}.values():
            qk = run.batch.projections(number, "qk", run.prefix)
            attention = (qk["q"] @ qk["k"].mT * qk["q"].shape[-1] ** -0.5).softmax(dim=-1)
            total = attention if total is None else total.add_(attention)
        return total  # type: ignore[return-value]  # there is at least one block

    def __str__(self) -> str:
        return f"queries look at keys as in {listed(self.blocks)}, added up and normalised over rows and columns"


def _balance(maps: torch.Tensor) -> torch.Tensor:
    """One sweep over columns and rows."""
    maps = maps / maps.sum(dim=-2, keepdim=True)
    return maps / maps.sum(dim=-1, keepdim=True)


def _sharpen(maps: torch.Tensor) -> torch.Tensor:
    """Symmetrise, drop entries under the column's mean, and divide rows by their sums."""
    maps = (maps + maps.mT) / 2
    maps = (maps - maps.mean(dim=-2, keepdim=True)).clamp(min=0)
    return maps / maps.sum(dim=-1, keepdim=True).clamp(min=1e-12)


@dataclass(frozen=True, repr=False)
class BoxAttention(Attention):
    """The trained attention, with CLS biased towards the patches of a box, most at its middle (FALIP, ECCV 2024).

    The bias on the logits is a Gaussian about the box's centre, stretched to 0..`peak` inside.

    Attributes:
        std: width in patches; far wider than a box, so that the bump is nearly a paraboloid.
        peak: the largest bias, in logits.
    """

    own_reads = frozenset({"boxes"})
    needs_cls = True
    projects = "qkv"

    std: float = 100.0
    peak: float = 0.2

    def __post_init__(self) -> None:
        positive(self.std, "the bump's std in patches")
        positive(self.peak, "the bump's peak")

    def objection(self, recipe: Slots) -> str | None:
        return None if recipe.stitch is None else "its box is for one image as a whole; leave stitch out"

    def attend(self, run: Pass, v: torch.Tensor) -> torch.Tensor:
        bias_B1NN = run.batch.once(self, lambda: self._bias(run))
        scale = v.shape[-1] ** -0.5
        return kernels.grid_attention(run.qkv["q"], run.qkv["k"], v, run.grid, run.prefix, None, scale, extra=bias_B1NN)

    def _bias(self, run: Pass) -> torch.Tensor:
        """(B or 1, 1, N, N): row 0 over the patches of each image's box, 0 elsewhere; without boxes, over all."""
        pixels, boxes = run.batch.hints.pixels, run.batch.hints.boxes
        if pixels is None:
            raise RecipeError("a box needs the pixels it is for; call encode_dense")
        count, (height, width), (h, w) = pixels.shape[0], pixels.shape[2:], run.grid
        if boxes is None:
            row = F.pad(self._bump(h, w).to(pixels.device).flatten(), (run.prefix, 0))
            return F.pad(row[None], (0, 0, 0, run.prefix + h * w - 1))[None, None]
        if tuple(boxes.shape) != (count, 4):
            raise RecipeError(f"boxes are {tuple(boxes.shape)} for {count} images; give one box each, (B, 4)")
        tokens = run.prefix + h * w
        bias = torch.zeros(count, 1, tokens, tokens, device=pixels.device)
        for image, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
            columns, rows = _cells(x0, x1, w, width / w), _cells(y0, y1, h, height / h)
            bumps = torch.zeros(h, w)
            bumps[rows, columns] = self._bump(rows.stop - rows.start, columns.stop - columns.start)
            bias[image, 0, 0, run.prefix :] = bumps.flatten()
        return bias

    def _bump(self, rows: int, columns: int) -> torch.Tensor:
        """Stretched to 0..peak in single precision, as the authors do: with a std this wide, rounding is visible."""
        y, x = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (rows, columns))
        bump = torch.exp(-0.5 * (y[:, None] ** 2 + x[None] ** 2) / self.std**2).float()
        low, high = bump.min(), bump.max()
        return (bump - low + 1e-6) / (high + 1e-6 - low) * self.peak

    def __str__(self) -> str:
        return "queries look at keys, as trained, and CLS looks more at the middle of a box"


def _cells(start: float, stop: float, count: int, patch: float) -> slice:
    """The patches an interval touches; one that ends on a patch's first pixel line does not touch it."""
    first, last = (min(max(math.ceil(edge / patch), 1), count) for edge in (start, stop))
    return slice(first - 1, max(last, first))
