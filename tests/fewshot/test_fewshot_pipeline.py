"""`FewShot` at its three levels: against the pipelines it extends, saved and loaded, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import close, random_clip, wrap
from densevl.backbones.projected.projection import projection_of, with_projection
from densevl.errors import DensevlError, ImageError, LabelError, ModelError, OptionError, ProposalError, WeightsError
from densevl.fewshot import HEADS, build
from densevl.pipelines.fewshot.classifier import FewShot
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.segmentation.segmenter import Segmenter
from densevl.pipelines.settings import LEVELS
from densevl.recipes import get
from densevl.regions.result import RegionResult
from densevl.vocabulary import TextOptions
from densevl.vocabulary.text_classifier import TextClassifier

COLOURS = {"red": (210, 30, 30), "blue": (30, 60, 210), "lime": (120, 230, 40)}
NAMES = list(COLOURS)
BOXES = np.array([[0, 0, 16, 32], [16, 0, 32, 32]])
WHOLE = {"short_side": None, "crop": None}
PLAIN = {"background": "none", "use_cache": False, "protocol": WHOLE}


def picture(*names: str, seed: int = 0) -> np.ndarray:
    """Stripes of 16 pixels of the named colours, 32 pixels high; one colour fills 32 pixels."""
    rng = np.random.default_rng(seed)
    names = names * 2 if len(names) == 1 else names
    stripes = [np.array(COLOURS[name]) + rng.normal(0, 20, (32, 16, 3)) for name in names]
    return np.clip(np.concatenate(stripes, axis=1), 0, 255).astype(np.uint8)


def label_map(*names: str) -> np.ndarray:
    return np.concatenate([np.full((32, 16), NAMES.index(name)) for name in names], axis=1)


PAIRS = [("red", "blue"), ("blue", "lime"), ("lime", "red"), ("blue", "red"), ("lime", "blue"), ("red", "lime")]
EXAMPLES = {
    "image": {name: [picture(name, seed=seed) for seed in range(4)] for name in NAMES},
    "region": [(picture(*pair, seed=seed), BOXES, pair) for seed, pair in enumerate(PAIRS)],
    "pixel": [(picture(*pair, seed=seed), label_map(*pair), NAMES) for seed, pair in enumerate(PAIRS)],
}
TEST = picture("lime", "blue", seed=9)


def answer(made: FewShot) -> np.ndarray:
    if made.level == "image":
        return made(picture("blue", seed=9)).probabilities
    if made.level == "region":
        return made(TEST, boxes=BOXES).scores
    return made(TEST).confidence


def quick(head: str, level: str) -> dict:
    few: dict = {
        "prolip": {"steps": 20},
        "adapter": {"steps": 30, "rate": 0.02},
        "linear": {"strength": 0.1},
        "prompt": {"steps": 10, "rate": 0.3, "folds": 1, "contexts": 2, "tie": 0.0},
    }
    options = few.get(head, {})
    return {**PLAIN, "options": options, **({"operator": "cls_mask"} if level == "region" else {})}


@pytest.fixture(scope="module")
def fitted_ones(tiny):
    made = {}

    def get_one(head: str, level: str) -> FewShot:
        if (head, level) not in made:
            made[head, level] = FewShot(tiny, head, level=level, **quick(head, level)).fit(
                EXAMPLES[level], labels=NAMES
            )
        return made[head, level]

    return get_one


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("level", LEVELS)
def test_every_head_learns_colours_at_every_level(fitted_ones, head, level) -> None:
    made = fitted_ones(head, level)
    assert set(made.counts) == set(NAMES)
    if head == "prompt":  # ten steps on a random text tower turn nothing round
        own = next(iter(made.heads.values()))
        assert own.found["steps"] == 10
        assert not torch.allclose(own.text, own.before, atol=1e-3)
        return
    if head == "prolip":  # twenty steps on a random model turn nothing round
        assert (
            made.heads[next(iter(made.heads))].found["loss"] < made.heads[next(iter(made.heads))].found["loss before"]
        )
        return
    if level == "image":
        assert [made(picture(name, seed=9)).name for name in NAMES] == NAMES
    elif level == "region":
        result = made(TEST, regions=np.stack([label_map("lime", "blue") == i for i in (2, 1)]))
        assert isinstance(result, RegionResult)
        assert result.found == ("lime", "blue")
        assert made(TEST, boxes=np.zeros((0, 4))).scores.shape == (0, 3)
    else:
        result = made(TEST)
        assert (result.labels == label_map("lime", "blue")).mean() > 0.8
        assert result.meta["fewshot"]["head"] == head
        assert result.scores.shape == (3, 32, 32)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("level", LEVELS)
def test_what_is_saved_comes_back(tiny, fitted_ones, tmp_path, head, level) -> None:
    made = fitted_ones(head, level)
    files = made.save(tmp_path / "colours.v1")
    assert [file.name for file in files] == ["colours.v1.safetensors", "colours.v1.json"]
    again = FewShot.load(tmp_path / "colours.v1", tiny, use_cache=False)
    close(answer(again), answer(made))
    assert (again.counts, again.labels, again.settings) == (made.counts, made.labels, made.settings)


def test_files_of_another_model_or_recipe_or_damaged_ones_are_refused(tiny, fitted_ones, tmp_path) -> None:
    fitted_ones("gda", "pixel").save(tmp_path / "a")
    with pytest.raises(WeightsError, match="has other weights"):
        FewShot.load(tmp_path / "a", wrap(random_clip(seed=1), "other"))
    with pytest.raises(WeightsError, match="another variant of recipe"):
        FewShot.load(tmp_path / "a", tiny, recipe=get("vanilla"))
    facts = json.loads((tmp_path / "a.json").read_text())
    for broken in ("{", "[]", json.dumps({**facts, "heads": {"pixel": {}}}), json.dumps({**facts, "recipe": None})):
        (tmp_path / "a.json").write_text(broken)
        with pytest.raises(WeightsError):
            FewShot.load(tmp_path / "a", tiny)
    with pytest.raises(WeightsError, match=r"few-shot head .* cannot be read"):
        FewShot.load(tmp_path / "none", tiny)


def test_without_a_say_of_the_examples_pixels_are_as_segmenter_labels_them(tiny) -> None:
    settings = {**PLAIN, "background": ["sky", "wall"]}
    made = FewShot(tiny, "gda", options={"alpha": 0.0}, level="pixel", **settings).fit(
        EXAMPLES["pixel"], labels=[*NAMES, "teal"]
    )
    plain = Segmenter(tiny, **settings)(TEST, [*NAMES, "teal"])
    result = made(TEST)
    assert np.array_equal(result.labels, plain.labels)
    close(result.confidence, plain.confidence)
    close(result.confidence, plain.confidence)


@pytest.mark.parametrize("operator", ["cls_mask", "pool+cls_mask", {"pool": 0.3, "cls_mask": 0.7}])
def test_without_a_say_of_the_examples_regions_are_as_the_classifier_names_them(tiny, operator) -> None:
    settings = {**PLAIN, "operator": operator, "background": ["sky"]}
    made = FewShot(tiny, "gda", options={"alpha": 0.0}, level="region", **settings).fit(
        EXAMPLES["region"], labels=[*NAMES, "teal"]
    )
    plain = RegionClassifier(tiny, proposals=None, **settings)(TEST, [*NAMES, "teal"], boxes=BOXES)
    result = made(TEST, boxes=BOXES)
    close(result.scores, plain.scores)
    close(result.nothing, plain.nothing)
    assert result.found == plain.found


def test_an_image_of_one_token_is_judged_by_pixels_as_its_feature_is(tiny) -> None:
    corner = (slice(8), slice(8))
    small = [(picture(name, seed=seed)[corner], label_map(name)[corner], NAMES) for name in NAMES for seed in range(3)]
    made = FewShot(tiny, "gda", options={"alpha": 0.2}, level="pixel", **PLAIN).fit(small)
    rows = torch.cat([shown.features["pixel"] for shown in made.features.rows(small)])
    head = build("gda", **made.settings).fit(rows, torch.arange(3).repeat_interleave(3), made.heads["pixel"].text)
    one = picture("lime", seed=9)[:8, :8]
    feature = made.features.embed(one)[0]
    assert feature.shape[:2] == (1, 1)
    p = head.logits(feature[0, 0]).softmax(dim=0)
    result = made(one)
    assert (result.labels == int(p.argmax())).all()
    close(result.confidence, float(p.max()))


@pytest.mark.parametrize("level", LEVELS)
def test_classes_without_examples_stay_with_their_words(tiny, level) -> None:
    examples = {
        "image": {**EXAMPLES["image"], "lime": []},
        "region": [example for example in EXAMPLES["region"] if "lime" not in example[2]],
        "pixel": [(image, np.where(labels == 2, -1, labels), names) for image, labels, names in EXAMPLES["pixel"]],
    }[level]
    made = FewShot(tiny, "gda", level=level, **quick("gda", level)).fit(examples, labels=NAMES)
    head = next(iter(made.heads.values()))
    assert head.seen.tolist() == [True, True, False]
    query = torch.randn(4, tiny.embed_dim)
    words = head.scale * F.normalize(query, dim=1) @ head.text.mT
    assert torch.allclose(head.logits(query)[:, 2], words[:, 2], atol=1e-4)


@pytest.mark.parametrize("background", ["none", ["sky", "wall"]])
@pytest.mark.parametrize("level", ["region", "pixel"])
def test_what_is_shown_to_be_nothing_is_labelled_so(tiny, tmp_path, level, background) -> None:
    names = ["nothing" if name == "lime" else name for name in NAMES]
    examples = {
        "region": [
            (image, boxes, [names[NAMES.index(name)] for name in pair]) for image, boxes, pair in EXAMPLES["region"]
        ],
        "pixel": [(image, labels, names) for image, labels, _ in EXAMPLES["pixel"]],
    }[level]
    settings = {**quick("gda", level), "background": background}
    made = FewShot(tiny, "gda", level=level, **settings).fit(examples)
    made.partial_fit(examples[:2])
    made.save(tmp_path / "made")
    for one in (made, FewShot.load(tmp_path / "made", tiny)):
        assert one.labels.names == ("red", "blue")
        assert one.counts["nothing"] > 0
        if level == "region":
            assert one(TEST, boxes=BOXES).found == ("nothing", "blue")
        else:
            assert (one(TEST).labels == np.where(label_map("lime", "blue") == 2, -1, 1)).mean() > 0.8


def test_more_examples_can_come_later(tiny) -> None:
    first = {name: images[:2] for name, images in EXAMPLES["image"].items()}
    later = {name: images[2:] for name, images in EXAMPLES["image"].items()}
    made = FewShot(tiny, "gda", options={"alpha": 0.1}, **PLAIN).fit({**first, "lime": []}).partial_fit(later)
    made.partial_fit({"lime": first["lime"]})
    whole = FewShot(tiny, "gda", options={"alpha": 0.1}, **PLAIN).fit(EXAMPLES["image"])
    close(answer(made), answer(whole))
    assert made.counts == whole.counts == dict.fromkeys(NAMES, 4)


@pytest.mark.parametrize("regions", ["masks", "boxes", "rle", "proposals", "mapping"])
def test_regions_of_examples_come_in_any_form(tiny, regions) -> None:
    from densevl.proposals import Proposals

    found = Proposals.from_boxes(BOXES, (32, 32))
    forms = {"masks": found.masks(), "boxes": BOXES, "rle": found.to_rle(), "proposals": found}
    form = forms.get(regions, {"boxes": BOXES})
    examples = [(image, form, names) for image, _, names in EXAMPLES["region"]]
    made = FewShot(tiny, "nearest", level="region", operator="cls_mask", **PLAIN).fit(examples)
    assert made(TEST, regions=found.masks()).found == ("lime", "blue")


def test_the_adapted_model_answers_as_prolip_does_and_the_first_one_is_left_alone(tiny) -> None:
    before = projection_of(tiny)
    made = FewShot(tiny, "prolip", options={"rate": 0.05, "strength": 0.0}, **PLAIN).fit(EXAMPLES["image"])
    adapted = made.adapted()
    assert torch.equal(projection_of(tiny), before)
    assert not torch.allclose(projection_of(adapted), before)
    assert adapted._model.visual.conv1.weight is tiny._model.visual.conv1.weight  # no weight is held twice
    pixels = tiny.normalize(picture("blue", seed=9))[None]
    unit = F.normalize(adapted.encode_image(pixels), dim=1)
    head = made.heads["image"]
    assert np.allclose(answer(made), (head.scale * unit @ head.text.mT)[0].softmax(dim=0), atol=1e-4)
    assert Segmenter(adapted, **PLAIN)(TEST, ["cat", "dog"]).labels.shape == (32, 32)


def test_a_model_with_its_own_projection_is_the_same_model(tiny) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    same = with_projection(tiny, projection_of(tiny))
    assert torch.equal(same.encode_image(pixels), tiny.encode_image(pixels))
    bare = with_projection(tiny, torch.eye(32))
    assert torch.allclose(bare.encode_image(pixels) @ projection_of(tiny), tiny.encode_image(pixels), atol=1e-4)
    dense = bare.encode_dense(pixels).features.permute(0, 2, 3, 1) @ projection_of(tiny)
    assert torch.allclose(dense, tiny.encode_dense(pixels).features.permute(0, 2, 3, 1), atol=1e-4)
    with pytest.raises(ModelError, match="features 32 wide"):
        with_projection(tiny, torch.eye(31))


MAP, IMAGE = label_map("red", "blue"), picture("red", "blue")
EMPTY = np.zeros((2, 32, 32), bool)
EMPTY[0, :, :16] = True
DOT = np.where(np.arange(1024).reshape(32, 32) == 5, 1, 0)
BAD = {
    "images without names": ("image", [IMAGE], {}, LabelError, "{name: images}"),
    "no classes": ("image", {}, {}, LabelError, "holds no examples: give {name: images}"),
    "images of nothing": ("image", {"a": [IMAGE], "nothing": [IMAGE]}, {}, LabelError, "without a label"),
    "no images at all": ("image", {"a": [], "b": []}, {}, LabelError, "at least one class"),
    "a class that is no label": ("image", {"rad": [IMAGE]}, {"labels": NAMES}, LabelError, r"closest: red"),
    "an image that is not there": ("image", {"a": ["none.png"]}, {}, ImageError, "none.png"),
    "regions by class": ("region", {"red": [IMAGE]}, {}, LabelError, "list of"),
    "regions without names": ("region", [(IMAGE, BOXES)], {}, LabelError, "list of"),
    "one name for two regions": ("region", [(IMAGE, BOXES, ["red"])], {}, LabelError, "1 names for 2"),
    "a name in place of names": ("region", [(IMAGE, BOXES, "red")], {}, LabelError, "a single string"),
    "boxes of three numbers": ("region", [(IMAGE, BOXES[:, :3], ["a", "b"])], {}, ProposalError, "boxes|masks|map"),
    "masks of another size": ("region", [(IMAGE, EMPTY[:, 1:], ["a", "b"])], {}, ProposalError, "mask"),
    "an empty mask": ("region", [(IMAGE, EMPTY, ["a", "b"])], {}, ProposalError, "region 1 of 2 holds no pixel"),
    "a map of another size": ("pixel", [(IMAGE, MAP[1:], NAMES)], {}, ProposalError, "of one size"),
    "a map of floats": ("pixel", [(IMAGE, MAP * 0.5, NAMES)], {}, ProposalError, "integers"),
    "a map with a number too many": ("pixel", [(IMAGE, MAP + 2, NAMES)], {}, ProposalError, "allow 0 to 2"),
    "a thing smaller than a token": ("pixel", [(IMAGE, DOT, ["a", "b"])], {}, LabelError, "'b' fills no token"),
    "a map without a class": ("pixel", [(IMAGE, MAP - 9, NAMES)], {}, ProposalError, "holds no class"),
}


@pytest.mark.parametrize("case", BAD)
def test_unusable_examples_are_refused_in_one_line(fitted_ones, tiny, case) -> None:
    level, examples, given, error, message = BAD[case]
    made = FewShot(tiny, "nearest", level=level, **quick("nearest", level))
    with pytest.raises(error, match=message) as caught:
        made.fit(examples, **given)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="call fit"):  # and nothing was half learned
        made.save("nowhere")


def test_void_of_a_map_is_no_class(tiny) -> None:
    given = np.where(MAP == 0, 0, 255)
    for dtype in (np.uint8, np.int64):
        made = FewShot(tiny, "nearest", level="pixel", **PLAIN).fit([(IMAGE, given.astype(dtype), NAMES[:1])])
        assert list(made.counts) == ["red"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"level": "pixels"}, "closest: pixel"),
        ({"head": "lda"}, "closest: gda"),
        ({"head": "gda", "options": {"beta": 1}}, "has no setting 'beta'"),
        ({"head": "gda", "options": {"alpha": -1}}, "0 or more"),
        ({"head": "prolip", "level": "region", "operator": "pool+cls_mask"}, "one operator"),
        ({"level": "pixel", "coverage": 2.0}, "coverage is"),
        ({"level": "pixel", "tokens": 0}, "tokens is 0"),
        ({"level": "region", "operator": "crap"}, "no region operator"),
    ],
)
def test_impossible_settings_are_refused_before_the_first_example(tiny, given, message) -> None:
    with pytest.raises(DensevlError, match=message):
        FewShot(tiny, **given)


def test_what_belongs_to_another_level_or_head_is_refused(fitted_ones) -> None:
    image, region, pixel = (fitted_ones("linear", level) for level in LEVELS)
    for other, given in ((image, {"rle": []}), (pixel, {"boxes": BOXES})):
        with pytest.raises(OptionError, match="= is for level 'region'"):
            other(TEST, **given)
    with pytest.raises(ProposalError, match="no regions"):
        region(TEST)
    with pytest.raises(ModelError, match="learns from all examples at once"):
        image.partial_fit(EXAMPLES["image"])
    with pytest.raises(ModelError, match="leaves the model as it is"):
        image.adapted()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("background", ["none", ["sky"]])
def test_classes_that_come_later_are_learned_as_if_all_had_come_at_once(tiny, level, background) -> None:
    settings = {**quick("gda", level), "options": {"alpha": 0.2}, "background": background}
    if level == "image":
        first, later = {name: EXAMPLES["image"][name] for name in NAMES[:2]}, {"lime": EXAMPLES["image"]["lime"]}
        both = {**first, **later}
    else:
        shown = {"region": (BOXES, ["red", "blue"]), "pixel": (label_map("red", "blue"), ["red", "blue"])}[level]
        first = [(picture("red", "blue", seed=seed), *shown) for seed in range(2)]
        later = EXAMPLES[level][1:3]
        both = [*first, *later]
    whole = FewShot(tiny, "gda", level=level, **settings).fit(both, labels=[*NAMES, "teal"])
    made = FewShot(tiny, "gda", level=level, **settings).fit(first, labels=NAMES[:2])
    made.partial_fit(later, labels=["lime", "teal"])
    assert (made.labels, made.counts) == (whole.labels, whole.counts)
    close(answer(made), answer(whole))
    with pytest.raises(LabelError, match="given twice"):
        made.partial_fit(later, labels=["lime"])
    close(answer(made), answer(whole))
    for nothing in ({}, {"mauve": []}) if level == "image" else ([],):
        alone = FewShot(tiny, "gda", level=level, **settings).fit(first, labels=NAMES[:2])
        alone.partial_fit(nothing, labels=["mauve"])
        close(
            answer(alone),
            answer(FewShot(tiny, "gda", level=level, **settings).fit(first, labels=[*NAMES[:2], "mauve"])),
        )
    with pytest.raises(LabelError, match=r"at least one|is not a label"):
        made.partial_fit(nothing)


def test_learned_templates_serve_other_pipelines_and_the_same_labels_alike(tiny, fitted_ones, tmp_path) -> None:
    made = fitted_ones("prompt", "pixel")
    templates = made.templates()
    assert len(templates) == 2
    plain = Segmenter(tiny, templates=templates, **PLAIN)(TEST, NAMES)
    result = made(TEST)
    close(result.scores, plain.scores)
    close(result.confidence, plain.confidence)
    close(made.words(NAMES), made.heads["pixel"].text)
    made.save(tmp_path / "learned")
    read = Segmenter(tiny, templates=str(tmp_path / "learned.safetensors"), **PLAIN)
    assert read.templates == templates
    assert np.array_equal(read(TEST, NAMES).labels, plain.labels)
    regions = RegionClassifier(tiny, "cls_mask", proposals=None, templates=templates, **PLAIN)
    assert regions(TEST, ["cat", "dog"], boxes=BOXES).scores.shape == (2, 2)


def test_what_learned_templates_are_not_for_is_refused(tiny, fitted_ones, tmp_path) -> None:
    templates = fitted_ones("prompt", "pixel").templates()
    with pytest.raises(OptionError, match="another text tower"):
        Segmenter(wrap(random_clip(seed=1), "other"), templates=templates, **PLAIN)
    with pytest.raises(OptionError, match="need templates of words"):
        FewShot(tiny, "gda", templates=templates, **PLAIN).fit(EXAMPLES["image"])
    with pytest.raises(OptionError, match="need templates of words"):
        FewShot(tiny, "gda", templates=templates, **PLAIN).fit_unlabelled([TEST], NAMES)
    with pytest.raises(OptionError, match="only names a learned template"):
        Segmenter(tiny, templates=[str.__str__(one) + "" for one in templates], **PLAIN)
    fitted_ones("gda", "pixel").save(tmp_path / "gda")
    with pytest.raises(WeightsError, match="only head 'prompt'"):
        Segmenter(tiny, templates=str(tmp_path / "gda.safetensors"), **PLAIN)
    with pytest.raises(ModelError, match="'prompt' learns templates"):
        fitted_ones("gda", "pixel").templates()
    with pytest.raises(OptionError, match="writes no checkpoint"):
        FewShot(tiny, "gda", **PLAIN).fit(EXAMPLES["image"], checkpoint=tmp_path / "c")
    with pytest.raises(OptionError, match="its own contexts"):
        FewShot(tiny, "prompt", text=TextOptions.parse({"descriptors": {"red": ["a warm colour"]}}), **PLAIN)
    with pytest.raises(ModelError, match="take one operator"):
        FewShot(tiny, "prompt", level="region", operator="pool+cls_mask", **PLAIN)


def test_what_is_shown_to_be_nothing_is_said_in_the_contexts_too(tiny) -> None:
    names = ["nothing" if name == "lime" else name for name in NAMES]
    examples = [(image, labels, names) for image, labels, _ in EXAMPLES["pixel"]]
    made = FewShot(tiny, "prompt", level="pixel", **quick("prompt", "pixel") | {"background": ["sky", "wall"]})
    rows = made.fit(examples).heads["pixel"].text
    assert len(rows) == 3
    text = TextClassifier(tiny, made.templates(), use_cache=False)
    close(rows[2], made.words({"nothing at all": ["sky", "wall"]})[0])
    assert text.templates == made.templates()
