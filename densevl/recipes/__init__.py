"""Methods as data: the `Recipe` type and its parts, the catalogue of papers, and the engine that runs one.

A part of your own subclasses one of `Attention`, `Step`, `Addition`, `Readout`, `Rule`, `Feedback`, `Stitch`, `Spread`.
"""

from densevl.kernels import Gaussian
from densevl.recipes.batch import Batch, Outcome, Pass
from densevl.recipes.catalogue import get, names
from densevl.recipes.features import DenseFeatures
from densevl.recipes.hints import Hints
from densevl.recipes.part import (
    Addition,
    Attention,
    Part,
    PatchFeatures,
    Proxy,
    Readout,
    Spread,
    Step,
    Stitch,
    Sum,
    Tap,
)
from densevl.recipes.parts.additions import BlockInputs, OtherBlocks
from densevl.recipes.parts.affinity import Affinity, Floor, Recursive, Relative, Rule, Smooth, Softmax
from densevl.recipes.parts.attention import (
    BalancedMaps,
    BlockAttention,
    BoxAttention,
    CosineAttention,
    Identity,
    SelfAttention,
)
from densevl.recipes.parts.feedback import Feedback, LabelFeedback, ScoreFeedback, TwoPass
from densevl.recipes.parts.heads import PairedHeads
from densevl.recipes.parts.readout import Contributions, FeatureSurgery, Layer, ScoredSources, Tokens
from densevl.recipes.parts.regions import PooledRegions, RegionEmbedding, Regions
from densevl.recipes.parts.spread import LabelPropagation
from densevl.recipes.parts.steps import AddCls, RepairByAttention, RepairByDensity
from densevl.recipes.parts.stitch import JoinedFeatures, JoinedProjections, OwnCosines, SamAttention
from densevl.recipes.recipe import Recipe, SecondStream, Source

__all__ = [
    "get", "names", "Recipe", "Source", "Hints",
    # attention
    "Identity", "SelfAttention", "CosineAttention", "BlockAttention", "BalancedMaps", "BoxAttention", "PairedHeads",
    "Affinity", "Recursive", "Softmax", "Relative", "Floor", "Regions", "Sum", "Gaussian", "Tap", "Proxy",
    "TwoPass", "LabelFeedback", "ScoreFeedback",
    # around it
    "SecondStream", "RepairByDensity", "RepairByAttention", "Smooth", "AddCls", "OtherBlocks", "BlockInputs",
    "RegionEmbedding", "Tokens", "Layer", "FeatureSurgery", "Contributions", "PooledRegions", "ScoredSources",
    "JoinedProjections", "JoinedFeatures", "SamAttention", "OwnCosines", "LabelPropagation",
    # for parts of your own
    "Part", "Attention", "Step", "Addition", "Readout", "Rule", "Feedback", "Stitch", "Spread", "PatchFeatures",
    "Pass", "Batch", "Outcome", "DenseFeatures",
]  # fmt: skip
