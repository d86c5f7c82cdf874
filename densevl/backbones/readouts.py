"""How models whose patches speak are read: recipe, prompts and windows of their authors, by the form of their weights.

A model that is not here is read as CLIPs are.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from densevl.backbones.protocol import InferenceProtocol


@dataclass(frozen=True)
class Readout:
    """What a model's authors do to get dense features.

    Attributes: recipe, templates, protocol: see `Backbone`. summary: what the model is good for.
    """

    recipe: str
    templates: str
    protocol: InferenceProtocol
    summary: str


READOUTS = MappingProxyType(
    {
        # google-deepmind/tips, its notebook of zero-shot segmentation: ADE150 17.4 (B) and 24.7 (L)
        "TIPSv2": Readout(
            "maskclip",
            "simple+plural",
            InferenceProtocol(short_side=448, crop=448, stride=336),
            "TIPSv2: any English words, photos; its patches were trained to speak",
        ),
    }
)
