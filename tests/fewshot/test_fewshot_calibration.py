"""Images by example: verdicts of the exemplars, calibration, boxes, words alone, and refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from conftest import PHOTOS, close
from densevl.errors import ImageError, LabelError, ModelError, OptionError, ProposalError
from densevl.fewshot import build
from densevl.fewshot.calibration import TEMPERATURES, Calibration
from densevl.fewshot.result import Classification
from densevl.images import read_image
from densevl.pipelines.feeding import embed_images
from densevl.pipelines.fewshot.classifier import FewShot
from densevl.pipelines.fewshot.features import by_folder
from densevl.vocabulary import Background, LabelSet

COLOURS = {"red": (200, 30, 30), "blue": (30, 60, 200), "dark": (20, 20, 20)}
SHARPNESS = 20.0
LABELS = ["cat", "dog | puppy", "sky"]


def pictures(name: str, count: int) -> list[np.ndarray]:
    return [
        np.clip(COLOURS[name] + np.random.normal(0, 25, (24, 24, 3)), 0, 255).astype(np.uint8) for _ in range(count)
    ]


def examples(count: int) -> dict[str, list[np.ndarray]]:
    return {name: pictures(name, count) for name in COLOURS}


@pytest.fixture(scope="module")
def inspect(tiny) -> FewShot:
    return FewShot(tiny, "exemplars", templates="photo").fit(examples(3))


def closeness(rows: torch.Tensor, classes: torch.Tensor, unit: torch.Tensor, count: int) -> torch.Tensor:
    """The formula, class by class: log of the mean of exp(-sharpness (1 - cos))."""
    kernel = (-SHARPNESS * (1 - unit @ rows.T)).exp()
    return torch.stack([kernel[:, classes == label].mean(dim=1) for label in range(count)], dim=1).log()


def test_verdicts_are_those_of_the_formula(tiny) -> None:
    shown, held_out = examples(4), examples(6)
    made = FewShot(tiny, "exemplars", templates="photo", options={"whiten": False})
    made.fit(shown).calibrate(held_out, alpha=0.2)
    rows, others = (
        F.normalize(torch.cat([embed_images(tiny, own) for own in some.values()]), dim=1) for some in (shown, held_out)
    )
    classes, truth = torch.arange(3).repeat_interleave(4), torch.arange(3).repeat_interleave(6)
    near = closeness(rows, classes, others, 3)
    likelihood = [(near.double() / t).log_softmax(1)[torch.arange(18), truth].mean() for t in TEMPERATURES]
    best = int(torch.stack(likelihood).argmax())
    temperature = made.calibration.temperature
    assert abs(int((TEMPERATURES - temperature).abs().argmin()) - best) <= 1
    missing = (1 - (near / temperature).softmax(1)[torch.arange(18), truth]).sort().values
    assert made.calibration.margin == pytest.approx(float(missing[math.ceil(19 * 0.8) - 1]), abs=1e-4)
    new = pictures("blue", 1)[0]
    unit = F.normalize(embed_images(tiny, [new]), dim=1)
    result = made(new)
    p = (closeness(rows, classes, unit, 3) / temperature).softmax(1)[0]
    np.testing.assert_allclose(result.probabilities, p, atol=1e-4)
    margin = made.calibration.margin
    assert result.plausible == tuple(
        n for n, one in zip(COLOURS, result.probabilities, strict=True) if 1 - one <= margin
    )
    assert result.distance == pytest.approx(1 - float((unit @ rows.T).max()), abs=1e-5)


def test_like_images_get_their_class(inspect) -> None:
    for name in COLOURS:
        result = inspect(pictures(name, 1)[0])
        assert result.name == name
        assert result.confidence == result.probabilities.max()
        assert result.probabilities.sum() == pytest.approx(1)
        assert result.plausible is None


@pytest.mark.parametrize("head", ["exemplars", "gda", "nearest"])
def test_calibrated_sets_hold_the_true_class(tiny, head, tmp_path) -> None:
    made = FewShot(tiny, head, templates="photo").fit(examples(4))
    made.calibrate(None if head == "exemplars" else examples(10), alpha=0.2)
    test = [(name, image) for name in COLOURS for image in pictures(name, 5)]
    assert np.mean([name in made(image).plausible for name, image in test]) >= 0.7
    made.save(tmp_path / "saved")
    again = FewShot.load(tmp_path / "saved", tiny)
    assert again(test[0][1]) == made(test[0][1])
    assert made.facts()["calibration"]["alpha"] == 0.2
    assert made.fit(examples(2))(test[0][1]).plausible is None, "what is learned anew is calibrated anew"


def test_calibration_recovers_a_known_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 8 * torch.randn(4000, 4, generator=generator)
    classes = torch.multinomial((logits / 2.5).softmax(dim=-1), 1, generator=generator)[:, 0]
    fitted = Calibration.of(logits, classes, 0.1)
    assert abs(fitted.temperature / 2.5 - 1) < 0.15
    inside = (1 - fitted.probabilities(logits).gather(1, classes[:, None])) <= fitted.margin
    assert 0.89 < inside.float().mean() < 0.92


def test_leaving_out_equals_a_memory_without_the_exemplar() -> None:
    rows, classes = F.normalize(torch.randn(5, 6), dim=-1), torch.tensor([0, 0, 1, 1, 1])
    text = F.normalize(torch.randn(2, 6), dim=-1)
    whole, owners = build("exemplars", whiten=False).fit(rows, classes, text).left_out()
    assert torch.equal(owners, classes)
    for left in range(5):
        kept = torch.arange(5) != left
        alone = build("exemplars", whiten=False).fit(rows[kept], classes[kept], text)
        close(whole[left].softmax(0), alone.logits(rows[left : left + 1])[0].softmax(0))


def test_boxes_are_judged_for_themselves(inspect) -> None:
    both = np.concatenate([pictures("red", 1)[0], pictures("blue", 1)[0]], axis=1)
    result = inspect(both, boxes=[(0, 0, 24, 24), (24, 0, 48, 24)])
    assert [region.name for region in result.regions] == ["red", "blue"]
    assert result.regions[1].box == (24, 0, 48, 24)
    np.testing.assert_allclose(result.regions[1].probabilities, inspect(both[:, 24:]).probabilities, atol=1e-5)
    assert result.overlay(legend=False).shape == both.shape
    with pytest.raises(ProposalError, match="outside an image of 48x24"):
        inspect(both, boxes=[(50, 0, 60, 24)])


def test_words_alone_name_whole_images(tiny) -> None:
    name = FewShot(tiny, templates="photo")
    result = name(PHOTOS / "cat.jpg", LABELS)
    assert result.names == ("cat", "dog", "sky")
    unit = F.normalize(embed_images(tiny, [read_image(PHOTOS / "cat.jpg")]), dim=1)
    vectors = name.segmenter.embed_text(LabelSet.parse(LABELS), Background()).vectors
    words = F.normalize(torch.stack([vectors[0], vectors[1] + vectors[2], vectors[3]]), dim=1)
    np.testing.assert_allclose(result.scores, (tiny.logit_scale * unit @ words.T)[0], atol=1e-4)
    many = list(name.many([PHOTOS / "cat.jpg", PHOTOS / "coffee.jpg"], LABELS, batch=2))
    np.testing.assert_allclose(many[0].probabilities, result.probabilities, atol=1e-6)


def test_the_shipped_model_knows_its_own_drawings() -> None:
    names = ["penguin", "mushroom", "aeroplane"]
    boxes = [[18, 122, 75, 184], [105, 101, 159, 157], [30, 8, 72, 50]]
    result = FewShot("mini")(PHOTOS.parent / "scenes" / "wood.png", names, boxes=boxes)
    assert [region.name for region in result.regions] == names


def test_a_model_without_words_judges_by_examples() -> None:
    made = FewShot("photo", "exemplars").fit(examples(2)).calibrate()
    assert made(pictures("red", 1)[0]).name == "red"
    with pytest.raises(LabelError, match="'fish' has no examples"):
        made.fit({**examples(1), "fish": []})
    with pytest.raises(ModelError, match="cannot compare whole images with words"):
        FewShot("photo", "exemplars")(pictures("red", 1)[0], ["red"])
    for given in ({"head": "gda"}, {"head": "exemplars", "level": "region"}):
        with pytest.raises(ModelError, match="exemplars or nearest"):
            FewShot("photo", **given)


def test_what_was_learned_is_no_measure_of_confidence(tiny) -> None:
    shown = examples(3)
    made = FewShot(tiny, "gda", templates="photo").fit(shown)
    with pytest.raises(OptionError, match="2 of 3 images to calibrate on were learned from"):
        made.calibrate({"red": [shown["red"][1].copy(), shown["red"][2], pictures("red", 1)[0]]})
    assert made.calibrate(examples(4), alpha=0.3).calibration.margin is not None
    more = {"red": pictures("red", 1)}
    with pytest.warns(UserWarning, match="call calibrate again"):
        made.partial_fit(more)
    assert made.calibration.margin is None
    with pytest.raises(OptionError, match="1 of 1 images"):
        made.calibrate(more)


@pytest.mark.parametrize("how", ["fit", "fit_unlabelled"])
def test_what_was_learned_is_known_after_load_too(tiny, tmp_path, how) -> None:
    shown = examples(3)
    made = FewShot(tiny, "gda", templates="photo")
    made.fit(shown) if how == "fit" else made.fit_unlabelled(
        [one for own in shown.values() for one in own], list(shown)
    )
    made.save(tmp_path / "saved")
    again = FewShot.load(tmp_path / "saved", tiny)
    Image.fromarray(shown["red"][0]).save(tmp_path / "copy.png")
    with pytest.raises(OptionError, match="1 of 2 images"):
        again.calibrate({"red": [tmp_path / "copy.png", pictures("red", 1)[0]]})
    assert again.calibrate({"red": pictures("red", 3)}, alpha=0.5).calibration.margin is not None


def test_refusals_are_one_clear_line(tiny, inspect, tmp_path) -> None:
    image = pictures("red", 1)[0]
    made = FewShot(tiny, "exemplars", templates="photo")
    with pytest.raises(ModelError, match="call fit"):
        made(image)
    with pytest.raises(ModelError, match="two exemplars"):
        made.fit({"a": pictures("red", 1), "b": pictures("blue", 2)}).calibrate()
    with pytest.raises(LabelError, match="'green' has examples but is not a label"):
        inspect.calibrate({"green": [image]})
    with pytest.raises(OptionError, match="between 0 and 1"):
        inspect.calibrate(alpha=0)
    with pytest.raises(OptionError, match="above 0"):
        FewShot(tiny, "exemplars", options={"sharpness": 0})
    with pytest.raises(OptionError, match="take 'exemplars'"):
        FewShot(tiny, "nearest", templates="photo").fit(examples(2)).calibrate()
    with pytest.raises(OptionError, match="the fitted ones"):
        inspect(image, ["cat"])
    for level, use in (("region", "RegionClassifier"), ("pixel", "Segmenter")):
        with pytest.raises(OptionError, match=use):
            FewShot(tiny, level=level)(image, ["cat"])
    with pytest.raises(ImageError, match="no folders"):
        by_folder(tmp_path)
    (tmp_path / "red").mkdir()
    Image.fromarray(image).save(tmp_path / "red" / "0.png")
    assert [path.name for path in by_folder(tmp_path)["red"]] == ["0.png"]


def test_a_classification_is_saved_cut_and_shown(inspect, tmp_path) -> None:
    both = np.concatenate([pictures("red", 1)[0], pictures("blue", 1)[0]], axis=1)
    Image.fromarray(both).save(tmp_path / "photo.png")
    made = inspect(tmp_path / "photo.png", boxes=[(0, 0, 24, 24)])
    files = made.save(tmp_path / "x.json")
    assert [path.name for path in files] == ["x.json", "x_overlay.png"]
    read = Classification.load(tmp_path / "x.json")
    assert read == made
    assert read.save(tmp_path / "y.json")[0].read_bytes() == files[0].read_bytes()
    others = [name for name in made.names if name != made.name]
    few = made.only(others)
    assert few.name == "nothing"
    assert few.names == tuple(others)
    assert few.confidence == pytest.approx(made.confidence)
    assert made.only(made.name).name == made.name
    assert "base64" in made._repr_html_()
    assert made.top(1) == [(made.name, made.confidence)]
