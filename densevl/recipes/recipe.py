"""`Recipe`: one dense-prediction method as data.

A recipe fills a few slots with parts (`part.py` describes them) that together rewire the end of a tower:

    x = before(tokens)                        before the last block, or the last n
    y = residual * x + O(attention(x))        O the block's output projection; residual "cls": of CLS alone
    y = after(y + MLP(y) * ffn)
    features = joint(read(y + further sources))

Parts are in the file of their operation: `attention`, `affinity`, `heads`, `feedback`, `steps`, `additions`,
`regions`, `readout`, `stitch`, `spread`. Impossible combinations are refused with the reason when the recipe is made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from densevl.errors import RecipeError, suggest
from densevl.recipes.part import (
    Addition,
    Attention,
    Part,
    Proxy,
    Readout,
    Slots,
    Spread,
    Step,
    Stitch,
    as_code,
    found,
    within,
)
from densevl.recipes.parts.attention import SelfAttention
from densevl.recipes.parts.readout import Tokens
from densevl.recipes.values import DEPTH, at_least, check, check_types

POSITION_RULES = (
    *("size", "size_antialias", "scale_factor", "bilinear", "bilinear_half", "bilinear_antialias"),
    *("square", "square_aligned"),
)
TRAINED = SelfAttention("qk")
CLS = "cls"


@dataclass(frozen=True)
class Source:
    """The source of a method, and its authors' figures.

    Attributes:
        paper: title; venue: where it appeared; url: where to read it.
        miou: published mIoU in per cent by benchmark name, for ViT-B/16 with OpenAI weights unless `protocol` differs.
        protocol: how those figures were measured.
    """

    paper: str
    venue: str
    url: str
    miou: Mapping[str, float] = field(default_factory=dict)
    protocol: str = ""


@dataclass(frozen=True, repr=False)
class SecondStream(Part):
    """Run the last blocks as trained, and beside them sum the attention's outputs in a second stream.

    Patches are read from the second stream, leading tokens from the trained one (CLIP Surgery, GEM).

    Attributes: blocks: how many of the last blocks.
    """

    blocks: int

    def __post_init__(self) -> None:
        at_least(self.blocks, 1, "the number of blocks beside a second stream")


@dataclass(frozen=True, repr=False)
class Recipe(Slots):
    """One method; see the module text for the formula and `part.Slots` for the slots.

    Attributes:
        published: replacements of slots under `compat=True`: unintended behaviour of the authors' code.
        settings: replacements of slots by benchmark, if the paper has them.
        source: the paper, or None for a variant of your own.
        note: one line that users should know.
    """

    name: str
    attention: Attention = TRAINED
    residual: bool | str = True
    ffn: bool = True
    blocks: int | SecondStream = 1
    before: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()
    adds: tuple[Addition, ...] = ()
    joint: tuple[Step, ...] = ()
    readout: Readout = Tokens()  # noqa: RUF009  # frozen
    stitch: Stitch | None = None
    spread: Spread | None = None
    position_rule: str = "scale_factor"
    published: Mapping[str, Any] = field(default_factory=dict, compare=False)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)
    source: Source | None = field(default=None, compare=False)
    note: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        try:
            self._settle()
            broken = next(self._contradictions(), None)
            broken = broken or next(filter(None, (part.objection(self) for part in within(self.slots))), None)
            if broken is None:
                self._try_changes()
        except RecipeError as error:
            raise RecipeError(f"recipe '{self.name}': {error}") from None
        if broken is not None:
            raise RecipeError(f"recipe '{self.name}': {broken}")

    def _settle(self) -> None:
        """Check the type of each slot; convert lists to tuples, and copy mappings."""
        if not isinstance(self.name, str) or not self.name.strip() or not self.name.isprintable():
            raise RecipeError("the name of a recipe is one line of text")
        several: dict[str, type[Part]] = {"before": Step, "after": Step, "adds": Addition, "joint": Step}
        for slot, kind in several.items():
            given = getattr(self, slot)
            if not isinstance(given, (tuple, list)) or not all(isinstance(part, kind) for part in given):
                raise RecipeError(f"{slot} is a tuple of {kind.__name__} parts, got {given!r}")
            object.__setattr__(self, slot, tuple(given))
        single: dict[str, type[Part]] = {"attention": Attention, "readout": Readout, "stitch": Stitch, "spread": Spread}
        for slot, kind in single.items():
            given = getattr(self, slot)
            if not isinstance(given, kind) and not (given is None and slot in ("stitch", "spread")):
                raise RecipeError(f"{slot} is a part of kind {kind.__name__}, got {given!r}")
        if not isinstance(self.residual, bool) and self.residual != CLS:
            raise RecipeError(f"residual is True, False or '{CLS}', got {self.residual!r}")
        if not isinstance(self.ffn, bool):
            raise RecipeError(f"ffn is True or False, got {self.ffn!r}")
        counts = isinstance(self.blocks, int) and not isinstance(self.blocks, bool) and self.blocks >= 1
        if not counts and not isinstance(self.blocks, SecondStream):
            raise RecipeError(f"blocks is a number of at least 1, or a SecondStream, got {self.blocks!r}")
        check(self.position_rule, POSITION_RULES, "position_rule")
        for slot in ("published", "settings"):
            given = getattr(self, slot)
            if not isinstance(given, Mapping) or (
                slot == "settings" and not all(isinstance(changes, Mapping) for changes in given.values())
            ):
                raise RecipeError(
                    f"{slot} is {given!r}; give a mapping of slots to parts, one for each benchmark in settings"
                )
            object.__setattr__(self, slot, dict(given))
        for part in within((self.blocks, *self.slots)):
            check_types(part)

    def _contradictions(self) -> Iterator[str]:
        """The rules that the recipe breaks."""
        stream = isinstance(self.blocks, SecondStream)
        trained = self.attention == TRAINED and self.residual is True and self.ffn
        models = set(found(Proxy, self.slots))
        if len(models) > 1:
            several = ", ".join(sorted(map(repr, models)))
            yield f"its parts read several proxies, or several features of one: {several}; name the same one in all"
        for slot in ("before", "after", "joint"):
            for step in getattr(self, slot):
                if slot not in step.places:
                    yield f"{step!r} cannot stand in {slot}, but in {' or '.join(step.places)}"
        if self.spread is not None and not models:
            yield "scores are spread by what another model sees; let the spread hold a Proxy"
        if stream and not (self.residual is True and self.ffn):
            yield "a second stream adds up outputs of attention alone; leave residual and ffn as they are"
        if (stream or self.blocks != 1) and (self.patches_only or self.adds or "text" in self.reads):
            yield "patches alone, second passes and further sources are for the last block; leave blocks out"
        if not stream and max(self.taps(DEPTH), default=0) > DEPTH - self.rewired:
            yield "it reads the output of a block that it rewires; tap earlier ones, or rewire fewer"
        if not stream and self.blocks != 1 and trained:
            yield f"the last {self.blocks} blocks are as trained; leave blocks out"
        if self.patches_only and (self.residual or self.ffn):
            yield "its last block works on patches alone; set residual=False, ffn=False"
        untouched = trained and self.blocks == 1 and not (self.before or self.after or self.adds or self.joint)
        if self.readout.leaves is not None and not untouched:
            yield f"{self.readout!r} runs the blocks itself, as trained; leave the slots of the block as they are"

    def _try_changes(self) -> None:
        """Make each variant once, so that a wrong one is refused here."""
        slots = tuple(entry.name for entry in fields(self) if entry.name not in ("name", "published", "settings"))
        for slot, value in self.published.items():
            check(slot, slots, "published slot")
            if getattr(self, slot) == value:
                raise RecipeError(f"published {slot} is the recipe's own; leave it out")
        for benchmark, changes in self.settings.items():
            for slot in changes:
                check(slot, (*slots, "published"), f"slot of the settings for {benchmark}")
            replace(self, **{"settings": {}, **changes})
        if self.published:
            replace(self, **{"published": {}, "settings": {}, **self.published})

    @cached_property
    def slots(self) -> tuple[Any, ...]:
        """The values of all slots that hold parts."""
        steps = (self.before, self.after, self.adds, self.joint)
        return (self.attention, *steps, self.readout, self.stitch, self.spread)

    @cached_property
    def reads(self) -> frozenset[str]:
        """Its inputs besides the pixels: "proxy", "sam", "regions", "masks", "text", "boxes"; see `hints.HOW`."""
        return frozenset[str]().union(*(part.own_reads for part in within(self.slots)))

    @cached_property
    def proxy(self) -> Proxy | None:
        """The model it borrows from, as published, and which features; None if it borrows from none."""
        return next(iter(found(Proxy, self.slots)), None)

    @cached_property
    def clusters(self) -> bool:
        """Whether the similarity of patches is returned with the features, so that clusters can vote (CLIPtrase)."""
        return getattr(self.readout, "likeness", None) is not None

    @cached_property
    def needs_cls(self) -> bool:
        """Whether it needs a tower with a CLS token."""
        return self.residual == CLS or any(part.needs_cls for part in within(self.slots))

    @cached_property
    def patches_only(self) -> bool:
        """Whether the last block works on patches without leading tokens."""
        return self.attention.patches_only or bool(self.before or self.after)

    @cached_property
    def is_trained(self) -> bool:
        """Whether every block runs as trained, whatever is read from them."""
        return self.rewired == 0

    @cached_property
    def rewired(self) -> int:
        """How many of the last blocks the trunk leaves to the recipe."""
        if self.readout.leaves is not None:
            return self.readout.leaves
        if isinstance(self.blocks, SecondStream):
            return self.blocks.blocks
        joined = self.stitch is not None and self.stitch.projections
        as_trained = self.attention == TRAINED and self.residual is True and self.ffn and not self.adds
        return 0 if as_trained and not joined else self.blocks

    @cached_property
    def projects(self) -> str:
        """The projections that the last block must compute, a subset of "qkv" in that order."""
        return self.readout.projects or self.attention.projects

    def taps(self, depth: int) -> frozenset[int]:
        """The blocks whose outputs it reads, in a tower of `depth` blocks; 0 is the input of the first."""
        if depth not in self._tapped:
            self._tapped[depth] = frozenset[int]().union(*(part.own_taps(depth) for part in within(self.slots)))
        return self._tapped[depth]

    @cached_property
    def _tapped(self) -> dict[int, frozenset[int]]:
        return {}

    def as_published(self) -> Recipe:
        """The recipe with its authors' slips, including its settings by benchmark."""
        if not self.published:
            return self
        settings = {name: {**own, **own.get("published", {}), "published": {}} for name, own in self.settings.items()}
        return replace(self, **{"published": {}, "settings": settings, **self.published})

    def on(self, benchmark: str) -> Recipe:
        """The recipe with its paper's settings for a benchmark, or itself if the paper has no settings by benchmark.

        Raises:
            RecipeError: the paper has settings by benchmark, but not for this one.
        """
        known = self.settings
        reported = self.source.miou if self.source is not None else {}
        if benchmark not in known and (not known or benchmark in reported):
            return self
        if benchmark not in known:
            raise RecipeError(
                f"recipe '{self.name}' has no settings for '{benchmark}'{suggest(benchmark, known)}; it has them for "
                f"{', '.join(known)}; leave benchmark out for its general ones"
            )
        return replace(self, **known[benchmark])

    def clauses(self) -> list[str]:
        """The recipe in plain words, a clause per part; the first says how tokens attend to each other."""
        if self.readout.leaves is not None:
            first = [str(self.readout)]
        elif self.is_trained:
            first = ["the tower runs as it was trained"]
        else:
            first = [f"in {self._where()}: {self.attention}"]
            if not isinstance(self.blocks, SecondStream):
                kept = {True: "kept", False: "dropped", CLS: "that of CLS for every token"}
                first.append(f"skip connection {kept[self.residual]}, MLP {kept[self.ffn]}")
        clauses = [f"before it {step}" for step in self.before] + [f"after it {step}" for step in self.after]
        clauses += [str(source) for source in self.adds] + [f"at the end {step}" for step in self.joint]
        if self.readout.leaves is None and self.readout != Tokens():
            clauses.append(str(self.readout))
        return first + clauses + [str(part) for part in (self.stitch, self.spread) if part is not None]

    def explain(self) -> str:
        """The recipe in plain words, one sentence."""
        text = "; ".join(self.clauses())
        return f"{text[0].upper()}{text[1:]}."

    def _where(self) -> str:
        if isinstance(self.blocks, SecondStream):
            return f"a second stream beside the last {self.blocks.blocks} blocks"
        return "the last block" if self.blocks == 1 else f"the last {self.blocks} blocks"

    def code(self) -> list[str]:
        """The slots that differ from their defaults, each as Python, the name first."""
        slots = [entry for entry in fields(self) if entry.compare and getattr(self, entry.name) != entry.default]
        return [f"{entry.name}={as_code(getattr(self, entry.name))}" if i else as_code(self.name)
                for i, entry in enumerate(slots)]  # fmt: skip

    def __repr__(self) -> str:
        return f"Recipe({', '.join(self.code())})"
