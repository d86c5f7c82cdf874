"""Named regions inside other people's detectors: supervision, torchvision, and hooks for RoI heads.

What a name needs is imported when it is first asked for; a package that is missing is said in one line with its
install command.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densevl.integrations.cosine import CosinePredictor, replace_predictor
    from densevl.integrations.hooks import RoiScores, roi_hook
    from densevl.integrations.scores import fused_probs, objectness
    from densevl.integrations.supervision import label_detections
    from densevl.integrations.torchvision import OpenVocabularyDetector, candidates, rescore

__all__ = [
    "label_detections",
    "OpenVocabularyDetector",
    "rescore",
    "candidates",
    "CosinePredictor",
    "replace_predictor",
    "roi_hook",
    "RoiScores",
    "fused_probs",
    "objectness",
]

_HOMES = {
    "supervision": ("label_detections",),
    "torchvision": ("OpenVocabularyDetector", "rescore", "candidates"),
    "cosine": ("CosinePredictor", "replace_predictor"),
    "hooks": ("roi_hook", "RoiScores"),
    "scores": ("fused_probs", "objectness"),
}
_LAZY = {name: f"densevl.integrations.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'densevl.integrations' has no attribute '{name}'")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
