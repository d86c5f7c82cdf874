"""Template weights per image, region and pixel against autograd and a plain reading of the paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch.nn import functional as F

from conftest import PHOTOS
from densevl import FewShot, RegionClassifier, Segmenter
from densevl.errors import OptionError
from densevl.vocabulary import Background, LabelSet, TextOptions
from densevl.vocabulary.template_weights import image_classifier, template_weights, weighted_scores
from densevl.vocabulary.transforms.linear import LinearText

SMALL = {"templates": "simple", "protocol": {"short_side": 48, "crop": 32, "stride": 16}, "background": "none"}


def _prompts(templates: int, strings: int, width: int = 16) -> torch.Tensor:
    torch.manual_seed(3)
    return F.normalize(torch.randn(strings, width) + 0.5 * torch.randn(templates, strings, width), dim=-1)


@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_weights_follow_the_gradient_of_the_logsumexp(temperature) -> None:
    prompts, image = _prompts(9, 5), F.normalize(torch.randn(16), dim=0)
    cosines = (prompts @ image).double()
    rho = torch.zeros(9, dtype=torch.double, requires_grad=True)
    scores = torch.softmax(rho, 0) @ cosines
    (gradient,) = torch.autograd.grad(torch.logsumexp(scores / temperature, 0) * temperature, rho)
    weights = template_weights(cosines[None], temperature=temperature)[0]
    step = torch.log(weights) - torch.log(weights).mean()
    alpha = (step @ gradient) / (gradient @ gradient)
    assert alpha > 0
    torch.testing.assert_close(step, alpha * (gradient - gradient.mean()), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("entropy", [0.5, 0.85, 0.99])
@pytest.mark.parametrize("spread", [1e-4, 1.0])
def test_the_step_is_as_long_as_the_entropy_says(entropy, spread) -> None:
    cosines = 0.2 + spread * torch.randn(6, 12, 4)
    weights = template_weights(cosines, entropy=entropy)
    found = -(weights * weights.log()).sum(1) / math.log(12)
    torch.testing.assert_close(found, torch.full((6,), entropy), atol=1e-3, rtol=0)
    torch.testing.assert_close(weights.sum(1), torch.ones(6))


@pytest.mark.parametrize("prompts", [_prompts(1, 4), _prompts(1, 4).expand(5, 4, 16)], ids=["one", "all-equal"])
def test_templates_that_do_not_differ_weigh_the_same(prompts) -> None:
    weights = template_weights((prompts @ torch.randn(16))[None])
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / len(prompts)))


def test_a_template_the_image_likes_gains() -> None:
    prompts = _prompts(4, 3)
    image = prompts[2].mean(0)
    weights = template_weights((prompts @ F.normalize(image, dim=0))[None])[0]
    assert weights.argmax() == 2
    rows = image_classifier(prompts, image)
    torch.testing.assert_close(rows, F.normalize(torch.einsum("m,mtd->td", weights, prompts), dim=-1))


def _reading(feature: np.ndarray, prompts: np.ndarray, entropy: float = 0.85) -> np.ndarray:
    """The paper's steps for one feature in float64: the gradient by autograd, the step's length by a root finder."""
    cosines = torch.from_numpy(np.einsum("mtd,d->mt", prompts, feature))
    rho = torch.zeros(len(prompts), dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(torch.logsumexp(torch.softmax(rho, 0) @ cosines, 0), rho)

    def weights(step: float) -> np.ndarray:
        raised = np.exp(step * (gradient.numpy() - gradient.numpy().max()))
        return raised / raised.sum()

    def excess(log_step: float) -> float:
        found = weights(math.exp(log_step))
        return -(found[found > 0] * np.log(found[found > 0])).sum() - entropy * math.log(len(prompts))

    return weights(math.exp(brentq(excess, -20, 20, xtol=1e-13))) @ cosines.numpy()


def test_streamed_scores_are_the_papers_of_each_feature() -> None:
    prompts = _prompts(6, 4)
    features = F.normalize(torch.randn(2, 3, 16), dim=-1)
    found = weighted_scores(lambda rows: features @ rows.T, prompts)
    wanted = [[_reading(f, prompts.double().numpy()) for f in row] for row in features.double().numpy()]
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    even = weighted_scores(lambda rows: features @ rows.T, prompts, entropy=1.0)
    torch.testing.assert_close(even, features @ prompts.mean(0).T)  # not made unit rows, as those of an image are


def test_pixels_of_a_photo_are_weighed_each_for_itself(tiny) -> None:
    segment = Segmenter(tiny, text=TextOptions(template_weights="pixel"), **SMALL)
    labels, photo = LabelSet.parse("cat,dog,sky"), PHOTOS / "cat.jpg"
    prepared = segment.prepare(photo)
    dense = segment.run(prepared.parts)
    scores = segment.score(dense, segment.embed_text(labels, Background()))
    prompts = segment.embed_text(labels, Background()).prompts.double().numpy()
    tokens = F.normalize(dense.features.double(), dim=1).permute(0, 2, 3, 1).numpy()
    for place in [(0, 0, 0), (1, 1, 0)]:
        np.testing.assert_allclose(scores[place], _reading(tokens[place], prompts), atol=1e-5)
    (together,) = segment.many([photo], labels)
    np.testing.assert_allclose(segment(photo, labels).scores, together.scores, atol=1e-5)


@pytest.mark.parametrize(("weights", "order"), [("region", "pool_then_classify"), ("pixel", "classify_then_pool")])
def test_regions_are_weighed_by_what_is_compared(tiny, weights, order) -> None:
    text, boxes = TextOptions(template_weights=weights), [[10, 10, 90, 90], [100, 50, 200, 150]]
    name = RegionClassifier(tiny, "pool", order=order, proposals=None, text=text, **SMALL)
    result = name(PHOTOS / "cat.jpg", "cat,dog,sky", boxes=boxes)
    plain = RegionClassifier(tiny, "pool", order=order, proposals=None, **SMALL)
    assert np.abs(result.scores - plain(PHOTOS / "cat.jpg", "cat,dog,sky", boxes=boxes).scores).max() > 1e-4
    if weights == "region":
        prompts = name._segment.embed_text(LabelSet.parse("cat,dog,sky"), Background()).prompts.double().numpy()
        logits = [name.protocol.logit_scale * _reading(v, prompts) for v in result.embeddings["pool"].double().numpy()]
        wanted = torch.tensor(np.array(logits)).softmax(1)
        np.testing.assert_allclose(result.scores, wanted, atol=1e-5)


@pytest.mark.parametrize(
    "ask",
    [
        lambda tiny: Segmenter(tiny, text=TextOptions(template_weights="region")),
        lambda tiny: RegionClassifier(tiny, text=TextOptions(template_weights="pixel")),
        lambda tiny: RegionClassifier(
            tiny, "pool", order="classify_then_pool", text=TextOptions(template_weights="region")
        ),
        lambda tiny: RegionClassifier(tiny, text=TextOptions(template_weights="region")).embed_text(
            LabelSet.parse("cat"), Background()
        ),
        lambda tiny: FewShot(tiny, text=TextOptions(template_weights="region")),
        lambda tiny: Segmenter("photo", text=TextOptions(template_weights="pixel")),
        lambda tiny: TextOptions(template_weights="pixel", transform=LinearText(torch.eye(3))),
        lambda tiny: TextOptions(template_weights="region", parents="pixel"),
    ],
)
def test_weights_that_cannot_be_are_one_line(tiny, ask) -> None:
    with pytest.raises(OptionError) as caught:
        ask(tiny)
    assert "\n" not in str(caught.value)
