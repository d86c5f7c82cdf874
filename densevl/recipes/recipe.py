"""`Recipe`: one dense-prediction method as data.

A recipe says how the last block of a CLIP tower is rewired so that patch tokens keep their own meaning:

    A = gain * combine_t softmax(temperature * metric(a_t, b_t) + bias)        t over `terms`
    y = residual * x + O(A v) ;  y = y + FFN(y) if ffn ;  features = projection(layer norm(y))

Legend of terms: "qk" is CLIP's own attention; "qq", "kk", "vv" correlate a projection with itself; "id" is the
identity, each token reading its own value. A sum of logits gets the bias once. With `dual_layers` = n the rewired
attention of the last n blocks is summed in a second stream beside the untouched one (CLIP Surgery, GEM).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from densevl.errors import RecipeError, suggest

TERMS = ("qk", "qq", "kk", "vv", "id")
COMBINES = ("prob-sum", "prob-mean", "logit-sum")
METRICS = ("dot", "cosine")
POSITION_RULES = ("size", "size_antialias", "scale_factor", "bilinear")
ADAPTIVE = "adaptive"


@dataclass(frozen=True)
class Gaussian:
    """Neighbourhood bias exp(-dist^2 / (2 std^2)) added to the logits; `std` in patches, 0 for CLS (NACLIP)."""

    std: float


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
        terms: one or more of "qk", "qq", "kk", "vv", "id".
        combine: "prob-sum" adds the softmaxes (rows sum to the number of terms), "prob-mean" averages them,
            "logit-sum" adds the logits before one softmax.
        gain: multiplies the attention output; matters only beside a residual.
        temperature: multiplies the logits; "adaptive" is GEM's: mean token norm over sqrt(head width), per image.
        metric: "dot" is a.b / sqrt(d); "cosine" normalises both first and does not divide.
        iterations: with "cosine" and self terms, how often a projection is replaced by its own attention average.
        bias: None or a `Gaussian`.
        residual, ffn: whether the block's skip connection and its MLP are kept.
        cls_key: whether CLS is among the keys.
        dual_layers: 0 for a single rewired block; n for a second stream over the last n blocks.
        position_rule: how the positional grid is resized for other input sizes (see `backbones.positions`).
        source: the paper, or None for a variant of your own.
        note: one line a user should know.
    """

    name: str
    terms: tuple[str, ...] = ("qk",)
    combine: str = "prob-sum"
    gain: float = 1.0
    temperature: float | str = 1.0
    metric: str = "dot"
    iterations: int = 0
    bias: Gaussian | None = None
    residual: bool = True
    ffn: bool = True
    cls_key: bool = True
    dual_layers: int = 0
    position_rule: str = "scale_factor"
    source: Source | None = field(default=None, repr=False, compare=False)
    note: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(self.terms))
        for value, allowed, what in [
            *((term, TERMS, "term") for term in self.terms),
            (self.combine, COMBINES, "combine"),
            (self.metric, METRICS, "metric"),
            (self.position_rule, POSITION_RULES, "position_rule"),
        ]:
            if value not in allowed:
                known = ", ".join(allowed) + suggest(value, allowed)
                raise RecipeError(f"recipe '{self.name}': {what} {value!r} is not one of {known}")
        for broken, reason in self._contradictions():
            if broken:
                raise RecipeError(f"recipe '{self.name}': {reason}")

    def _contradictions(self) -> list[tuple[bool, str]]:
        numeric = isinstance(self.temperature, (int, float))
        only_identity = set(self.terms) == {"id"}
        return [
            (not self.terms, "it has no terms; give at least one of " + ", ".join(TERMS)),
            (len(set(self.terms)) < len(self.terms), "a term is named twice; use gain to weigh it"),
            (
                "id" in self.terms and self.combine == "logit-sum",
                "'id' has no logits to sum; use prob-sum or prob-mean",
            ),
            (not numeric and self.temperature != ADAPTIVE, f"temperature is a number above 0 or {ADAPTIVE!r}"),
            (numeric and not self.temperature > 0, "temperature must be above 0"),  # type: ignore[operator]
            (not self.gain > 0, "gain must be above 0"),
            (self.temperature == ADAPTIVE and self.metric != "cosine", "an adaptive temperature needs metric='cosine'"),
            (self.iterations < 0, "iterations cannot be negative"),
            (
                self.iterations > 0 and (self.metric != "cosine" or "qk" in self.terms or only_identity),
                "iterations need metric='cosine' and self terms (qq, kk, vv) only",
            ),
            (self.bias is not None and not self.bias.std > 0, "the Gaussian's std must be above 0 patches"),
            (self.bias is not None and only_identity, "a bias has no effect on 'id'; leave it out"),
            (self.dual_layers < 0, "dual_layers cannot be negative"),
            (
                self.dual_layers > 0 and (self.ffn or not self.residual),
                "a dual stream is a running sum without FFN; set residual=True, ffn=False",
            ),
        ]

    @property
    def needs(self) -> str:
        """The projections the rewired block must compute, a subset of "qkv" in that order."""
        letters = set("".join(term for term in self.terms if term != "id")) | {"v"}
        return "".join(letter for letter in "qkv" if letter in letters)

    @property
    def is_native(self) -> bool:
        """True when nothing is rewired: the tower's own last block runs as it is."""
        return self == Recipe(self.name, position_rule=self.position_rule)

    def explain(self) -> str:
        """The recipe in plain words, one sentence a part."""
        if self.is_native:
            return "The tower as it was trained: nothing is rewired."
        where = f"the last {self.dual_layers} blocks, as a second stream" if self.dual_layers else "the last block"
        reads = {
            "qk": "queries look at keys, as trained",
            "qq": "queries look at queries",
            "kk": "keys look at keys",
            "vv": "values look at values",
            "id": "each patch reads only its own value",
        }
        how = {"prob-sum": "added", "prob-mean": "averaged", "logit-sum": "added before one softmax"}
        parts = [f"In {where}: " + "; ".join(reads[t] for t in self.terms)]
        if len(self.terms) > 1:
            parts[0] += f" ({how[self.combine]})"
        if self.bias:
            parts.append(f"nearby patches count more (Gaussian, {self.bias.std:g} patches)")
        if self.metric == "cosine":
            parts.append("similarity is the cosine" + (", sharpened per image" if self.temperature == ADAPTIVE else ""))
        if not self.dual_layers:
            kept = {True: "kept", False: "dropped"}
            parts.append(f"skip connection {kept[self.residual]}, MLP {kept[self.ffn]}")
        if not self.cls_key:
            parts.append("patches do not look at CLS")
        return "; ".join(parts) + "."
