"""The words of `densevl recipes`: short, complete, and true to the catalogue."""

from __future__ import annotations

from dataclasses import replace

import pytest

from densevl.pipelines.recipe_cards import as_code, needs, short, short_needs, short_venue
from densevl.recipes import Gaussian, Recipe, Source, get, names, parts


@pytest.mark.parametrize("name", names())
def test_a_row_stays_short_and_the_code_makes_the_recipe(name) -> None:
    recipe = get(name)
    assert len(short(recipe)) <= 70
    assert len(short_venue(recipe)) <= 10
    assert (short(recipe) == "nothing") == (name == "vanilla")
    made = eval(as_code(recipe), {"Recipe": Recipe, **vars(parts)})
    assert made == recipe


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("sclip", ""),
        ("proxyclip", "proxy"),
        ("fsa", "proxy, (text)"),
        ("resclip", "(text)"),
        ("trident", "proxy, sam"),
        ("corrclip", "proxy, regions"),
        ("textregion", "regions"),
        ("falip", "(boxes)"),
    ],
)
def test_needs_are_named(name, want) -> None:
    assert short_needs(get(name)) == want


@pytest.mark.parametrize("name", [name for name in names() if needs(get(name))])
def test_every_need_says_how_it_is_given(name) -> None:
    for need in needs(get(name)):
        option = {"boxes": "encode_dense(boxes=", "text": "encode_dense(text="}.get(need.name, f"--{need.name}")
        assert option in need.how
        assert need.optional == (need.name in ("boxes", "text"))


@pytest.mark.parametrize(
    ("recipe", "want"),
    [
        (Recipe("a", ("kk",), bias=Gaussian(2.0), residual=False, ffn=False), "bare kk, Gaussian"),
        (Recipe("a", ("kk",), ffn=False), "kk, no MLP"),
        (replace(get("proxyclip"), name="a", stitch="qkv"), "bare proxy affinity, stitched windows"),
    ],
    ids=["bare", "no MLP", "stitched"],
)
def test_recipes_of_your_own_are_described(recipe, want) -> None:
    assert short(recipe) == want


def test_long_venues_are_abbreviated_and_a_recipe_may_have_none() -> None:
    source = Source("T", "CVPR Workshops 2025", "https://x")
    assert short_venue(replace(get("sclip"), source=source)) == "CVPRW 2025"
    assert short_venue(Recipe("a")) == ""
