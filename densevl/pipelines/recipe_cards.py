"""What `densevl recipes` says of a recipe: what it changes in a few words, and what it needs and how that is given."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields, is_dataclass

from densevl.recipes import Gaussian, Recipe
from densevl.recipes.parts import Foveal, Term

_TERMS = {"id": "own value only", "proxy": "proxy affinity"}
_SCORINGS = {"surgery": "shared part taken off", "contrast": "less the mean score", "cls-mix": "image score"}
_VENUES = (("Pattern Recognition", "PR"), (" Workshops", "W"))
_OPTION = "--{0} (in Python Segmenter({0}=...))"
SHIPPED = "mini-sam"


@dataclass(frozen=True)
class Need:
    """Something a recipe reads besides the photo and the words.

    Attributes:
        name: "proxy", "sam", "regions", "text" or "boxes". how: how it is given, a sentence.
        optional: whether the recipe also runs without.
    """

    name: str
    how: str
    optional: bool = False


def needs(recipe: Recipe) -> tuple[Need, ...]:
    """What a recipe reads, and how each is given."""
    found = []
    if recipe.reads_proxy:
        own = f"; if left out, the paper's {recipe.proxy.model}" if recipe.proxy is not None else ""
        found.append(Need("proxy", f"{_OPTION.format('proxy')}, a name or file, {SHIPPED} is in the package{own}"))
    if recipe.whole is not None:
        found.append(Need("sam", f"{_OPTION.format('sam')}, a checkpoint of SAM, {SHIPPED} is in the package"))
    if recipe.readout == "regions" or any(term.regions for term in recipe.parts):
        found.append(
            Need(
                "regions",
                f"segments of each photo, a map or masks with the call: segment(image, labels, regions=...); --regions "
                f"{SHIPPED} proposes them for drawings",
            )
        )
    if recipe.feedback is not None:
        found.append(
            Need("text", "the words, which Segmenter passes on; encode_dense(text=...), else it looks once", True)
        )
    if isinstance(recipe.bias, Foveal):
        found.append(Need("boxes", "where to look, by encode_dense(boxes=...); else the whole image is the box", True))
    return tuple(found)


def short_needs(recipe: Recipe) -> str:
    """The needs in one cell: those in brackets may be left out."""
    return ", ".join(f"({need.name})" if need.optional else need.name for need in needs(recipe))


def short_venue(recipe: Recipe) -> str:
    """Where it appeared, abbreviated."""
    venue = recipe.source.venue if recipe.source else ""
    for long, brief in _VENUES:
        venue = venue.replace(long, brief)
    return venue


def as_code(value: object) -> str:
    """A recipe, or a part of one, as the call that makes it, defaults left out."""
    if isinstance(value, tuple):
        return f"({', '.join(map(as_code, value))}{',' * (len(value) == 1)})"
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    given = []
    for entry in fields(value):
        own = getattr(value, entry.name)
        if entry.repr and (entry.default is MISSING or own != entry.default):
            given.append(f"{entry.name}={as_code(own)}")
    return f"{type(value).__name__}({', '.join(given)})"


def short(recipe: Recipe) -> str:
    """What a recipe changes, in a few words: "bare kk, Gaussian", where bare means no skip connection and no MLP."""
    if recipe.readout == "contributions":
        return "each patch's direct share in CLS"
    if recipe.is_native and recipe.scoring == "cosine":
        return "nothing"
    if recipe.readout == "regions":
        look = "values pooled over masks"
    else:
        look = " + ".join(dict.fromkeys(_term(term) for term in recipe.parts))
    around = [
        (isinstance(recipe.bias, Gaussian), "Gaussian"),
        (isinstance(recipe.bias, Foveal), "CLS drawn to a box"),
        (recipe.pairing is not None, "heads paired with a proxy's"),
        (bool(recipe.dual_layers), f"second stream over {recipe.dual_layers} blocks"),
        (recipe.blocks > 1, f"last {recipe.blocks} blocks"),
        (recipe.feedback is not None, "looks twice"),
        (recipe.purify is not None, "outliers repaired"),
        (bool(recipe.values), "more layers"),
        (recipe.joint is not None, "smoothed by a proxy"),
        (recipe.spread is not None, "scores propagated"),
        (recipe.scope is not None and bool(recipe.scope.cls), "CLS of regions"),
        (recipe.stitch != "none", "stitched windows"),
        (recipe.whole is not None, "spread by SAM"),
        (recipe.scoring in _SCORINGS, _SCORINGS.get(recipe.scoring, "")),
    ]
    text = ", ".join([look, *(words for holds, words in around if holds)])
    if recipe.dual_layers or recipe.readout == "regions" or recipe.ffn:
        return text
    return f"{text}, no MLP" if recipe.residual else f"bare {text}"


def _term(term: Term) -> str:
    if term.kind == "tap":
        return f"like patches at block {term.layers[0]}"
    text = _TERMS.get(term.kind, term.kind)
    if term.layers:
        text += f" of block{'s' * (len(term.layers) > 1)} {_blocks(term.layers)}"
    return text + (" within regions" if term.regions else "")


def _blocks(layers: tuple[int, ...]) -> str:
    """(4, 5, 6) as "4-6", (7, 8, 10) as "7,8,10"."""
    whole = len(layers) > 2 and layers == tuple(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if whole else ",".join(map(str, layers))
