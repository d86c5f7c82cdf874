"""Template sets: how many, none twice, one place for the label; ours are not CLIP's."""

from __future__ import annotations

import pytest

from densevl.errors import OptionError
from densevl.vocabulary.template_sets import DEPICTIONS, GAMES, PHOTOGRAPHS, SETS, SNAPSHOTS, TOYS
from densevl.vocabulary.templates import NAMES, templates

COUNTS = {
    "plural": 2,
    "openai": 80,
    "simple": 7,
    "name": 1,
    "photo": 1,
    "scene-photo": 1,
    "broad": 80,
    "short": 7,
    "dense": 14,
    "scene": 5,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_set_holds_no_template_twice_and_one_place_for_the_label(name) -> None:
    found = templates(name)
    assert len(found) == COUNTS.get(name, 7)
    assert len(set(found)) == len(found)
    assert all(template.count("{}") == 1 and "*" not in template for template in found)


def test_the_broad_set_has_the_make_up_of_the_80() -> None:
    assert [len(part) for part in (PHOTOGRAPHS, SNAPSHOTS, DEPICTIONS, TOYS, GAMES)] == [43, 3, 24, 8, 2]


def test_our_sets_are_our_own() -> None:
    ours = {template for name, found in SETS.items() if name != "photo" for template in found if template != "{}"}
    shared = ours & {*templates("openai"), *templates("simple")}
    assert shared <= {
        "a photo of many {}.",
        "a drawing of a {}.",
        "a sketch of the {}.",
        "a painting of the {}.",
        "a painting of a {}.",
    }


def test_sets_add_up() -> None:
    assert len(templates("openai + scene")) == 85
    assert templates("1 + 1 = {}") == ("1 + 1 = {}",)


@pytest.mark.parametrize("spec", ["", "opnai", "openai+", "openai+sene", [], ["no mark"]])
def test_unusable_templates(spec) -> None:
    with pytest.raises(OptionError):
        templates(spec)
