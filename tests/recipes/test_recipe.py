"""Recipes refuse nonsense with the reason, and the catalogue tells what it holds."""

from __future__ import annotations

import dataclasses

import pytest

from densevl.errors import RecipeError
from densevl.recipes import Gaussian, Recipe, get, names


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"terms": ()}, "no terms"),
        ({"terms": ("qq", "qq")}, "named twice"),
        ({"terms": ("qv",)}, "'qv' is not one of"),
        ({"combine": "sum"}, "combine 'sum'"),
        ({"metric": "l2"}, "metric 'l2'"),
        ({"position_rule": "nearest"}, "position_rule 'nearest'"),
        ({"terms": ("id", "kk"), "combine": "logit-sum"}, "logits of their own"),
        ({"temperature": 0.0}, "above 0"),
        ({"temperature": "hot"}, "temperature is a number"),
        ({"temperature": "adaptive"}, "needs metric='cosine'"),
        ({"gain": 0.0}, "gain"),
        ({"iterations": 1}, "iterations need"),
        ({"iterations": 1, "metric": "cosine", "terms": ("qk",)}, "iterations need"),
        ({"terms": ("id",), "bias": Gaussian(2.0)}, "no effect on 'id'"),
        ({"dual_layers": 6}, "running sum without FFN"),
        ({"dual_layers": -1}, "cannot be negative"),
    ],
)
def test_impossible_combinations_say_why(fields, reason) -> None:
    with pytest.raises(RecipeError, match=reason):
        Recipe("x", **fields)


def test_unknown_recipe_names_the_closest() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'slcip' \(closest: sclip"):
        get("slcip")


@pytest.mark.parametrize("spelling", ["CLIP Surgery", "clip-surgery", " clip_surgery "])
def test_spelling_does_not_matter(spelling) -> None:
    assert get(spelling).name == "clip_surgery"


def test_a_variant_is_validated_like_a_recipe() -> None:
    assert dataclasses.replace(get("sclip"), ffn=False).ffn is False
    with pytest.raises(RecipeError):
        dataclasses.replace(get("maskclip"), bias=Gaussian(3.0))


def test_a_recipe_prints_itself() -> None:
    assert eval(repr(get("naclip")), {"Recipe": Recipe, "Gaussian": Gaussian}) == get("naclip")


@pytest.mark.parametrize("name", names())
def test_every_entry_is_explained_and_cited(name) -> None:
    recipe = get(name)
    assert recipe.explain().endswith(".")
    assert recipe.source is not None
    assert recipe.source.url.startswith("https://")


def test_only_what_is_read_is_projected() -> None:
    few = ["vanilla", "maskclip", "maskclip_value", "clip_surgery", "gem", "sclip", "clearclip", "naclip", "proxyclip"]
    assert {name: get(name).needs for name in few} == {
        "proxyclip": "v",
        "vanilla": "qkv",
        "maskclip": "v",
        "maskclip_value": "v",
        "clip_surgery": "v",
        "gem": "qkv",
        "sclip": "qkv",
        "clearclip": "qv",
        "naclip": "kv",
    }
