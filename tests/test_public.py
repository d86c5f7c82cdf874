"""The public face: names that must not vanish by accident."""

from __future__ import annotations

import pytest

import densevl

PUBLIC = {
    "Segmenter",
    "SegmentationResult",
    "LabelSet",
    "Recipe",
    "load_backbone",
    "recipes",
    "DensevlError",
    "Descriptors",
    "Ensemble",
    "TextOptions",
    "load_proxy",
    "AnomalyDetector",
    "RegionClassifier",
    "load_proposer",
    "Proposals",
    "__version__",
}


def test_public_names() -> None:
    assert set(densevl.__all__) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC | {"inference", "backbones", "kernels", "vocabulary"}))
def test_every_public_name_resolves(name) -> None:
    assert getattr(densevl, name) is not None
    assert name in dir(densevl)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        densevl.nope  # noqa: B018
