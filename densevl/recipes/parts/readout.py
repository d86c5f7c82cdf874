"""Read-outs: how tokens after the last block become features, and how words are compared with them.

The pooling of regions is `regions.PooledRegions`.
Shape letters: B batch, A heads, N tokens, D width, E joint space, T texts, h/w patch grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from densevl.lazy import F, torch
from densevl.recipes import shares
from densevl.recipes.batch import Batch, Outcome
from densevl.recipes.features import DenseFeatures, cosines
from densevl.recipes.part import Readout, Slots
from densevl.recipes.parts.attention import BalancedMaps
from densevl.recipes.values import block_numbers, positive, scaled

if TYPE_CHECKING:
    Embed = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, repr=False)
class Tokens(Readout):
    """Patch tokens projected into the joint space and compared with words by the cosine.

    Attributes:
        likeness: a block whose patch similarity is returned as `affinity`, for clustering (CLIPtrase); None for none.
    """

    likeness: int | None = None

    def __post_init__(self) -> None:
        if self.likeness is not None:
            block_numbers((self.likeness,))

    @property
    def needs_trunk(self) -> bool:  # type: ignore[override]
        return self.likeness is not None

    def own_taps(self, depth: int) -> frozenset[int]:
        return frozenset() if self.likeness is None else frozenset({scaled((self.likeness,), depth)[0] - 1})

    def read(self, batch: Batch, outcome: Outcome, embed: Embed) -> DenseFeatures:
        y_BNE = embed(outcome.y_BND)
        features = y_BNE[:, outcome.prefix :].mT.unflatten(2, outcome.grid)
        for extra in outcome.extras:
            own = embed(extra.y_BND)[:, outcome.prefix :].mT.unflatten(2, outcome.grid)
            features = features + extra.weight * own
        affinity = None if self.likeness is None else likeness(batch, self.likeness)
        return DenseFeatures(features, _cls(batch, outcome, y_BNE), affinity)

    def __str__(self) -> str:
        if self.likeness is None:
            return "patch tokens are read in the joint space"
        return f"how alike patches are in block {self.likeness} comes out too, for clustering"


@dataclass(frozen=True, repr=False)
class Layer(Readout):
    """Patch tokens after an earlier block, read as if it were the last; the image embedding stays that of the last.

    Attributes: block: its number.
    """

    leaves = 0
    needs_trunk = True

    block: int

    def __post_init__(self) -> None:
        block_numbers((self.block,))

    def own_taps(self, depth: int) -> frozenset[int]:
        return frozenset(scaled((self.block,), depth))

    def read(self, batch: Batch, outcome: Outcome, embed: Embed) -> DenseFeatures:
        features = embed(batch.output(self.block))[:, batch.trunk.prefix :].mT.unflatten(2, batch.trunk.grid)
        return DenseFeatures(features, _cls(batch, outcome, embed(outcome.y_BND)))

    def __str__(self) -> str:
        return f"patch tokens after block {self.block} are read as if it were the last"


def _cls(batch: Batch, outcome: Outcome, y_BNE: torch.Tensor) -> torch.Tensor | None:
    """The image embedding from the same pass; None if there are only patches."""
    tower = batch.tower
    if outcome.prefix != tower.prefix:
        return None
    return y_BNE[:, 0] if tower.reads_cls else tower.pool(outcome.y_BND)


def likeness(batch: Batch, block: int) -> torch.Tensor:
    """Similarity of patches in a block, beyond what CLS shares with them: (B, h*w, h*w).

    Mean over heads of the cosines of queries, keys and values, minus those of CLS, clipped at 0 (CLIPtrase).
    """
    prefix = batch.trunk.prefix
    parts = batch.projections(block, "qkv", prefix).values()
    # A mean of cosines is a product of concatenated unit vectors: one map instead of one per head.
    unit = torch.cat([F.normalize(part, dim=-1).transpose(1, 2).flatten(2) for part in parts], dim=-1)
    alike = unit @ unit.mT / sum(part.shape[1] for part in parts)
    return (alike[:, prefix:, prefix:] - alike[:, :1, prefix:] * bool(prefix)).clamp(min=0)


@dataclass(frozen=True, repr=False)
class FeatureSurgery(Tokens):
    """Tokens whose cosines are weighted by the scores of the whole image, minus their mean over the words.

    With one word there is nothing to subtract, and the score is the cosine (CLIP Surgery, Pattern Recognition 2025).

    Attributes: heat: temperature of the image's own scores.
    """

    cosine = False

    heat: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self.heat, "the heat of feature surgery")

    def objection(self, recipe: Slots) -> str | None:
        alone = recipe.attention.patches_only or recipe.before or recipe.after
        return "it weighs words by the image embedding, and patches alone leave none" if alone else None

    def read(self, batch: Batch, outcome: Outcome, embed: Embed) -> DenseFeatures:
        dense = super().read(batch, outcome, embed)
        return DenseFeatures(dense.features, dense.cls, dense.affinity, compare=self._compare)

    def _compare(self, dense: DenseFeatures, text_TD: torch.Tensor, foreground_T: torch.Tensor) -> torch.Tensor:
        scores = cosines(dense.features, text_TD)
        if dense.cls is None:
            return scores
        image_B11T = (F.normalize(dense.cls.float(), dim=-1) @ text_TD.mT)[:, None, None]
        weight = (self.heat * image_B11T).softmax(dim=-1)
        weighted = scores * (weight / weight.mean(dim=-1, keepdim=True))
        return torch.where(_alone(text_TD), scores, weighted - weighted.mean(dim=-1, keepdim=True))

    def __str__(self) -> str:
        return "what all words share is taken off the scores"


@dataclass(frozen=True, repr=False)
class Contributions(Readout):
    """Each patch's own contribution to the image embedding: the exact split of CLS (ICLR 2024); see `recipes.shares`.

    Features are divided by the embedding's norm, so that their dot products with a unit text vector, together with the
    shares of CLS and of the MLPs, sum to the image's cosine. A word's score is its dot product minus the mean over the
    words.
    """

    leaves = 0
    needs_trunk = True
    needs_cls = True
    cosine = False

    def own_taps(self, depth: int) -> frozenset[int]:
        return frozenset(range(depth))

    def read(self, batch: Batch, outcome: Outcome, embed: Embed) -> DenseFeatures:
        tower, trunk = batch.tower, batch.trunk
        split = shares.Split(tower, trunk.x_BND)
        total_BND = torch.zeros_like(trunk.x_BND)
        for index in range(tower.depth):
            total_BND += shares.attention_parts(tower.view(index, trunk.grid), trunk.outputs[index])
        features_BNE = split(total_BND, tower.depth / (shares.count(tower.depth) * trunk.x_BND.shape[1]))
        features = features_BNE[:, trunk.prefix :].mT.unflatten(2, trunk.grid)
        return DenseFeatures(features=features, cls=split.embedding_BE, compare=_contrast)

    def __str__(self) -> str:
        return (
            "each patch's direct contribution to CLS, summed over all blocks, instead of the patch tokens; scores are "
            "how much a word gains over the mean of all words"
        )


def _contrast(dense: DenseFeatures, text_TD: torch.Tensor, foreground_T: torch.Tensor) -> torch.Tensor:
    dots = torch.einsum("bdhw,td->bhwt", dense.features.float(), text_TD)
    return torch.where(_alone(text_TD), dots, dots - dots.mean(dim=-1, keepdim=True))


def _alone(text_TD: torch.Tensor) -> torch.Tensor:
    """Whether there is only one distinct word; a graph takes no fewer than two rows."""
    return (text_TD == text_TD[:1]).all()


@dataclass(frozen=True, repr=False)
class ScoredSources(Readout):
    """Words are scored on each source separately: probabilities are averaged, the last ones spread along the attention.

    The mean of the foreground's texts competes as one more word, as in the authors' code (CLIPer, ICCV 2025).

    Attributes:
        scale: temperature of the softmax over the words.
        floor: fraction of a word's largest probability in the image under which it is not spread.
        zeroed: as in the authors' code, leave what is not spread out of the average too.
    """

    needs_trunk = True
    cosine = False
    asks_foreground = True

    scale: float = 100.0
    floor: float = 0.1
    zeroed: bool = False

    def __post_init__(self) -> None:
        positive(self.scale, "the scale of scored sources")

    def objection(self, recipe: Slots) -> str | None:
        if not isinstance(recipe.attention, BalancedMaps):
            return "it spreads scores along the map of the attention; take BalancedMaps"
        if not recipe.adds or not all(source.after_norm and source.weight == 1 for source in recipe.adds):
            return "it scores sources for themselves, all alike; give adds=(BlockInputs(...),) or such, without weights"
        return None

    def read(self, batch: Batch, outcome: Outcome, embed: Embed) -> DenseFeatures:
        y_BNE = embed(outcome.y_BND)
        features, *layers = (
            tokens[:, outcome.prefix :].mT.unflatten(2, outcome.grid)
            for tokens in (y_BNE, *(embed(extra.y_BND) for extra in outcome.extras))
        )
        prefix = outcome.prefix
        affinity = batch.memo["map"].mean(dim=1)[:, prefix:, prefix:]
        return DenseFeatures(features, _cls(batch, outcome, y_BNE), affinity, tuple(layers), self._compare)

    def _compare(self, dense: DenseFeatures, text_TD: torch.Tensor, foreground_T: torch.Tensor) -> torch.Tensor:
        mean_1D = F.normalize((foreground_T.to(text_TD) @ text_TD)[None], dim=-1)
        rivals = torch.cat([text_TD, mean_1D])

        def probabilities(features: torch.Tensor) -> torch.Tensor:
            return (self.scale * cosines(features, rivals)).softmax(dim=-1)[..., :-1]

        last = probabilities(dense.features)
        kept = torch.where(last < self.floor * last.amax(dim=(1, 2), keepdim=True), 0, last)
        total = (kept if self.zeroed else last).clone()
        for features in dense.layers:
            total += probabilities(features)
        fused = total / (len(dense.layers) + 1)
        spread = dense.affinity.float().mT @ kept.flatten(1, 2)  # type: ignore[union-attr]  # `read` gives one
        return fused + spread.unflatten(1, dense.grid)

    def __str__(self) -> str:
        return "probabilities are averaged over the sources and spread along the attention"
