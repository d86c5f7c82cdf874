"""A recipe in plain words, for `densevl recipes` and the documentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from densevl.recipes.parts import (
    Floor,
    Foveal,
    Gaussian,
    LabelFeedback,
    Relative,
    Sinkhorn,
    Smooth,
    Softmax,
    Term,
    Values,
)

if TYPE_CHECKING:
    from densevl.recipes.recipe import Recipe

_READS = {
    "qk": "queries look at keys, as trained",
    "qq": "queries look at queries",
    "kk": "keys look at keys",
    "vv": "values look at values",
    "id": "each patch reads only its own value",
    "tap": "patches look at patches with like features after block {0}",
    "proxy": "patches look at patches that another model finds alike",
}
_JOINED = {"prob-sum": "added", "prob-mean": "averaged", "logit-sum": "added before one softmax"}
_SCORING = {
    "surgery": "what all words share is taken off the scores",
    "contrast": "scores are how much a word gains over the mean of all words",
    "layers": "probabilities are averaged over the sources and spread along the attention",
    "cls-mix": "scores are mixed with the image's own",
}


def explain(recipe: Recipe) -> str:
    """One sentence a part."""
    if recipe.readout == "contributions":
        parts = ["Each patch's direct contribution to CLS, summed over all blocks, instead of the patch tokens"]
    elif recipe.readout == "regions":
        parts = ["Values of the last block pooled over each mask, read as one token and painted back"]
    elif recipe.is_native:
        return "The tower as it was trained: nothing is rewired."
    else:
        parts = [*_attention(recipe), *_block(recipe)]
    return "; ".join([*parts, *_around(recipe)]) + "."


def _attention(recipe: Recipe) -> list[str]:
    where = "the last block"
    if recipe.dual_layers:
        where = f"the last {recipe.dual_layers} blocks, as a second stream"
    elif recipe.blocks > 1:
        where = f"the last {recipe.blocks} blocks"
    parts = [f"In {where}: " + "; ".join(_term(term) for term in recipe.parts)]
    if len(recipe.parts) > 1:
        parts[0] += f" ({_JOINED[recipe.combine]})"
    if isinstance(recipe.bias, Gaussian):
        parts.append(f"nearby patches count more (Gaussian, {recipe.bias.std:g} patches)")
    if isinstance(recipe.bias, Foveal):
        parts.append("CLS looks more at the middle of a box")
    if recipe.metric == "cosine":
        parts.append("similarity is the cosine" + (", sharpened per image" if recipe.temperature == "adaptive" else ""))
    if recipe.feedback is not None:
        drawn = "labels" if isinstance(recipe.feedback, LabelFeedback) else "scores"
        parts.append(f"a second pass draws patches with like {drawn} together")
    if recipe.pairing:
        parts.append("each head's logits are mixed with those of a paired head of another model")
    return parts


def _term(term: Term) -> str:
    text = _READS[term.kind].format(*term.layers or ("",))
    if term.kind not in ("tap",) and term.layers:
        text += f", in block{'s' * (len(term.layers) > 1)} {_numbers(term.layers)}"
    match term.rule:
        case Relative():
            text += " more than the average"
        case Floor(floor):
            text += f", from cosine {floor:g}"
        case Softmax(temperature):
            text += f" (softmax of {temperature:g} x cosine)"
        case Sinkhorn():
            text += ", normalised both ways"
    return text + (", within a region" if term.regions else "") + (f", x {term.weight:.2g}" if term.weight != 1 else "")


def _numbers(layers: tuple[int, ...]) -> str:
    """(4, 5, 6) as "4 to 6", (7, 8, 10) as "7, 8, 10"."""
    if len(layers) > 2 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))


def _block(recipe: Recipe) -> list[str]:
    parts = []
    if not recipe.dual_layers:
        kept = {True: "kept", False: "dropped"}
        parts.append(f"skip connection {kept[recipe.residual]}, MLP {kept[recipe.ffn]}")
    if not recipe.cls_key and not recipe.patches_only:
        parts.append("patches do not look at CLS")
    if recipe.cls_mix:
        parts.append(f"{recipe.cls_mix:g} of CLS is added")
    return parts


def _around(recipe: Recipe) -> list[str]:
    parts = []
    if recipe.purify:
        parts.append("outlier patches are first replaced by their neighbours' mean")
    for smooth, when in ((recipe.before, "before it"), (recipe.after, "after it"), (recipe.joint, "at the end")):
        if smooth:
            parts.append(f"{when} features spread over like patches ({_by(smooth)}, from cosine {smooth.floor:g})")
    parts += [_value(value) for value in recipe.values[:1]]
    if recipe.stitch != "none":
        parts.append("windows are stitched into one grid first")
    if recipe.spread is not None:
        parts.append("scores of all windows flow between patches that another model finds alike")
    if recipe.whole is not None:
        parts.append("the whole image is spread by the attention of SAM's encoder")
    if recipe.scope is not None and recipe.scope.cls:
        parts.append(f"{recipe.scope.cls:g} of each region's own image embedding is added")
    if recipe.likeness:
        parts.append(f"how alike patches are in block {recipe.likeness} comes out too, for clustering")
    if recipe.scoring in _SCORING:
        parts.append(_SCORING[recipe.scoring])
    return parts


def _by(smooth: Smooth) -> str:
    return "of another model" if smooth.by == "proxy" else f"after block {smooth.layer}"


def _value(value: Values) -> str:
    what = "normalised inputs" if value.normed else "outputs"
    return f"{what} of other blocks go through it as well"
