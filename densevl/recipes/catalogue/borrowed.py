"""Methods that borrow the affinity of another model, a proxy, or attend only within regions."""

from __future__ import annotations

from typing import Any

from densevl.kernels import Gaussian
from densevl.recipes.catalogue.published import BARE, SLIDE, miou
from densevl.recipes.part import Proxy
from densevl.recipes.parts.additions import OtherBlocks
from densevl.recipes.parts.affinity import Affinity, Floor, Relative, Smooth, Softmax
from densevl.recipes.parts.attention import Identity, SelfAttention
from densevl.recipes.parts.feedback import ScoreFeedback, TwoPass
from densevl.recipes.parts.heads import PairedHeads
from densevl.recipes.parts.regions import SMALLEST, PooledRegions, RegionEmbedding, Regions
from densevl.recipes.parts.spread import LabelPropagation
from densevl.recipes.parts.stitch import JoinedFeatures, JoinedProjections, SamAttention
from densevl.recipes.recipe import Recipe, Source

_DINO8, _DINO16 = Proxy("dino_vitb8"), Proxy("dino_vitb16")
_VALUES16, _KEYS8 = Proxy("dino_vitb16", "v"), Proxy("dino_vitb8", "k")


def _proxyclip(proxy: Proxy, *, swapped: bool = False) -> Affinity:
    return Affinity(proxy, Relative(3.0, 1.2), grid="proxy", swapped=swapped)


def _corrclip(proxy: Proxy, grid: str | int, regions: Regions) -> dict[str, Any]:
    """The slots that read regions: the attention and the further sources."""
    middle = OtherBlocks((6, 7, 8, 9, 10), mean=True, after_norm=True, deeper=((24, 11, 22), (32, 3, 30)))
    attention = Affinity(proxy, Softmax(4.0), regions, grid=grid)
    return {"attention": attention, "adds": (middle, RegionEmbedding(regions, 0.5))}


_BOTH8 = Proxy("dino_vitb8", "q+k")

ENTRIES = (
    Recipe(
        "proxyclip",
        attention=_proxyclip(_DINO8),
        **BARE,
        published={"attention": _proxyclip(_DINO8, swapped=True)},
        source=Source(
            "ProxyCLIP: Proxy Attention Improves CLIP for Open-Vocabulary Segmentation",
            "ECCV 2024",
            "https://arxiv.org/abs/2408.04883",
            miou(61.3, 35.3, 37.5, 80.3, 39.1, 26.5, 38.1, 20.2),
            "short side 336 (ADE, Cityscapes 448), windows 336 / stride 112",
        ),
        note="compat swaps height and width of the values, as the authors do. Their mean cosine is one window's, as "
        "they run one window a pass.",
    ),
    Recipe(
        "fsa",
        attention=TwoPass(_proxyclip(_DINO8), ScoreFeedback()),
        **BARE,
        published={"attention": TwoPass(_proxyclip(_DINO8, swapped=True), ScoreFeedback())},
        source=Source(
            "Feedback attention on ProxyCLIP (FSA)",
            "2025",
            "https://github.com/chi-chi-zx/FSA",
        ),
        note="With text it looks twice; without, it is ProxyCLIP.",
    ),
    Recipe(
        "cass",
        attention=PairedHeads(_KEYS8, "kk", Gaussian(5.0)),
        **BARE,
        published={"attention": PairedHeads(_KEYS8, "kk", Gaussian(5.0), swapped=True)},
        source=Source(
            "Distilling Spectral Graph for Object-Context Aware Open-Vocabulary Semantic Segmentation",
            "CVPR 2025",
            "https://arxiv.org/abs/2411.17150",
            miou(65.8, 36.7, 37.8, 87.8, 40.2, 26.7, 39.4, 20.4),
            f"with its text adjustment, set per benchmark; {SLIDE}, VOC21 whole image",
        ),
        note="The attention. compat uses the pairs of heads the wrong way round, as the authors' code does.",
    ),
    Recipe(
        "dinoiser",
        attention=Identity(),
        joint=(Smooth(_VALUES16, Floor(0.2)),),
        position_rule="size",
        source=Source(
            "CLIP-DINOiser: Teaching CLIP a few DINO tricks",
            "ECCV 2024",
            "https://arxiv.org/abs/2312.12359",
            miou(62.1, 32.4, 34.8, 80.9, 35.9, 24.6, 31.7, 20.0),
            "its trained form, LAION-2B weights; short side 448, windows 448 / stride 224",
        ),
        note="The training-free form, on any proxy; its trained heads are a proxy too, `DinoiserHeads`, which "
        "`python -m tools.dinoiser train` trains for any tower of open_clip.",
    ),
    Recipe(
        "lposs",
        attention=Identity(),
        spread=LabelPropagation(_VALUES16),
        position_rule="size",
        published={"spread": LabelPropagation(_VALUES16, steps=10)},
        source=Source(
            "LPOSS: Label Propagation Over Patches and Pixels for Open-vocabulary Semantic Segmentation",
            "CVPR 2025",
            "https://arxiv.org/abs/2503.19777",
            miou(61.1, 34.6, 33.4, 78.8, 37.8, 25.9, 37.3, 21.8),
            "LAION-2B weights; short side 448, windows 224 / stride 112",
        ),
        note="The patch level; at pixels, refine='lposs+'. compat stops the solver after ten steps, as the authors do.",
    ),
    Recipe(
        "trident",
        attention=_proxyclip(_DINO16),
        **BARE,
        stitch=JoinedFeatures(SamAttention(factor=1.2, cap=0.9)),
        published={"attention": _proxyclip(_DINO16, swapped=True)},
        source=Source(
            "Harnessing Vision Foundation Models for High-Performance, Training-Free Open Vocabulary Segmentation",
            "ICCV 2025",
            "https://arxiv.org/abs/2411.09219",
            protocol="windows 336 / stride 224, then prompted SAM",
        ),
        note="Without its SAM refinement of the masks. Needs sam=load_proxy('sam_vit_b') beside the proxy.",
    ),
    Recipe(
        "corrclip",
        **_corrclip(_BOTH8, "proxy", Regions(merge=0.2)),
        **BARE,
        published=_corrclip(_BOTH8, "proxy", Regions(merge=0.2, blank=SMALLEST)),
        source=Source(
            "CorrCLIP: Reconstructing Patch Correlations in CLIP for Open-Vocabulary Semantic Segmentation",
            "ICCV 2025",
            "https://arxiv.org/abs/2411.10086",
            miou(72.2, 41.6, 40.7, 88.7, 47.1, 30.7, 44.6, 23.7),
            "with SAM 2 masks and a vote inside them; windows 336 / stride 112",
        ),
        note="Regions come from a mask proposer, 0 where none is; compat takes the smallest id for none. Its vote "
        "inside the masks is `refine.majority_vote`.",
    ),
    Recipe(
        "corrclip_v2",
        **_corrclip(Proxy("radio_l"), 2, Regions()),
        **BARE,
        published=_corrclip(Proxy("radio_l"), 2, Regions(blank=SMALLEST)),
        source=Source(
            "CorrCLIP: Reconstructing Patch Correlations in CLIP for Open-Vocabulary Semantic Segmentation",
            "its second version, 2026",
            "https://github.com/zdk258/CorrCLIP",
            miou(75.8, 45.9, 45.4, 89.9, 50.8, 32.6, 53.7, 28.6),
            "without a bank; MetaCLIP weights, RADIO at the photo's own size, EntitySeg masks and a vote inside them; "
            "windows 336 / stride 112",
        ),
        note="Regions as for corrclip, which it does not merge. RADIO sees the photo as the protocol resizes it, and "
        "windows are not padded to multiples of 56 pixels.",
    ),
    Recipe(
        "ov_stitcher",
        attention=Affinity(_DINO8, Relative(3.0, 1.2)),
        **BARE,
        stitch=JoinedProjections(),
        source=Source(
            "OV-Stitcher: A Global Context-Aware Framework for Training-Free Open-Vocabulary Semantic Segmentation",
            "2026",
            "https://arxiv.org/abs/2604.08110",
            miou(73.1, 42.4, 41.4, 87.6, 47.1, 30.7, 45.4, 23.6),
            "with masks; its code is not public",
        ),
        note="Values of all windows meet before one attention over the whole image, by ProxyCLIP's weights: the paper "
        "leaves the temperature open.",
    ),
    Recipe(
        "textregion",
        readout=PooledRegions(),
        stitch=JoinedProjections(),
        source=Source(
            "TextRegion: Text-Aligned Region Tokens from Frozen Image-Text Models",
            "TMLR 2025",
            "https://arxiv.org/abs/2505.23769",
            protocol="SAM 2.1 masks, tiles of 336 and the whole image",
        ),
        note="Painted at patches here; windows are averaged, not added.",
    ),
    Recipe(
        "declip",
        attention=SelfAttention("qq"),
        **BARE,
        position_rule="size",
        source=Source(
            "DeCLIP: Decoupled Learning for Open-Vocabulary Dense Perception",
            "CVPR 2025",
            "https://arxiv.org/abs/2505.04410",
            protocol="fine-tuned weights, loaded as a checkpoint of their architecture",
        ),
        note="The way its fine-tuned weights are read; with other weights it is ClearCLIP at another position rule.",
    ),
)
