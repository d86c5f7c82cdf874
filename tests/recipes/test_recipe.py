"""Recipes refuse nonsense with the reason, print and explain themselves, and the catalogue tells what it holds."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest

from densevl import recipes
from densevl.errors import RecipeError
from densevl.recipes import (
    AddCls,
    Affinity,
    Attention,
    BalancedMaps,
    BlockAttention,
    BlockInputs,
    BoxAttention,
    Contributions,
    CosineAttention,
    FeatureSurgery,
    Floor,
    Gaussian,
    Hints,
    Identity,
    JoinedFeatures,
    JoinedProjections,
    LabelFeedback,
    LabelPropagation,
    OtherBlocks,
    PairedHeads,
    PooledRegions,
    Proxy,
    Recipe,
    RegionEmbedding,
    Regions,
    Relative,
    RepairByAttention,
    RepairByDensity,
    ScoredSources,
    ScoreFeedback,
    SecondStream,
    SelfAttention,
    Smooth,
    Sum,
    Tap,
    Tokens,
    TwoPass,
    get,
    names,
)
from densevl.recipes.hints import HOW, OPTIONAL

BARE = {"residual": False, "ffn": False}
DINO = Proxy("dino_vitb8")
LIKE = Affinity(DINO, Relative())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: SelfAttention("qv"), "'qv' is not one of"),
        (lambda: SelfAttention("kk", temperature=0.0), "temperature must be above 0"),
        (lambda: CosineAttention("kk", "hot"), "temperature is a number or 'adaptive'"),
        (lambda: CosineAttention("qk", iterations=1), "only qq, kk and vv average themselves"),
        (lambda: SelfAttention("qq") + SelfAttention("qq"), "named twice"),
        (lambda: 0 * SelfAttention("qq"), "weight of an attention must be above 0"),
        (lambda: Sum(()), "at least two attentions"),
        (lambda: Sum(((1.0, Identity()),)), "at least two attentions"),
        (lambda: BlockAttention("qk", ()), "each within 1..12"),
        (lambda: Tap(0), "each within 1..12"),
        (lambda: Tokens(13), "each within 1..12"),
        (lambda: Affinity(Tap(9), Relative(), grid="proxy"), "only an affinity of a Proxy"),
        (lambda: Affinity(DINO, Relative(), swapped=True), "set grid=."),
        (lambda: Affinity("proxy", Relative()), "a Tap or a Proxy"),
        (lambda: Affinity(DINO, Relative(), grid="proxy") + SelfAttention("kk"), "cannot be added"),
        (lambda: Proxy("dino_vitb8", "queries"), "proxy features 'queries'"),
        (lambda: Regions(blank="none"), "blank is 'none'"),
        (lambda: TwoPass(Identity(), LabelFeedback()), "steers logits of the block's own"),
        (lambda: TwoPass(TwoPass(SelfAttention("kk"), LabelFeedback()), LabelFeedback()), "within two passes"),
        (lambda: LabelFeedback(share=1.0), "share of label feedback"),
        (lambda: AddCls(0.0), "weight of CLS"),
        (lambda: SecondStream(0), "whole number of at least 1"),
        (lambda: LabelPropagation(DINO, alpha=1.0), "alpha of label propagation"),
        (lambda: LabelPropagation(DINO, neighbours=2.5), "neighbours of label propagation is a whole number"),
        (lambda: SelfAttention("kk", temperature=float("inf")), "temperature must be above 0"),
        (lambda: CosineAttention("kk", iterations=1.5), "iterations is a whole number"),
        (lambda: BlockAttention("qk", 6), "blocks are 6"),
        (lambda: OtherBlocks((6, 6)), "different numbers"),
        (lambda: RepairByDensity(neighbours=0), "neighbours compared"),
        (lambda: RepairByDensity(share=1.0), "share of outliers"),
        (lambda: RepairByAttention(most=0), "most outliers"),
        (lambda: LabelFeedback(threshold=2), "threshold of label feedback"),
        (lambda: ScoreFeedback(share=2), "share of score feedback"),
        (lambda: Floor(float("nan")), "floor of cosines"),
        (lambda: PairedHeads(DINO, rank=1.5), "rank of paired heads"),
        (lambda: Gaussian("5"), "std in patches"),
        (lambda: Sum(None), "pairs of \\(weight, attention\\)"),
        (lambda: Sum((1,)), "pairs of \\(weight, attention\\)"),
        (lambda: SelfAttention("kk") / 0, "divided by"),
    ],
)  # fmt: skip
def test_impossible_parts_say_why(make, reason) -> None:
    with pytest.raises(RecipeError, match=reason):
        make()


@pytest.mark.parametrize(
    ("slots", "reason"),
    [
        ({"attention": SelfAttention("kk", 5.0)}, "neighbourhood of SelfAttention is 5.0; it is declared as Gaussian"),
        ({"attention": CosineAttention("kk", neighbourhood="near")}, "neighbourhood of CosineAttention"),
        ({"attention": PairedHeads("dino"), **BARE}, "proxy of PairedHeads is 'dino'"),
        ({"attention": Affinity(DINO, Relative(beta="x")), **BARE}, "beta of Relative"),
        ({"attention": Affinity(DINO, Relative(), within=1), **BARE}, "within of Affinity"),
        ({"attention": SelfAttention("kk"), "adds": (OtherBlocks((3,), attention="x"),)}, "attention of OtherBlocks"),
        ({"attention": BalancedMaps((2, 3), in_place=True), **BARE}, "further sources use as well"),
        ({"settings": None}, "settings is None"),
        ({"settings": {"voc21": 3}}, "give a mapping"),
        ({"attention": "kk"}, "attention is a part of kind Attention, got 'kk'"),
        ({"attention": None}, "attention is a part"),
        ({"before": Smooth(Tap(4), Floor(0.4))}, "before is a tuple of Step parts"),
        ({"adds": (Smooth(Tap(4), Floor(0.4)),)}, "adds is a tuple of Addition parts"),
        ({"ffn": 0}, "ffn is True or False"),
        ({"blocks": 0}, "blocks is a number"),
        ({"blocks": 2}, "the last 2 blocks are as trained"),
        ({"position_rule": "nearest"}, "position_rule 'nearest'"),
        ({"attention": LIKE}, "patches alone; set residual=False"),
        ({"after": (AddCls(0.3),)}, "patches alone; set residual=False"),
        ({"attention": LIKE, **BARE, "blocks": 2}, "are for the last block"),
        ({"attention": SelfAttention("kk"), "blocks": SecondStream(6), "ffn": False}, "leave residual and ffn"),
        ({"attention": SelfAttention("kk"), "blocks": SecondStream(6), "adds": (OtherBlocks((3,)),)}, "last block"),
        ({"attention": LIKE, **BARE, "joint": (Smooth(Proxy("x", "v"), Floor(0.2)),)}, "read several proxies"),
        ({"attention": LIKE, **BARE, "joint": (Smooth(Tap(4), Floor(0.2)),)}, "only a Proxy's features"),
        ({"attention": LIKE, **BARE, "joint": (AddCls(0.2),)}, "cannot stand in joint"),
        (
            {
                "attention": Affinity(DINO, Relative(), grid="proxy"),
                **BARE,
                "after": (Smooth(Tap(4), Floor(0.2)),),
            },
            "smooth by the Proxy",
        ),
        ({"attention": Affinity(Tap(9, repaired=True), Relative()), **BARE}, "put the repair first"),
        (
            {"attention": SelfAttention("kk"), **BARE, "before": (Smooth(Tap(4), Floor(0.2)), RepairByDensity())},
            "first of all",
        ),
        ({"attention": SelfAttention("kk"), **BARE, "adds": (RegionEmbedding(Regions(0.2)),)}, "merged by the"),
        ({"attention": SelfAttention("kk"), "adds": (OtherBlocks((3,), attention=SelfAttention("kk")),)}, "own; leave"),
        ({"attention": SelfAttention("kk"), "adds": (OtherBlocks((3,), attention=LIKE),)}, "other tokens"),
        ({"attention": SelfAttention("kk"), "readout": Contributions()}, "leave the slots of the block"),
        ({"readout": PooledRegions(), "ffn": False}, "leave the slots of the block"),
        ({"attention": SelfAttention("kk"), "readout": ScoredSources()}, "take BalancedMaps"),
        ({"attention": BalancedMaps((1, 2)), **BARE, "readout": ScoredSources()}, "give adds="),
        ({"attention": LIKE, **BARE, "readout": FeatureSurgery()}, "patches alone leave none"),
        ({"readout": Contributions(), "stitch": JoinedProjections()}, "join features instead"),
        ({"readout": Contributions(), "stitch": JoinedFeatures()}, "looks into the blocks"),
        (
            {"attention": SelfAttention("vv"), "blocks": SecondStream(6), "stitch": JoinedProjections()},
            "joined for one block",
        ),
        (
            {"attention": SelfAttention("kk"), **BARE, "before": (RepairByDensity(),), "stitch": JoinedProjections()},
            "before they are projected",
        ),
        ({"attention": BoxAttention(), "blocks": 4, "stitch": JoinedFeatures()}, "one image as a whole"),
        ({"spread": LabelPropagation(DINO), "stitch": JoinedFeatures()}, "leave stitch out"),
        ({"published": {"attn": Identity()}}, "published slot 'attn'"),
        ({"published": {"ffn": True}}, "the recipe's own; leave it out"),
        ({"published": {"attention": LIKE}}, "patches alone"),
        ({"settings": {"voc21": {"blocks": 2}}}, "as trained"),
    ],
)  # fmt: skip
def test_what_cannot_be_combined_is_refused_when_it_is_made(slots, reason) -> None:
    with pytest.raises(RecipeError, match=f"recipe 'x': .*{reason}"):
        Recipe("x", **slots)


@pytest.mark.parametrize("name", ["two\nlines", "", None, ["x"]])
def test_a_name_is_one_line(name) -> None:
    with pytest.raises(RecipeError, match="one line of text"):
        Recipe(name)


def test_unknown_recipe_names_the_closest() -> None:
    with pytest.raises(RecipeError, match="no recipe 'layer_13'; known of this kind: layer_1 to layer_12"):
        get("layer_13")
    with pytest.raises(RecipeError, match=r"no recipe 'slcip' \(closest: sclip"):
        get("slcip")


@pytest.mark.parametrize("spelling", ["CLIP Surgery", "clip-surgery", " clip_surgery "])
def test_spelling_does_not_matter(spelling) -> None:
    assert get(spelling).name == "clip_surgery"


def test_a_variant_is_checked_like_a_recipe() -> None:
    assert replace(get("sclip"), ffn=False).ffn is False
    with pytest.raises(RecipeError):
        replace(get("maskclip"), blocks=SecondStream(6), ffn=False)


@pytest.mark.parametrize("name", names())
def test_a_recipe_prints_the_python_that_makes_it(name) -> None:
    for recipe in (get(name), get(name).as_published()):
        made = eval(repr(recipe), vars(recipes))
        assert made == recipe
        assert hash(made) == hash(recipe)


@pytest.mark.parametrize("name", names())
def test_every_entry_is_explained_and_cited(name) -> None:
    recipe = get(name)
    assert recipe.explain().endswith(".")
    assert recipe.source is not None
    assert recipe.source.url.startswith("https://")


def test_each_slot_and_each_field_of_a_part_is_told_or_printed() -> None:
    """Two recipes that differ are never explained and printed alike."""
    seen = {}
    for name in names():
        for recipe in (get(name), get(name).as_published()):
            told = repr(recipe)
            assert seen.setdefault(told, recipe) == recipe


READS = {
    "proxyclip": {"proxy"},
    "fsa": {"proxy", "text"},
    "cass": {"proxy"},
    "dinoiser": {"proxy"},
    "lposs": {"proxy"},
    "ov_stitcher": {"proxy"},
    "resclip": {"text"},
    "trident": {"proxy", "sam"},
    "corrclip": {"proxy", "regions"},
    "corrclip_v2": {"proxy", "regions"},
    "textregion": {"masks"},
    "falip": {"boxes"},
}


@pytest.mark.parametrize("name", names())
def test_reads_says_what_a_recipe_needs(name) -> None:
    assert get(name).reads == READS.get(name, set())


DEEP = {  # of the oracle's table (tests/oracle_regions.py), which was read in the authors' code
    ("corrclip", 12): range(6, 11),
    ("corrclip", 24): range(11, 23),
    ("corrclip", 32): range(3, 31),
    ("corrclip_v2", 24): range(11, 23),
}


@pytest.mark.parametrize(("name", "depth"), DEEP)
def test_blocks_of_deep_towers_are_the_authors(name, depth) -> None:
    assert get(name).adds[0].numbers(depth) == tuple(DEEP[name, depth])


@pytest.mark.parametrize(("depth", "sharpness"), [(12, 3.0), (24, 3.0), (32, 2.3)])
def test_feedback_is_as_sharp_as_published_for_the_size(depth, sharpness) -> None:
    run = SimpleNamespace(batch=SimpleNamespace(tower=SimpleNamespace(depth=depth)))
    assert get("fsa").attention.feedback.sharpness_for(run) == sharpness
    assert ScoreFeedback(sharpness=4.5).sharpness_for(run) == 4.5


def test_all_that_may_be_read_is_told_in_words() -> None:
    assert set(HOW) == {field.name for field in dataclasses.fields(Hints)} - {"pixels"}
    assert set(HOW) > OPTIONAL


def test_only_what_is_read_is_projected() -> None:
    wanted = {
        "vanilla": "qkv",
        "maskclip": "v",
        "clip_surgery": "v",
        "gem": "qkv",
        "sclip": "qkv",
        "clearclip": "qv",
        "naclip": "kv",
        "proxyclip": "v",
        "textregion": "v",
        "sfp": "qkv",
    }
    assert {name: get(name).projects for name in wanted} == wanted


def test_settings_by_benchmark_are_found_where_a_user_looks() -> None:
    plain, voc = get("resclip"), get("resclip", benchmark="voc21")
    assert voc != plain
    assert voc.attention.feedback.threshold == 0.5
    assert voc.as_published().attention.feedback.literal
    assert get("resclip", benchmark="cityscapes").attention.first == (
        1.6 * SelfAttention("kk", Gaussian(5.0)) + 0.4 * BlockAttention("qk", (6, 7, 8, 9))
    )
    assert get("cliper", benchmark="coco-stuff").readout == ScoredSources(50.0, 0.2)
    assert get("cliper", benchmark="voc21") == get("cliper")
    for name, benchmark in (("cliper", "coco-stuff"), ("resclip", "ade150")):
        assert get(name).as_published().on(benchmark) == get(name).on(benchmark).as_published()
    assert get("sclip", benchmark="voc21") == get("sclip")
    with pytest.raises(RecipeError, match=r"'resclip' has no settings for 'voc' \(closest: voc"):
        get("resclip", benchmark="voc")


def test_a_recipe_of_a_module_is_imported_by_name(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_methods.py").write_text(
        "from densevl.recipes import Recipe, SelfAttention\nMINE = Recipe('mine', SelfAttention('vv'))\nOTHER = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert get("my_methods:MINE") == Recipe("mine", SelfAttention("vv"))
    for name, reason in [
        ("my_methods:OTHER", "is a int, not a Recipe"),
        ("my_methods:NONE", "cannot be imported: AttributeError"),
        ("no_such_module:X", "cannot be imported: ModuleNotFoundError"),
    ]:
        with pytest.raises(RecipeError, match=reason):
            get(name)


def test_inputs_of_blocks_are_scored_by_themselves_or_added() -> None:
    added = Recipe("x", SelfAttention("kk"), adds=(BlockInputs((3, 4)),))
    assert added.explain().startswith("In the last block: keys look at keys")


@pytest.mark.parametrize("name", names())
def test_a_recipe_can_be_copied_and_sent_to_another_process(name) -> None:
    recipe = get(name)
    for again in (copy.deepcopy(recipe), pickle.loads(pickle.dumps(recipe))):
        assert again == recipe
        assert (again.published, again.settings, again.source) == (recipe.published, recipe.settings, recipe.source)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(
            "nested", attention=Sum(((0.5, 0.5 * SelfAttention("kk") + 0.5 * SelfAttention("qq")), (1.0, Identity())))
        ),
        Recipe("lists", attention=Sum([[0.5, SelfAttention("kk")], [0.5, SelfAttention("qq")]])),
        Recipe("path", attention=Affinity(Proxy("C:\\temp\\new"), Relative()), **BARE),
        Recipe('quoted "twice" \\ and once', attention=SelfAttention("kk")),
    ],
    ids=lambda recipe: recipe.name[:6],
)
def test_what_is_printed_makes_the_same_recipe(recipe) -> None:
    assert eval(repr(recipe), vars(recipes)) == recipe
    hash(recipe)


def test_what_was_given_to_a_recipe_can_change_later() -> None:
    given = {"ffn": False}
    recipe = Recipe("mine", attention=SelfAttention("kk"), published=given)
    given["nope"] = 1
    assert recipe.as_published().ffn is False


def test_attentions_within_attentions_take_no_exponential_time() -> None:
    deep = SelfAttention("kk")
    for _ in range(40):
        deep = TwoPass(deep, ScoreFeedback()) if deep == SelfAttention("kk") else _Kept(deep)
    assert Recipe("deep", attention=deep).reads == {"text"}


@dataclasses.dataclass(frozen=True, repr=False)
class _Kept(Attention):
    """Another attention as it is."""

    inside: Attention

    def attend(self, run, v):
        return self.inside(run, v)
