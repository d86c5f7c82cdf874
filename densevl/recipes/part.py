"""The parts of a recipe: the interface of each kind.

A part is a frozen dataclass. It says which blocks it taps, which inputs it reads besides the pixels, how it runs, and
describes itself in words. The engine (`run.py`) knows only the order of the slots. To write your own part, subclass one
of the kinds below.

Block numbers count from 1 in a tower of 12 blocks, as the papers give them, and are scaled to other depths.
Shape letters: B batch, N tokens (leading ones first, then h*w patches), D width, E joint space, A heads, d head width,
P width of another model's features, T texts.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from densevl.errors import RecipeError
from densevl.lazy import torch
from densevl.recipes.batch import Batch, Outcome, Pass
from densevl.recipes.features import DenseFeatures
from densevl.recipes.hints import Hints
from densevl.recipes.values import block_numbers, check, positive, scaled

if TYPE_CHECKING:  # these import torch
    from densevl.recipes.tower import Grid

T = TypeVar("T")


class Part:
    """The base of all parts. A part made of other parts reads and taps what they do.

    Attributes:
        own_reads: names of `Hints` that it reads itself.
        needs_cls: whether it needs a tower with a CLS token.
    """

    own_reads: frozenset[str] = frozenset()
    needs_cls: bool = False

    def parts(self) -> Iterator[Part]:
        """This part and all parts it is made of."""
        held = self.held()
        yield self
        for value in held:
            yield from within(value)

    def held(self) -> Iterator[Any]:
        """The values of its fields.

        Raises:
            RecipeError: the class is not a frozen dataclass.
        """
        if not getattr(getattr(type(self), "__dataclass_params__", None), "frozen", False):
            name = type(self).__name__
            raise RecipeError(f"{name} is not a frozen dataclass; put @dataclass(frozen=True, repr=False) above it")
        return (getattr(self, entry.name) for entry in fields(self))  # type: ignore[arg-type]

    def own_taps(self, depth: int) -> frozenset[int]:
        """The blocks whose outputs it reads itself, in a tower of `depth`; 0 is the input of the first block."""
        return frozenset()

    def objection(self, recipe: Slots) -> str | None:
        """Why it cannot be part of this recipe, or None."""
        return None

    def __repr__(self) -> str:
        return as_code(self)


def within(value: Any) -> Iterator[Part]:
    """All parts in a field's value: a part, or tuples or lists of parts."""
    if isinstance(value, Part):
        yield from value.parts()
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from within(item)


def found(kind: type[T], value: Any) -> list[T]:
    """The parts of one kind in a part or a tuple of parts."""
    return [part for part in within(value) if isinstance(part, kind)]


def as_code(value: Any) -> str:
    """A part, or any value in it, as the Python code that makes it; defaults are left out."""
    if isinstance(value, tuple):
        return f"({', '.join(map(as_code, value))}{',' * (len(value) == 1)})"
    if not is_dataclass(value) or isinstance(value, type):
        return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    if type(value).__repr__ is not Part.__repr__ and isinstance(value, Part):
        return repr(value)
    given: list[str] = []
    named = False
    for entry in fields(value):
        own = getattr(value, entry.name)
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        if default is not MISSING and own == default:
            named = True
            continue
        named = named or isinstance(own, bool)  # a bare True would be unclear
        given.append(f"{entry.name}={as_code(own)}" if named else as_code(own))
    return f"{type(value).__name__}({', '.join(given)})"


def shaped(part: Part, given: Any, like: torch.Tensor) -> torch.Tensor:
    """Check a part's output; raises RecipeError unless it is a tensor of the shape of another."""
    if not isinstance(given, torch.Tensor) or given.shape != like.shape:
        kind = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        raise RecipeError(f"{part!r} gives {kind}; it must give a tensor {tuple(like.shape)}")
    return given


def _outermost(value: Any) -> Iterator[Attention]:
    if isinstance(value, Attention):
        yield value
        return
    for item in value.held() if isinstance(value, Part) else value if isinstance(value, (tuple, list)) else ():
        yield from _outermost(item)


class PatchFeatures(Part, ABC):
    """Features of patches, whose similarity is used."""

    @abstractmethod
    def of(self, batch: Batch, grid: Grid) -> torch.Tensor:
        """The features at the patches of a grid: (B, h*w, P)."""


@dataclass(frozen=True, repr=False)
class Tap(PatchFeatures):
    """The patches after a block of the tower.

    Attributes:
        block: its number. repaired: with the recipe's outliers replaced, see `steps.RepairOutliers`.
    """

    block: int
    repaired: bool = False

    def __post_init__(self) -> None:
        block_numbers((self.block,))

    def own_taps(self, depth: int) -> frozenset[int]:
        return frozenset(scaled((self.block,), depth))

    def of(self, batch: Batch, grid: Grid) -> torch.Tensor:
        patches = batch.output(self.block)[:, batch.trunk.prefix :]
        return batch.memo["repair"](patches) if self.repaired else patches

    def objection(self, recipe: Slots) -> str | None:
        if self.repaired and not any(step.repairs for step in recipe.before):
            return "it taps repaired patches; put the repair first in before"
        return None

    def __str__(self) -> str:
        return f"after block {self.block}"


@dataclass(frozen=True, repr=False)
class Proxy(PatchFeatures):
    """Patch features of another model.

    Attributes:
        model: its name for `load_proxy`, the one the method was published with.
        features: "tokens" after its last norm; "q", "k", "v" or "q+k", projections of its last block.
    """

    own_reads = frozenset({"proxy"})
    FEATURES: ClassVar[tuple[str, ...]] = ("tokens", "q", "k", "v", "q+k")

    model: str
    features: str = "tokens"

    def __post_init__(self) -> None:
        check(self.features, self.FEATURES, "proxy features")

    def of(self, batch: Batch, grid: Grid) -> torch.Tensor:
        return batch.proxy(grid)

    def __str__(self) -> str:
        return "of another model"


class Attention(Part, ABC):
    """How tokens of a block attend to each other. One made of others has their properties, unless it overrides them."""

    @property
    def inner(self) -> list[Attention]:
        """The attentions that it is directly made of."""
        return [attention for value in self.held() for attention in _outermost(value)]

    @property
    def projects(self) -> str:
        """The block's projections that it needs, a subset of "qkv" in that order: values, and its `pair` if any."""
        letters = "v" + getattr(self, "pair", "") + "".join(attention.projects for attention in self.inner)
        return "".join(letter for letter in "qkv" if letter in letters)

    @property
    def patches_only(self) -> bool:
        """Whether it works on patches without leading tokens; then the block has no skip connection and no MLP."""
        return any(attention.patches_only for attention in self.inner)

    @property
    def steerable(self) -> bool:
        """Whether a second pass can change its logits."""
        return any(attention.steerable for attention in self.inner)

    @property
    def grid(self) -> str | int:
        """The grid it works on, see `affinity.Affinity`: values are interpolated to it, and its output is on it."""
        return next((attention.grid for attention in self.inner if attention.grid != "tower"), "tower")

    @property
    def swapped(self) -> bool:
        """Whether values are folded with height and width swapped for that, see `affinity.Affinity`."""
        return any(attention.swapped for attention in self.inner)

    @abstractmethod
    def attend(self, run: Pass, v: torch.Tensor) -> torch.Tensor:
        """Attention applied to values: v (B, A, N, d), usually `run.qkv["v"]`, to the same shape."""

    def __call__(self, run: Pass, v: torch.Tensor) -> torch.Tensor:
        """`attend` with its shape checked: a smaller one would be broadcast over images silently."""
        return shaped(self, self.attend(run, v), v)

    def __add__(self, other: Attention) -> Attention:
        return Sum((*_terms(self), *_terms(other)))

    def __mul__(self, weight: float) -> Attention:
        positive(weight, "the weight of an attention")
        return self if weight == 1 else Sum(tuple((weight * own, term) for own, term in _terms(self)))

    __rmul__ = __mul__

    def __truediv__(self, weight: float) -> Attention:
        positive(weight, "what an attention is divided by")
        return self * (1 / weight)


@dataclass(frozen=True, repr=False)
class Sum(Attention):
    """A weighted sum of attentions, written as `0.7 * A + 0.3 * B`."""

    terms: tuple[tuple[float, Attention], ...]

    def __post_init__(self) -> None:
        terms: list[tuple[float, Attention]] = []
        for pair in self.terms if isinstance(self.terms, (tuple, list)) else (self.terms,):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[1], Attention):
                raise RecipeError(f"a sum adds pairs of (weight, attention), got {pair!r}")
            positive(pair[0], "the weight of an attention")
            terms += [(pair[0] * own, term) for own, term in _terms(pair[1])]
        object.__setattr__(self, "terms", tuple(terms))
        attentions = [term for _, term in self.terms]
        if not attentions or self.terms == ((1, attentions[0]),):
            raise RecipeError("a sum adds at least two attentions, or weighs one")
        if len(set(attentions)) < len(attentions):
            raise RecipeError("a term is named twice; use its weight")
        if len({(term.grid, term.swapped) for term in attentions}) > 1:
            raise RecipeError("its terms work on different grids; they cannot be added")

    def attend(self, run: Pass, v: torch.Tensor) -> torch.Tensor:
        (weight, term), *others = self.terms
        out = weight * term(run, v)
        for weight, term in others:
            out = out + weight * term(run, v)
        return out

    def __repr__(self) -> str:
        return " + ".join(repr(term) if weight == 1 else f"{weight!r} * {term!r}" for weight, term in self.terms)

    def __str__(self) -> str:
        each = (str(term) if weight == 1 else f"{_share(weight)} x {term}" for weight, term in self.terms)
        return " + ".join(each)


def _share(weight: float) -> str:
    """1/3 as "1/3", 0.7 as "0.7"."""
    third = weight * 3
    return f"{round(third)}/3" if abs(third - round(third)) < 1e-9 and round(third) % 3 else f"{weight:.3g}"


def _terms(attention: Attention) -> tuple[tuple[float, Attention], ...]:
    return attention.terms if isinstance(attention, Sum) else ((1.0, attention),)


class Step(Part, ABC):
    """An operation on the patches before a rewired block, after its attention, or in the joint space.

    Attributes:
        places: the slots of a recipe in which it may stand. repairs: whether taps may ask for its repaired patches.
    """

    places: ClassVar[tuple[str, ...]] = ("before", "after")
    repairs: ClassVar[bool] = False

    @abstractmethod
    def apply(self, batch: Batch, x_BND: torch.Tensor, cls_B1D: torch.Tensor, grid: Grid) -> torch.Tensor:
        """Patches to patches, (B, h*w, D).

        Args:
            cls_B1D: the leading token that entered the block. grid: (h, w) of the patches.
        """

    def __call__(self, batch: Batch, x_BND: torch.Tensor, cls_B1D: torch.Tensor, grid: Grid) -> torch.Tensor:
        """`apply` with its shape checked."""
        return shaped(self, self.apply(batch, x_BND, cls_B1D, grid), x_BND)


class Addition(Part, ABC):
    """A further source beside the last block's own input.

    Attributes:
        after_norm: whether its features are added, after the last norm, rather than its tokens before it.
        weight: of its features; the block's own have weight 1.
    """

    after_norm: bool = True
    weight: float = 1.0

    @abstractmethod
    def tokens(self, run: Pass, through: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        """Tokens (B, N, D) after the last block, on the grid of its own tokens: a list with one entry per source.

        Args:
            run: the pass of the block on its own input.
            through: runs the rewired block on other tokens: `through(x_BND, attention)`, where x includes all leading
                tokens; an attention that is not None replaces the recipe's.
        """


class Readout(Part, ABC):
    """How tokens become features, and how words are compared with them.

    Attributes:
        leaves: how many of the last blocks it runs itself, with every slot of the block as trained; None if it reads
            the output of the recipe's blocks.
        projects: projections of the last block that it needs where windows are joined at them.
        needs_trunk: whether it reads more than the outcome, so that windows cannot be joined right before it.
        cosine: whether words are compared by the cosine only, so that features mean something without words.
        asks_foreground: whether a score depends on which words are classes and which are background words.
    """

    leaves: ClassVar[int | None] = None
    projects: ClassVar[str] = ""
    needs_trunk: bool = False
    cosine: ClassVar[bool] = True
    asks_foreground: ClassVar[bool] = False

    @abstractmethod
    def read(self, batch: Batch, outcome: Outcome, embed: Callable[[torch.Tensor], torch.Tensor]) -> DenseFeatures:
        """Features of an outcome, and of its `extras` if the recipe has further sources.

        Args:
            embed: tokens (B, N, D) to the joint space (B, N, E), including the recipe's steps there.
        """


class Stitch(Part, ABC):
    """The point at which windows are joined on one patch grid; the rest is done once for the whole image.

    Attributes:
        projections: whether they are joined at the projections of the last block, rather than after it.
    """

    projections: ClassVar[bool] = False

    def mix(self, outcome: Outcome, hints: Hints) -> Outcome:
        """Process the joined tokens of the whole image before they are read."""
        return outcome


class Spread(Part, ABC):
    """An operation on the scores of all windows of an image together."""

    @abstractmethod
    def spread(self, scores_NT: torch.Tensor, features_NP: torch.Tensor, places_N2: torch.Tensor) -> torch.Tensor:
        """Scores (N, T) of all tokens of all windows to the same.

        Args:
            features_NP: unit features of the proxy at the tokens. places_N2: their centres in pixels, y and x.
        """


class Slots:
    """The slots of a recipe, for parts to inspect; `Recipe` fills them.

    Attributes:
        name: lower-case identifier.
        attention: how tokens of the rewired blocks attend to each other.
        residual, ffn: whether a rewired block keeps its skip connection and its MLP; residual "cls" uses the input CLS
            token for every token.
        blocks: how many of the last blocks are rewired one after the other; or a `SecondStream`.
        before: steps on patches before the rewired block. after: on the output of its attention.
        adds: further sources beside the block's own input.
        joint: steps in the joint space.
        readout: how tokens become features, and how words are compared with them.
        stitch: where windows are joined so that the rest is done once for the image; None keeps them separate.
        spread: the operation on the scores of all windows together.
        position_rule: how the positional grid is resized for other input sizes (see `backbones.positions`).
    """

    name: str
    attention: Attention
    residual: bool | str
    ffn: bool
    blocks: Any
    before: tuple[Step, ...]
    after: tuple[Step, ...]
    adds: tuple[Addition, ...]
    joint: tuple[Step, ...]
    readout: Readout
    stitch: Stitch | None
    spread: Spread | None
    position_rule: str
