"""The authors' recipe, prompts and windows for models whose patches speak, by the form of their weights.

Models that are not listed are read as CLIPs.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from densevl.backbones.protocol import InferenceProtocol


@dataclass(frozen=True)
class Readout:
    """The authors' way to get dense features.

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
        # RADSeg-OVSS/RADSeg, its windows at high resolution
        "RADIO with words": Readout(
            "radseg",
            "openai",
            InferenceProtocol(short_side=672, crop=336, stride=224, logit_scale=100.0),
            "RADIO: any English words, photos; it speaks the words of the SigLIP 2 beside it",
        ),
        # 360CVGroup/FG-CLIP: photos of any shape in one piece; no figures of segmentation could be read
        "FG-CLIP 2": Readout(
            "vanilla",
            "openai",
            InferenceProtocol(short_side=448, long_side=1024, crop=None),
            "FG-CLIP 2: English and Chinese words, photos; its patches were trained on words of boxes",
        ),
        # facebookresearch/dinov3, its notebook of zero-shot segmentation; of DINOv2 in multiples of its patch
        "dino.txt on DINOv2": Readout(
            "vanilla",
            "openai",
            InferenceProtocol(short_side=518, crop=392, stride=196),
            "dino.txt: any English words, photos; its head was trained to bring DINO's patches to words",
        ),
        "dino.txt on DINOv3": Readout(
            "vanilla",
            "openai",
            InferenceProtocol(short_side=512, crop=384, stride=192),
            "dino.txt: any English words, photos; its head was trained to bring DINO's patches to words",
        ),
    }
)
