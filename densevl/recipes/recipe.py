"""`Recipe`: one dense-prediction method as data.

A recipe says how the last block of a tower is rewired so that patch tokens keep their own meaning:

    A = gain * combine_t weight_t * softmax(temperature * metric(a_t, b_t) + bias)        t over `terms`
    y = residual * x + O(A v) + cls_mix * x_CLS ;  y = y + FFN(y) if ffn ;  features = projection(layer norm(y))

Legend of terms: "qk" is CLIP's own attention; "qq", "kk", "vv" correlate a projection with itself; "id" is the
identity, each token reading its own value. `parts.Term` weighs them, takes them from other blocks, or compares tapped
or borrowed features instead. A sum of logits gets the bias once. With `dual_layers` = n the rewired attention of the
last n blocks is summed in a second stream beside the untouched one (CLIP Surgery, GEM).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

from densevl.errors import RecipeError
from densevl.recipes.explain import explain
from densevl.recipes.parts import (
    AFFINITIES,
    PROJECTIONS,
    Feedback,
    Foveal,
    Gaussian,
    Mix,
    Pairing,
    ProxyUse,
    Purify,
    RegionScope,
    Sinkhorn,
    Smooth,
    Spread,
    Term,
    Values,
    check,
)
from densevl.recipes.validate import contradictions

COMBINES = ("prob-sum", "prob-mean", "logit-sum")
METRICS = ("dot", "cosine")
POSITION_RULES = ("size", "size_antialias", "scale_factor", "bilinear", "bilinear_half")
SCORINGS = ("cosine", "surgery", "contrast", "dot", "layers", "layers-zeroed", "cls-mix")
READOUTS = ("tokens", "contributions", "regions")
FUSIONS = ("tokens", "features")
STITCHES = ("none", "qkv", "features")
ADAPTIVE = "adaptive"


@dataclass(frozen=True)
class Source:
    """Where a method comes from, and what its authors report.

    Attributes:
        paper: title; venue: where it appeared; url: where to read it.
        miou: published mIoU in per cent by benchmark name, ViT-B/16 with OpenAI weights unless `protocol` says so.
        protocol: how those figures were taken.
    """

    paper: str
    venue: str
    url: str
    miou: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    protocol: str = ""


@dataclass(frozen=True)
class Recipe:
    """How a last block is rewired; see the module text for the formula.

    Attributes:
        name: lower-case identifier.
        terms: one or more of "qk", "qq", "kk", "vv", "id", or `Term`s.
        combine: "prob-sum" adds the softmaxes (rows sum to the number of terms), "prob-mean" averages them,
            "logit-sum" adds the logits before one softmax.
        gain: multiplies the attention output; matters only beside a residual.
        temperature: multiplies the logits; "adaptive" is GEM's: mean token norm over sqrt(head width), per image.
        metric: "dot" is a.b / sqrt(d); "cosine" normalises both first and does not divide.
        iterations: with "cosine" and self terms, how often a projection is replaced by its own attention average.
        bias: None, a `Gaussian`, or a `Foveal` (which needs boxes).
        residual, ffn: whether the block's skip connection and its MLP are kept.
        cls_key: whether CLS is among the keys.
        cls_mix: this much of the CLS token that enters the last block is added to every patch after attention.
        blocks: how many blocks, the last ones, are rewired one after the other.
        dual_layers: 0 for a single stream; n for a second stream over the last n blocks.
        purify: how outlier patches are replaced before the last block.
        before, after: smoothing of patches over like patches before the last block, and of what its attention gives.
        values: further sources that go through the last block as well; their outputs are added.
        fuse: whether they are added as "tokens", before the last norm, or as "features", after it.
        likeness: a block whose patches' likeness is given as `affinity`, for clustering (CLIPtrase); 0 for none.
        scope: how the segment map is used, for terms that stay within regions.
        feedback: a second pass steered by the first one's scores; needs text.
        pairing: heads of the block paired with heads of the proxy, logits mixed (CASS).
        proxy: which other model the affinity is borrowed from, for terms and smoothing by "proxy".
        readout: "tokens" after the last block; "contributions", each patch's direct share in CLS, over all blocks; or
            "regions", values of the last block pooled over masks and read as one token each, painted back.
        scoring: how words are compared with features; see `recipes.scoring`.
        stitch: "none", each window for itself; "qkv", projections of the last block, or "features", its outputs, are
            averaged onto one grid for the whole image before the rest is done once.
        spread: propagation of all windows' scores over a graph of alike patches.
        whole: mixing over the whole image after stitching; needs SAM's attention.
        joint: smoothing of the features in the joint space.
        quirks: changes to these fields under `compat=True`: what the authors' code does without meaning to.
        position_rule: how the positional grid is resized for other input sizes (see `backbones.positions`).
        source: the paper, or None for a variant of your own.
        note: one line a user should know.
    """

    name: str
    terms: tuple[str | Term, ...] = ("qk",)
    combine: str = "prob-sum"
    gain: float = 1.0
    temperature: float | str = 1.0
    metric: str = "dot"
    iterations: int = 0
    bias: Gaussian | Foveal | None = None
    residual: bool = True
    ffn: bool = True
    cls_key: bool = True
    cls_mix: float = 0.0
    blocks: int = 1
    dual_layers: int = 0
    purify: Purify | None = None
    before: Smooth | None = None
    after: Smooth | None = None
    values: tuple[Values, ...] = ()
    fuse: str = "tokens"
    scope: RegionScope | None = None
    likeness: int = 0
    feedback: Feedback | None = None
    pairing: Pairing | None = None
    proxy: ProxyUse | None = None
    readout: str = "tokens"
    scoring: str = "cosine"
    stitch: str = "none"
    spread: Spread | None = None
    whole: Mix | None = None
    joint: Smooth | None = None
    position_rule: str = "scale_factor"
    quirks: tuple[tuple[str, Any], ...] = ()
    source: Source | None = field(default=None, repr=False, compare=False)
    note: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(self.terms))
        object.__setattr__(self, "values", tuple(self.values))
        try:
            for value, allowed, what in [
                (self.combine, COMBINES, "combine"),
                (self.metric, METRICS, "metric"),
                (self.readout, READOUTS, "readout"),
                (self.scoring, SCORINGS, "scoring"),
                (self.stitch, STITCHES, "stitch"),
                (self.fuse, FUSIONS, "fuse"),
                (self.position_rule, POSITION_RULES, "position_rule"),
            ]:
                check(value, allowed, what)
            broken = [reason for is_broken, reason in contradictions(self) if is_broken]
        except RecipeError as error:
            raise RecipeError(f"recipe '{self.name}': {error}") from None
        if broken:
            raise RecipeError(f"recipe '{self.name}': {broken[0]}")

    @cached_property
    def parts(self) -> tuple[Term, ...]:
        """The terms, each a `Term`."""
        return tuple(term if isinstance(term, Term) else Term(term) for term in self.terms)

    @property
    def needs(self) -> str:
        """The projections the rewired block must compute, a subset of "qkv" in that order."""
        own = {term.kind for term in self.parts if term.kind in PROJECTIONS and not term.layers}
        letters = set("".join(own)) | {"v"}
        return "".join(letter for letter in "qkv" if letter in letters)

    @property
    def is_native(self) -> bool:
        """True when nothing is rewired: the tower's own last block runs as it is."""
        return self.readout == "tokens" and self.is_native_block

    @property
    def is_native_block(self) -> bool:
        """True when the attention blocks are run as trained, whatever is read from them."""
        free = ("name", "readout", "scoring", "position_rule", "source", "note")
        return all(getattr(self, entry.name) == entry.default for entry in fields(self) if entry.name not in free)

    @property
    def rewired(self) -> int:
        """How many blocks, the last ones, do not run as trained."""
        return 0 if self.is_native else self.dual_layers or self.blocks

    @property
    def patches_only(self) -> bool:
        """True when the last block works on patches without CLS: cosines of tapped or borrowed features have none."""
        spreads = self.purify or self.before or self.after or self.pairing or self.cls_mix
        return bool(spreads) or any(term.kind in AFFINITIES for term in self.parts)

    @property
    def sinkhorn(self) -> bool:
        """True when the attention is a normalised sum of other blocks' maps."""
        return isinstance(self.parts[0].rule, Sinkhorn)

    @property
    def reads_proxy(self) -> bool:
        """True when features of another model are needed."""
        smooths = (self.before, self.after, self.joint)
        borrowed = [term.kind for term in self.parts] + [smooth.by for smooth in smooths if smooth is not None]
        return self.pairing is not None or self.spread is not None or "proxy" in borrowed

    def as_published(self) -> Recipe:
        """The recipe with its authors' quirks."""
        return replace(self, **dict(self.quirks)) if self.quirks else self

    def explain(self) -> str:
        """The recipe in plain words, one sentence a part."""
        return explain(self)
