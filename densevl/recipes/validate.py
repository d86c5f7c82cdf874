"""Which recipes make no sense, each with the reason; `Recipe` asks when it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from densevl.recipes.parts import AFFINITIES, PROJECTIONS, Foveal, Gaussian, ScoreFeedback, Sinkhorn

if TYPE_CHECKING:
    from densevl.recipes.recipe import Recipe

ADAPTIVE = "adaptive"


def contradictions(recipe: Recipe) -> list[tuple[bool, str]]:
    """Pairs of (whether the recipe breaks the rule, the rule)."""
    return [*_attention(recipe), *_block(recipe), *_around(recipe)]


def _attention(recipe: Recipe) -> list[tuple[bool, str]]:
    kinds = {term.kind for term in recipe.parts}
    numeric = isinstance(recipe.temperature, (int, float))
    only_identity = kinds == {"id"}
    borrowed = kinds & set(AFFINITIES)
    return [
        (not recipe.terms, "it has no terms; give at least one of " + ", ".join((*PROJECTIONS, "id", *AFFINITIES))),
        (len(set(recipe.parts)) < len(recipe.parts), "a term is named twice; use its weight, or gain"),
        (
            recipe.combine == "logit-sum" and ("id" in kinds or bool(borrowed)),
            "only terms with logits of their own can be summed as logits; use prob-sum or prob-mean",
        ),
        (
            recipe.combine == "logit-sum" and any(term.layers for term in recipe.parts),
            "maps of other blocks are probabilities; use prob-sum or prob-mean",
        ),
        (not numeric and recipe.temperature != ADAPTIVE, f"temperature is a number above 0 or {ADAPTIVE!r}"),
        (numeric and not recipe.temperature > 0, "temperature must be above 0"),  # type: ignore[operator]
        (not recipe.gain > 0, "gain must be above 0"),
        (recipe.temperature == ADAPTIVE and recipe.metric != "cosine", "an adaptive temperature needs metric='cosine'"),
        (recipe.iterations < 0, "iterations cannot be negative"),
        (
            recipe.iterations > 0 and (recipe.metric != "cosine" or not kinds <= {"qq", "kk", "vv"}),
            "iterations need metric='cosine' and self terms (qq, kk, vv) only",
        ),
        (isinstance(recipe.bias, Gaussian) and only_identity, "a bias has no effect on 'id'; leave it out"),
        (isinstance(recipe.bias, Foveal) and kinds != {"qk"}, "a foveal bias steers the trained attention: terms 'qk'"),
        (
            any(isinstance(term.rule, Sinkhorn) for term in recipe.parts) and len(recipe.parts) > 1,
            "Sinkhorn maps stand alone; leave the other terms out",
        ),
    ]


def _block(recipe: Recipe) -> list[tuple[bool, str]]:
    plain = recipe.blocks == 1 and not recipe.dual_layers
    return [
        (recipe.blocks < 1, "blocks is at least 1"),
        (recipe.dual_layers < 0, "dual_layers cannot be negative"),
        (
            recipe.dual_layers > 0 and (recipe.ffn or not recipe.residual),
            "a dual stream is a running sum without FFN; set residual=True, ffn=False",
        ),
        (recipe.dual_layers > 0 and recipe.blocks > 1, "dual_layers already says how many blocks are rewired"),
        (
            recipe.patches_only and (recipe.residual or recipe.ffn),
            "its last block works on patches alone; set residual=False, ffn=False",
        ),
        (
            not plain and (recipe.patches_only or recipe.feedback is not None or bool(recipe.values)),
            "tapped, borrowed and second-pass attention belongs to the last block; leave blocks and dual_layers out",
        ),
        (recipe.readout == "contributions" and (not recipe.is_native_block or not plain), "contributions are read "
         "from the trained blocks; leave terms, residual, ffn and blocks as they are"),
    ]  # fmt: skip


def _around(recipe: Recipe) -> list[tuple[bool, str]]:
    return [
        (recipe.reads_proxy and recipe.proxy is None, "it reads a proxy; say which with proxy=ProxyUse(...)"),
        (recipe.proxy is not None and not recipe.reads_proxy, "nothing in it reads the proxy; leave proxy out"),
        (
            isinstance(recipe.feedback, ScoreFeedback) and {term.kind for term in recipe.parts} != {"proxy"},
            "score feedback is composed with one proxy term",
        ),
        (
            recipe.whole is not None and recipe.stitch != "features",
            "whole mixes stitched features; set stitch='features'",
        ),
        (recipe.scope is None and any(term.regions for term in recipe.parts), "a term stays within regions; set scope"),
        (
            recipe.stitch == "qkv" and (recipe.purify is not None or recipe.before is not None),
            "patches are purified before they are projected; stitch features instead",
        ),
        (recipe.scoring.startswith("layers") and not recipe.values, "scores are fused over values; give some"),
    ]
