"""Every method densevl knows, one entry each: the paper, its published figures, and the few fields that make it.

Adding a method is adding an entry here (and a parity row in the tests). Published mIoU: ViT-B/16, OpenAI weights.
"""

from __future__ import annotations

from types import MappingProxyType

from densevl.errors import RecipeError, suggest
from densevl.recipes.recipe import ADAPTIVE, Gaussian, Recipe, Source

BENCHMARKS = ("voc21", "context60", "coco-object", "voc20", "context59", "coco-stuff", "cityscapes", "ade150")


def _miou(*figures: float | None) -> MappingProxyType[str, float]:
    return MappingProxyType({name: f for name, f in zip(BENCHMARKS, figures, strict=True) if f is not None})


_SLIDE = "short side 336 (Cityscapes 560), windows 224 / stride 112"

_ENTRIES = (
    Recipe(
        "vanilla",
        position_rule="size_antialias",
        source=Source(
            "Learning Transferable Visual Models From Natural Language Supervision",
            "ICML 2021",
            "https://arxiv.org/abs/2103.00020",
        ),
        note="The baseline: CLIP's own patch outputs, which were never trained to mean anything.",
    ),
    Recipe(
        "maskclip",
        terms=("id",),
        position_rule="size",
        source=Source(
            "Extract Free Dense Labels from CLIP",
            "ECCV 2022",
            "https://arxiv.org/abs/2112.01071",
            _miou(None, None, None, 49.5, 21.7, 12.5, None, None),
            "whole image, short side 512",
        ),
        note="The authors' code: values only, skip connection and MLP kept.",
    ),
    Recipe(
        "maskclip_value",
        terms=("id",),
        residual=False,
        ffn=False,
        source=Source(
            "Extract Free Dense Labels from CLIP",
            "ECCV 2022",
            "https://arxiv.org/abs/2112.01071",
            _miou(43.4, 23.2, 20.6, 74.9, 26.4, 16.7, 24.9, 11.9),
            f"re-run by later papers: {_SLIDE}",
        ),
        note="The form later papers call MaskCLIP: the value alone, no skip connection, no MLP.",
    ),
    Recipe(
        "clip_surgery",
        terms=("vv",),
        dual_layers=6,
        ffn=False,
        position_rule="bilinear",
        source=Source(
            "CLIP Surgery for Better Explainability with Enhancement in Open-Vocabulary Tasks",
            "Pattern Recognition 2025",
            "https://arxiv.org/abs/2304.05653",
            _miou(None, 29.3, None, None, None, 21.9, 31.4, None),
            "square 512",
        ),
        note="The architecture surgery; its feature surgery acts on scores, not on features.",
    ),
    Recipe(
        "gem",
        terms=("vv", "kk", "qq"),
        combine="prob-mean",
        metric="cosine",
        temperature=ADAPTIVE,
        iterations=1,
        dual_layers=6,
        ffn=False,
        position_rule="size_antialias",
        source=Source(
            "Grounding Everything: Emerging Localization Properties in Vision-Language Transformers",
            "CVPR 2024",
            "https://arxiv.org/abs/2312.00878",
            _miou(46.2, 32.6, None, 79.9, 35.9, 23.7, 30.8, 15.7),
            "whole image 448",
        ),
    ),
    Recipe(
        "sclip",
        terms=("qq", "kk"),
        source=Source(
            "SCLIP: Rethinking Self-Attention for Dense Vision-Language Inference",
            "ECCV 2024",
            "https://arxiv.org/abs/2312.01597",
            _miou(59.1, 30.4, 30.5, 80.4, 34.2, 22.4, 32.2, 16.1),
            _SLIDE,
        ),
        note="The two softmaxes are added, not averaged: rows sum to 2, which outweighs the skip connection.",
    ),
    Recipe(
        "clearclip",
        terms=("qq",),
        residual=False,
        ffn=False,
        source=Source(
            "ClearCLIP: Decomposing CLIP Representations for Dense Vision-Language Inference",
            "ECCV 2024",
            "https://arxiv.org/abs/2407.12442",
            _miou(51.8, 32.6, 33.0, 80.9, 35.9, 23.9, 30.0, 16.7),
            "short side 448, windows 448 / stride 224",
        ),
    ),
    Recipe(
        "naclip",
        terms=("kk",),
        bias=Gaussian(5.0),
        residual=False,
        ffn=False,
        source=Source(
            "Pay Attention to Your Neighbours: Training-Free Open-Vocabulary Semantic Segmentation",
            "WACV 2025",
            "https://arxiv.org/abs/2404.08181",
            _miou(58.9, 32.2, 33.2, 79.7, 35.2, 23.3, 35.5, 17.4),
            f"without PAMR; {_SLIDE}, VOC whole image",
        ),
        note="The Gaussian is in patches: on a finer grid it covers less of the photo.",
    ),
)

_BY_NAME = {entry.name: entry for entry in _ENTRIES}


def names() -> list[str]:
    """Names of all recipes, in catalogue order."""
    return list(_BY_NAME)


def get(recipe: str | Recipe) -> Recipe:
    """Return the recipe of that name ("CLIP Surgery" finds clip_surgery); a `Recipe` is returned as it is.

    Raises:
        RecipeError: no such recipe.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str):
        raise RecipeError(f"recipe is a {type(recipe).__name__}; give a name or a Recipe")
    key = recipe.strip().lower().replace("-", "_").replace(" ", "_")
    if key not in _BY_NAME:
        raise RecipeError(f"no recipe '{recipe}'{suggest(key, _BY_NAME)}; known: {', '.join(_BY_NAME)}")
    return _BY_NAME[key]
