"""Classes whose strings are narrower: the decoder's argmax is CHiLS's product of two softmaxes."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from conftest import close, random_clip, wrap
from densevl.vocabulary import Background, LabelSet, TextOptions
from densevl.vocabulary.hierarchy import image_log_prior, pixel_rows
from densevl.vocabulary.text_classifier import TextClassifier

CLASSES = torch.tensor([0, 0, 1, 1, 1, -1])


def _unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def _product(child: torch.Tensor, supers: torch.Tensor, scale: float) -> torch.Tensor:
    """p(child) * p(parent of child), the classless string its own parent: (N, T)."""
    index = torch.tensor([0, 0, 1, 1, 1, 2])
    return torch.softmax(scale * child, -1) * torch.softmax(scale * supers, -1)[..., index]


def test_pixel_rows_rank_strings_as_the_product_at_every_pixel() -> None:
    torch.manual_seed(0)
    rows, parents, pixels = _unit(6, 8), _unit(2, 8), _unit(500, 8)
    supers = torch.cat([parents, rows[5:]])
    want = _product(pixels @ rows.T, pixels @ supers.T, 40.0)
    got = torch.softmax(2 * 40.0 * pixels @ pixel_rows(rows, parents, CLASSES).T, dim=-1)
    close(got, want / want.sum(-1, keepdim=True))


def test_the_image_prior_is_the_softmax_over_classes_and_classless_strings() -> None:
    torch.manual_seed(0)
    rows, parents, image, pixels = _unit(6, 8), _unit(2, 8), torch.randn(8), _unit(500, 8)
    supers = F.normalize(image, dim=0) @ torch.cat([parents, rows[5:]]).T
    want = _product(pixels @ rows.T, supers.expand(500, -1), 40.0)
    bias = image_log_prior(image, rows, parents, CLASSES, 40.0)
    got = torch.softmax(40.0 * pixels @ rows.T + bias, dim=-1)
    close(got, want / want.sum(-1, keepdim=True))


def test_a_class_that_is_its_own_only_string_is_left_as_it_is() -> None:
    backbone = wrap(random_clip(seed=1))
    labels, policy = LabelSet.parse("cat,dog|not:toy"), Background(words=("sky",))
    plain = TextClassifier(backbone, "photo").encode(labels, policy)
    got = TextClassifier(backbone, "photo", TextOptions(parents="pixel")).encode(labels, policy)
    close(got.vectors, plain.vectors)
    nested = LabelSet.parse({"animal": ["cat", "dog"]})
    rows = TextClassifier(backbone, "photo", TextOptions(parents="pixel")).encode(nested).vectors
    animal = TextClassifier(backbone, "photo").encode(LabelSet.parse("animal")).vectors
    close(rows, (plain.vectors[:2] + animal) / 2)
