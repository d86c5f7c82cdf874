"""Pseudo labels against dense algebra and against what a reader would pick by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import close
from densevl.errors import LabelError, ModelError, OptionError
from densevl.fewshot.pseudo import aligned, pseudo_labels, spread

C, E = 4, 10


def draw(count: int = 26, noise: float = 0.5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, words and true classes; words lie far from features, in a direction that all share."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(C, E, generator=generator), dim=1)
    truth = torch.arange(count) % C
    features = F.normalize(centres[truth] + noise * torch.randn(count, E, generator=generator) / 2, dim=1)
    text = F.normalize(centres + 2 * F.normalize(torch.randn(E, generator=generator), dim=0), dim=1)
    return features, text, truth


FEATURES, TEXT, TRUTH = draw()


def by_dense_algebra(features: torch.Tensor, text: torch.Tensor, neighbours: int, alpha: float) -> np.ndarray:
    """ReCLIP's propagation with loops and an inverse."""
    _, _, basis = np.linalg.svd(text.double().numpy(), full_matrices=False)
    rest = basis[1:]
    nodes = np.concatenate([text.double().numpy(), features.double().numpy()]) @ rest.T @ rest
    nodes /= np.linalg.norm(nodes, axis=1, keepdims=True)
    count, joined = len(nodes), np.zeros((len(nodes), len(nodes)))
    for i in range(count):
        others = [j for j in range(len(text), count) if j != i]
        for j in sorted(others, key=lambda j: -nodes[i] @ nodes[j])[:neighbours]:
            joined[i, j] = max(0.0, nodes[i] @ nodes[j])
    joined = np.maximum(joined, joined.T)
    root = np.diag(joined.sum(axis=1) ** -0.5)
    return np.linalg.inv(np.eye(count) - alpha * root @ joined @ root)[len(text) :, : len(text)]


@pytest.mark.parametrize("alpha", [0.5, 0.99])
def test_spreading_is_the_dense_solution(alpha) -> None:
    close(spread(FEATURES, TEXT, 5, alpha), by_dense_algebra(FEATURES, TEXT, 5, alpha).astype(np.float32))


def test_spreading_brings_features_right_that_words_alone_get_wrong() -> None:
    features, text, truth = draw(60, noise=0.6, seed=3)
    alone = (pseudo_labels("top", features, text, count=None).labels == truth).float().mean()
    spread_out = (pseudo_labels("spread", features, text, count=None).labels == truth).float().mean()
    assert spread_out > alone


def test_what_all_words_share_is_taken_off() -> None:
    rows = aligned(TEXT, TEXT)
    shared = torch.linalg.svd(TEXT.double())[2][0]
    close(rows @ shared, 0.0)
    close(rows.norm(dim=1), 1.0)
    close(aligned(TEXT[:2], TEXT[:2]).float(), TEXT[:2])  # of two words nothing would be left


def test_the_surest_of_each_class_are_taken_and_no_more() -> None:
    chances = (50.0 * FEATURES @ TEXT.mT).softmax(dim=1)
    found = pseudo_labels("top", FEATURES, TEXT, scale=50.0, count=3)
    for c in range(C):
        own = sorted((i for i in range(len(FEATURES)) if chances[i].argmax() == c), key=lambda i: -chances[i, c])
        assert (found.labels == c).nonzero().flatten().tolist() == sorted(own[:3])
    assert int((pseudo_labels("top", FEATURES, TEXT, count=None).labels >= 0).sum()) == len(FEATURES)


def test_retrieval_takes_the_nearest_of_each_class_once() -> None:
    cosines = (FEATURES @ TEXT.mT).numpy()
    found = pseudo_labels("retrieve", FEATURES, TEXT, count=4).labels.tolist()
    near = [set(np.argsort(-cosines[:, c], kind="stable")[:4].tolist()) for c in range(C)]
    for index, label in enumerate(found):
        asked = [c for c in range(C) if index in near[c]]
        assert label == (max(asked, key=lambda c: cosines[index, c]) if asked else -1)
    assert -1 in found


def test_background_words_take_what_is_likest_them() -> None:
    ground = F.normalize(FEATURES[:1] + 0.01, dim=1)
    found = pseudo_labels("top", FEATURES, torch.cat([TEXT, ground]), count=None).labels
    assert int(found[0]) == C


@pytest.mark.parametrize("how", ["top", "spread", "retrieve"])
def test_one_feature_and_one_word_are_enough(how) -> None:
    assert pseudo_labels(how, FEATURES[:1], TEXT[:1]).labels.tolist() == [0]


@pytest.mark.parametrize(
    ("act", "error", "match"),
    [
        (lambda: pseudo_labels("best", FEATURES, TEXT), OptionError, "how"),
        (
            lambda: pseudo_labels("top", FEATURES, TEXT, count=0),
            OptionError,
            "count is a whole number",
        ),
        (lambda: pseudo_labels("top", FEATURES, TEXT, count=1.5), OptionError, "not 1.5"),
        (lambda: pseudo_labels("top", FEATURES, TEXT, count="3"), OptionError, "not '3'"),
        (lambda: pseudo_labels("top", FEATURES[:, :3], TEXT), ModelError, "other spaces"),
        (lambda: pseudo_labels("top", FEATURES[:0], TEXT), LabelError, "nothing to learn"),
        (lambda: spread(FEATURES, TEXT, 0), OptionError, "neighbours is 0"),
        (lambda: spread(FEATURES, TEXT, alpha=1.0), OptionError, "alpha 1.0"),
    ],
)
def test_what_cannot_be_is_refused(act, error, match) -> None:
    with pytest.raises(error, match=match):
        act()
