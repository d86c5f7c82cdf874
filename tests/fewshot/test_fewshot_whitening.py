"""Features compared whitened: the metric, what it is chosen on, and the heads that have it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import close
from densevl.fewshot import build, restore
from densevl.fewshot.head import Samples
from densevl.fewshot.heads.whitening import RIDGE, Whitening, parts

CACHES = ["nearest", "exemplars", "tip", "tipx", "ape"]
C, D, SCALE = 4, 12, 20.0
TEXT = F.normalize(torch.randn(C, D, generator=torch.Generator().manual_seed(1)), dim=1)


def draw(shots: int, seed: int = 0, nuisance: float = 6.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Examples that differ in a few directions of their own more than classes do, as of objects on any ground."""
    generator = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(9)
    centres, grounds = torch.randn(C, D, generator=fixed), torch.randn(3, D, generator=fixed)
    labels = torch.arange(C).repeat_interleave(shots)
    ground = nuisance * torch.randn(len(labels), 3, generator=generator) @ grounds / 3**0.5
    noise = 0.2 * torch.randn(len(labels), D, generator=generator)
    return F.normalize(2 * centres[labels] + ground + noise + 1.0, dim=1), labels


def samples(shots: int, **further: float) -> Samples:
    features, labels = draw(shots, **further)
    return Samples(features, labels, torch.linspace(0.5, 1.5, len(labels)))


def by_solving(found: Samples, query: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Cosines under (S + ridge I)^-1 by its linear system, in float64; no root of it is taken."""
    rows, labels, weights = (part.double().numpy() for part in (found.features, found.labels, found.weights))
    scatter, means = np.zeros((D, D)), []
    for label in range(C):
        own, w = rows[labels == label], weights[labels == label]
        means.append((w[:, None] * own).sum(0) / w.sum())
        for row, weight in zip(own, w, strict=True):
            scatter += weight * np.outer(row - means[-1], row - means[-1])
    metric = scatter + RIDGE * np.trace(scatter) / D * np.eye(D)
    centre = np.mean(means, axis=0)

    def product(a: np.ndarray, b: np.ndarray) -> float:
        return float((a - centre) @ np.linalg.solve(metric, b - centre))

    return np.array([[product(q, k) / (product(q, q) * product(k, k)) ** 0.5 for k in keys] for q in query])


def test_the_metric_is_that_of_the_formula() -> None:
    found, (query, _) = samples(5), draw(2, seed=3)
    whitening = Whitening.of(found)
    got = whitening(query) @ whitening(found.features).mT
    close(got, by_solving(found, query.double().numpy(), found.features.double().numpy()), **ROOM)


ROOM = {"tolerance": 1e-4, "why": "a root of eigenvalues in float32 against a system in float64"}


def test_a_shift_and_a_scale_of_all_features_change_nothing() -> None:
    one = samples(4)
    other = Samples(3 * one.features + 2, one.labels, one.weights)
    first, second = Whitening.of(one), Whitening.of(other)
    close(first(one.features), second(other.features), **ROOM)


def test_copies_of_one_example_have_no_metric_and_single_ones_that_of_all() -> None:
    copies = Samples(F.normalize(torch.ones(3, D), dim=1), torch.zeros(3, dtype=torch.long), torch.ones(3))
    assert Whitening.of(copies) is None
    assert Whitening.of(samples(1)) is not None


@pytest.mark.parametrize("name", CACHES)
def test_what_examples_differ_in_for_itself_is_told_from_classes(name) -> None:
    features, labels = draw(12)
    query, truth = draw(30, seed=5)

    def right(**settings: object) -> float:
        head = build(name, **settings).fit(features, labels, TEXT, scale=SCALE)
        return float((head.logits(query).argmax(dim=1) == truth).float().mean())

    assert right() > 0.9
    assert right() > right(whiten=False) + 0.1
    assert build(name).fit(features, labels, TEXT, scale=SCALE).found["whitened"] == 1


@pytest.mark.parametrize("name", CACHES)
def test_single_examples_are_compared_as_they_are_unless_asked(name) -> None:
    features, labels = draw(1)
    auto, plain, asked = (
        build(name, whiten=whiten).fit(features, labels, TEXT, scale=SCALE) for whiten in (None, False, True)
    )
    assert auto.found["whitened"] == plain.found["whitened"] == 0
    assert torch.equal(auto.logits(features), plain.logits(features))
    assert asked.found["whitened"] == 1
    assert torch.isfinite(asked.logits(features)).all()


@pytest.mark.parametrize("name", CACHES)
def test_a_restored_head_answers_alike_and_examples_may_come_later(name) -> None:
    features, labels = draw(6)
    fixed = {"whiten": True, **({"alpha": 3.0, "beta": 4.0} if name in ("tip", "tipx", "ape") else {})}
    fixed |= {"gamma": 1.0} if name == "tipx" else {}
    whole = build(name, **fixed).fit(features, labels, TEXT, scale=SCALE)
    query = draw(2, seed=5)[0]
    assert torch.equal(restore(*whole.state()).logits(query), whole.logits(query))
    half = torch.arange(len(labels)) % 2 == 0
    grown = build(name, **fixed).fit(features[half], labels[half], TEXT, scale=SCALE)
    close(grown.partial_fit(features[~half], labels[~half]).logits(query), whole.logits(query), **ROOM)


def test_examples_are_judged_by_a_metric_and_by_others_that_have_not_seen_them() -> None:
    features, labels = draw(6)
    head = build("exemplars", whiten=True).fit(features, labels, TEXT, scale=SCALE)
    logits, owners = head.left_out()
    assert torch.equal(owners, labels)
    every = torch.ones(len(labels), dtype=torch.bool)
    whole = Samples(features, labels, torch.ones(len(labels)))
    for part in parts(whole, every, whiten=True):
        assert not set(part.judged.tolist()) & set(part.rest.tolist())
        alone = build("exemplars", whiten=True).fit(features[part.rest], labels[part.rest], TEXT, scale=SCALE)
        close(logits[part.judged].softmax(1), alone.logits(features[part.judged]).softmax(1), **ROOM)
    leaky = head.logits(features).log_softmax(1).gather(1, labels[:, None]).mean()
    assert logits.log_softmax(1).gather(1, labels[:, None]).mean() < leaky


def test_tips_settings_are_those_under_which_left_out_folds_are_most_probable() -> None:
    features, labels = draw(6)
    chosen = build("tip", beta=4.0, whiten=True).fit(features, labels, TEXT, scale=SCALE).found["alpha"]

    def likelihood(alpha: float) -> float:
        total = 0.0
        whole, every = Samples(features, labels, torch.ones(len(labels))), torch.ones(len(labels), dtype=torch.bool)
        for part in parts(whole, every, whiten=True):
            head = build("tip", alpha=alpha, beta=4.0, whiten=True)
            head.fit(features[part.rest], labels[part.rest], TEXT, scale=SCALE)
            logp = head.logits(features[part.judged]).double().log_softmax(1)
            own, wrong = logp.gather(1, labels[part.judged, None])[:, 0], 1 / (len(labels) + 1)
            total += float(((1 - wrong) * own + wrong * logp.mean(1)).sum())
        return total

    assert chosen > 0
    assert likelihood(chosen) > max(likelihood(1.4 * chosen), likelihood(chosen / 1.4))


def test_gda_takes_a_smaller_ridge_where_left_out_examples_are_more_probable_then() -> None:
    features, labels = draw(3)
    query, truth = draw(30, seed=5)
    auto = build("gda").fit(features, labels, TEXT, scale=SCALE)
    assert auto.found["ridge"] == RIDGE

    def likelihood(head) -> float:
        return float(head.logits(query).log_softmax(1).gather(1, truth[:, None]).mean())

    paper = build("gda", alpha=auto.found["alpha"]).fit(features, labels, TEXT, scale=SCALE)
    assert likelihood(auto) > likelihood(paper)
    again = restore(*auto.state())
    assert torch.equal(again.logits(query), auto.logits(query))
    single = build("gda").fit(*draw(1), TEXT, scale=SCALE)
    assert "ridge" not in single.found
