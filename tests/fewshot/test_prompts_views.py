"""Head "prompt" with views: other looks at the examples, what they teach, and what they are not for."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from test_fewshot_pipeline import EXAMPLES, NAMES, PLAIN, picture
from test_learned_prompts import LABELS, STRINGS, TEMPLATES, draw
from torch.nn import functional as F

from conftest import close, random_clip, wrap
from densevl import FewShot
from densevl.errors import ModelError, OptionError
from densevl.fewshot import build
from densevl.fewshot.prompts.conditioned import Conditioned, Net, contrast, gather
from densevl.fewshot.prompts.contexts import Contexts, Spoken, joined, unit_prompts
from densevl.fewshot.prompts.training import Task
from densevl.fewshot.views import LEAST, view
from densevl.fewshot.words import class_rows
from densevl.vocabulary import Background
from densevl.vocabulary.text_classifier import TextClassifier


@pytest.fixture(scope="module")
def rows(tiny) -> torch.Tensor:
    """Rows of the three classes and of the background word."""
    text = TextClassifier(tiny, TEMPLATES, use_cache=False).encode(LABELS, Background(words=("sky",)))
    return class_rows(text, 3)


def made(tiny, **settings):
    return build("prompt", tower=tiny, templates=TEMPLATES, **{"steps": 3, "contexts": 2, "folds": 1, **settings})


def looks(features: torch.Tensor, count: int, seed: int = 5) -> torch.Tensor:
    noise = torch.randn(len(features), count, features.shape[1], generator=torch.Generator().manual_seed(seed))
    return features[:, None] + 0.2 * noise


def test_views_are_examples_that_share_a_weight(tiny, rows) -> None:
    features, labels = draw(2)
    views, weights = looks(features, 2), torch.arange(1, 7).float()
    head = made(tiny, views=2).fit(features, labels, rows, scale=20.0, weights=weights, strings=STRINGS, views=views)
    every = torch.cat([features[:, None], views], dim=1).flatten(0, 1)
    plain = made(tiny).fit(
        every,
        labels.repeat_interleave(3),
        rows,
        scale=20.0,
        weights=weights.repeat_interleave(3),
        strings=STRINGS,
    )
    close(head.text, plain.text)
    alone = made(tiny).fit(features, labels, rows, scale=20.0, weights=weights, strings=STRINGS)
    assert not torch.allclose(head.text, alone.text, atol=1e-3)


def test_views_that_are_the_image_itself_change_nothing(tiny, rows) -> None:
    features, labels = draw(2)
    same = features[:, None].expand(-1, 3, -1)
    head = made(tiny, views=3, folds=2).fit(features, labels, rows, scale=20.0, strings=STRINGS, views=same)
    plain = made(tiny, folds=2).fit(features, labels, rows, scale=20.0, strings=STRINGS)
    close(head.text, plain.text)
    assert head.found["steps"] == plain.found["steps"]


def test_the_contrast_is_that_of_the_formula() -> None:
    torch.manual_seed(0)
    unit, views = torch.randn(3, 8, dtype=torch.float64), torch.randn(3, 2, 8, dtype=torch.float64)
    net = Net(*(torch.randn(shape, dtype=torch.float64) for shape in ((4, 8), (4,), (5, 4), (5,))))

    def hidden(one: torch.Tensor) -> torch.Tensor:
        found = (net.down @ one * 8**0.5 + net.inner).clamp(min=0)
        return found / found.norm()

    total = 0.0
    for number in range(2):
        both = [hidden(one) for one in [*unit, *views[:, number]]]
        for one in range(6):
            terms = [torch.exp(both[one] @ both[other] / 0.1) for other in range(6)]
            rest = sum(term for other, term in enumerate(terms) if other != one)
            total -= float(torch.log(terms[(one + 3) % 6] / rest)) / 12
    assert float(contrast(net, unit, views)) == pytest.approx(total)


def test_the_gradient_is_that_of_finite_differences(rows) -> None:
    tower = wrap(copy.deepcopy(random_clip()).double(), "double")
    features, labels = draw(1)
    unit, spoken = F.normalize(features.double(), dim=1), Spoken.of(STRINGS[:3])
    views = F.normalize(looks(features, 2).double(), dim=2)
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    task = Task(unit, labels, weights, spoken, rows[:3].double(), 20.0, 0.7, views)
    torch.manual_seed(1)
    start = [torch.randn(2, 16, dtype=torch.float64)]
    net = [0.3 * torch.randn(shape, dtype=torch.float64) for shape in ((4, 24), (4,), (16, 4), (16,))]
    step = [1e-6 * torch.randn_like(one) for one in [*start, *net]]
    chosen = torch.tensor([2, 0])

    @torch.no_grad()
    def loss(sign: int) -> float:
        """The mean over the batch of N w_i (CE + tie + how far rows of looks lie apart), and the contrast."""
        words, down, inner, up, outer = (own + sign * by for own, by in zip([*start, *net], step, strict=True))
        total = 0.1 * float(contrast(Net(down, inner, up, outer), unit[chosen], views[chosen]))
        for index in chosen.tolist():
            found, own = [], 0.0
            for look in (unit[index], *views[index]):
                shift = up @ (24**0.5 * down @ look + inner).clamp(min=0) + outer
                said = joined(unit_prompts(tower, Contexts([words + shift], [2]), spoken.strings), spoken.member)
                entropy = -(20 * said @ look).log_softmax(0)[labels[index]]
                own += float(entropy + 0.7 * ((said - task.text) ** 2).sum() / 3) / 3
                found.append(said)
            own += float(sum(((found[0] - other) ** 2).sum() / 3 for other in found[1:]) / 2)
            total += 3 * float(weights[index]) * own / 2
        return total

    own = Conditioned(Contexts(start, [2]), Net(*net)).leaves(torch.device("cpu"))
    value = gather(tower, own, task, chosen)
    leaves = [*own.contexts.words, *own.net.tensors().values()]
    slope = sum(float((leaf.grad * by).sum()) for leaf, by in zip(leaves, step, strict=True))
    assert value == pytest.approx(loss(0))
    assert slope == pytest.approx((loss(1) - loss(-1)) / 2, rel=1e-4)


def test_a_view_is_a_crop_of_half_the_picture_or_more_by_chance_mirrored() -> None:
    rng, mirrored = np.random.default_rng(0), 0
    place = np.stack(np.meshgrid(np.arange(40), np.arange(60), indexing="ij"), axis=-1)
    rgb = np.concatenate([place, np.zeros((40, 60, 1))], axis=-1).astype(np.uint8)
    for _ in range(40):
        found = view(rgb, rng).astype(int)
        turned = found[0, 0, 1] > found[0, -1, 1]
        upright, mirrored = (found[:, ::-1] if turned else found), mirrored + turned
        top, left = upright[0, 0, :2]
        assert np.array_equal(upright, rgb[top : top + len(found), left : left + found.shape[1]])
        assert found.shape[0] * found.shape[1] >= 0.85 * LEAST * rgb.shape[0] * rgb.shape[1]
    assert 10 < mirrored < 30
    assert view(rgb[:1, :1], rng).shape == (1, 1, 3)


def test_pictures_are_looked_at_again_in_their_order(tiny) -> None:
    options = {"steps": 1, "folds": 1, "contexts": 1, "views": 2, "seed": 3}
    one, two = (
        FewShot(tiny, "prompt", options=options, **PLAIN).fit(EXAMPLES["image"], labels=NAMES) for _ in range(2)
    )
    head = one.heads["image"]
    assert torch.equal(head.text, two.heads["image"].text)
    rng = np.random.default_rng(3)
    pictures = [picture for pictures in EXAMPLES["image"].values() for picture in pictures]
    want = one.features.embed([view(rgb, rng) for rgb in pictures for _ in range(2)])
    close(head._views.flatten(0, 1), F.normalize(want, dim=1))
    found = FewShot(tiny, "prompt", options=options, **PLAIN).fit_unlabelled(pictures, NAMES, count=2)
    assert len(found.heads["image"]._views) == sum(found.counts.values())
    assert one(picture("blue", seed=9)).probabilities.shape == (3,)


def test_what_views_are_not_for_is_refused(tiny, rows) -> None:
    for level in ("region", "pixel"):
        with pytest.raises(OptionError, match="views are for whole images"):
            FewShot(tiny, "prompt", level=level, options={"views": 1}, **PLAIN)
    with pytest.raises(OptionError, match="views is a whole number"):
        made(tiny, views=-1)
    features, labels = draw(2)
    spoiled = looks(features, 1)
    spoiled[0, 0, 0] = torch.nan
    for views in (None, looks(features, 2), looks(features[:2], 1), features, spoiled):
        with pytest.raises(ModelError, match="views is 1, and"):
            made(tiny, views=1).fit(features, labels, rows, strings=STRINGS, views=views)
    head = made(tiny, views=1).fit(features, labels, rows, strings=STRINGS, views=looks(features, 1))
    with pytest.raises(ModelError, match="with views learns at once"):
        head.partial_fit(features, labels)
