"""densevl: open-vocabulary dense prediction. Name some labels; get the segmentation of a photo, without training.

    import densevl
    segment = densevl.Segmenter("auto")
    result = segment("street.jpg", ["road", "car | truck", "sky"])
    result.save("street.png")

Importing densevl imports neither torch nor any model; names below are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from densevl.errors import DensevlError

__version__ = "0.1.0"

_LAZY = {
    "Ensemble": "densevl.pipelines.segmentation.ensemble",
    "Segmenter": "densevl.pipelines.segmentation.segmenter",
    "RegionClassifier": "densevl.pipelines.regions.classifier",
    "RegionSearch": "densevl.pipelines.regions.search",
    "RegionResult": "densevl.regions.result",
    "AnomalyDetector": "densevl.pipelines.anomaly.detector",
    "AnomalyResult": "densevl.anomaly.result",
    "Inspector": "densevl.pipelines.fewshot.inspection",
    "FewShot": "densevl.pipelines.fewshot.classifier",
    "train_adapters": "densevl.pipelines.anomaly.adaptation",
    "SegmentationResult": "densevl.results",
    "LabelSet": "densevl.vocabulary",
    "TextOptions": "densevl.vocabulary",
    "Descriptors": "densevl.vocabulary",
    "load_proxy": "densevl.backbones.proxies",
    "load_proposer": "densevl.proposals",
    "Proposals": "densevl.proposals",
    "Recipe": "densevl.recipes",
    "load_backbone": "densevl.backbones",
    "recipes": "densevl.recipes",
    "images": "densevl.images",
    "inference": "densevl.inference",
    "backbones": "densevl.backbones",
    "kernels": "densevl.kernels",
    "evaluation": "densevl.evaluation",
    "regions": "densevl.regions",
    "fewshot": "densevl.fewshot",
    "integrations": "densevl.integrations",
    "vocabulary": "densevl.vocabulary",
}

__all__ = [
    "AnomalyDetector",
    "DensevlError",
    "Descriptors",
    "Ensemble",
    "LabelSet",
    "Recipe",
    "Proposals",
    "RegionClassifier",
    "SegmentationResult",
    "Segmenter",
    "TextOptions",
    "__version__",
    "load_backbone",
    "load_proposer",
    "load_proxy",
    "recipes",
]

if TYPE_CHECKING:
    from densevl import recipes
    from densevl.backbones import load_backbone
    from densevl.backbones.proxies import load_proxy
    from densevl.pipelines.anomaly.detector import AnomalyDetector
    from densevl.pipelines.regions.classifier import RegionClassifier
    from densevl.pipelines.segmentation.ensemble import Ensemble
    from densevl.pipelines.segmentation.segmenter import Segmenter
    from densevl.proposals import Proposals, load_proposer
    from densevl.recipes import Recipe
    from densevl.results import SegmentationResult
    from densevl.vocabulary import Descriptors, LabelSet, TextOptions


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'densevl' has no attribute '{name}'")
    module = import_module(_LAZY[name])
    return module if _LAZY[name] == f"densevl.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
