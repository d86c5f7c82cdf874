"""Name regions without labels, by as few words of a long list as possible, and merge regions of one word.

The task is that of "Zero-guidance Segmentation Using Zero Segment Labels" (Rewatbowornwong et al., ICCV 2023), where a
captioner finds the words. Here they come from a list. Shape letters: R regions, T strings, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F

from densevl.backbones.reach import Reach
from densevl.errors import LabelError
from densevl.proposals import Proposals
from densevl.proposals.suppress import intersections
from densevl.regions.embedded import RegionEmbeddings
from densevl.vocabulary import NOTHING, LabelSet

REPEATED = 0.8  # IoU above which regions of different words are one thing; the likelier word is kept


def readable(words: LabelSet, reach: Callable[[Sequence[str]], list[Reach]]) -> tuple[LabelSet, int]:
    """Keep the strings that a model knows, and the classes with any. Also return how many strings it does not know.

    Raises:
        LabelError: If it knows none.
    """
    unknown = {reached.word for reached in reach(words.words) if not reached.known}
    synonyms = [tuple(word for word in own if word not in unknown) for own in words.synonyms]
    named = [(name, own) for name, own in zip(words.names, synonyms, strict=True) if own]
    if not named:
        raise LabelError(f"the model knows none of the {len(words.queries)} words; give others as words=")
    read = LabelSet(tuple(name for name, _ in named), tuple(own for _, own in named), warnings=words.warnings)
    return read, len(unknown)


def class_probs(logp_RT: torch.Tensor, classes: torch.Tensor, count: int) -> torch.Tensor:
    """Return probabilities (R, C), where a class has that of its best string."""
    probs = torch.zeros(len(logp_RT), count, device=logp_RT.device)
    return probs.scatter_reduce_(1, classes.expand(len(logp_RT), -1), logp_RT.exp(), "amax")


def few_words(p_RC: torch.Tensor, agree: float) -> list[int]:
    """Choose few classes such that each region has one that is at least `agree` times as likely as its likeliest.

    This is a greedy cover. The next class is the one that suits most regions that have none yet, where each region
    counts by the ratio to its likeliest class. So a photo of five cats gets only "cat", even if one looks a bit more
    like a lynx. Regions without probabilities need no class. Without regions the result is the first class, because a
    vocabulary cannot be empty.
    """
    best = p_RC.amax(dim=1, keepdim=True) if len(p_RC) else p_RC.new_zeros(0, 1)
    near_RC = torch.where(best > 0, p_RC / best.clamp(min=1e-30), 0.0)
    near_RC = near_RC * (near_RC >= agree)
    chosen: list[int] = []
    while bool(near_RC.any()):
        word = int(near_RC.sum(dim=0).argmax())
        chosen.append(word)
        near_RC = near_RC * (near_RC[:, word] == 0)[:, None]
    return chosen or [0]


def together(masks: Proposals, labels: np.ndarray, overlap: float | None) -> list[list[int]]:
    """Group regions of one label that overlap by this share of the smaller one, or all of one label for None.

    Regions that are nothing are not grouped.
    """
    areas, groups = masks.areas, []
    waiting = dict.fromkeys(range(len(masks)))
    while waiting:
        reached = [next(iter(waiting))]
        del waiting[reached[0]]
        for index in reached:  # grows during the loop
            others = np.array([i for i in waiting if labels[i] == labels[index] != NOTHING and areas[i]], np.int64)
            if overlap is not None:
                shared = intersections(masks, index, others)
                others = others[shared > overlap * np.minimum(areas[others], areas[index])]
            reached += others.tolist()
            for other in others.tolist():
                del waiting[other]
        groups.append(sorted(reached))
    return groups


def alike(masks: Proposals, vectors_RE: torch.Tensor, words_RE: torch.Tensor, least: float) -> list[list[int]]:
    """Group neighbours bottom-up, most similar first, while any pair has a similarity of at least `least`.

    The similarity is the mean of the cosine of the vectors and that of the words' rows. A group has the mean vector of
    its members, weighted by area, and the word of the largest. Neighbours touch or overlap.

    Args:
        vectors_RE: unit rows. words_RE: unit rows of each region's word.
    """
    areas, near = torch.from_numpy(masks.areas).to(vectors_RE), torch.from_numpy(_touching(masks))
    groups = [[index] for index in range(len(masks))]
    vectors, words, weight = vectors_RE.clone(), words_RE.clone(), areas.clone()
    while len(groups) > 1:
        score = (F.normalize(vectors, dim=1) @ F.normalize(vectors, dim=1).T + words @ words.T) / 2
        score = torch.where(near.to(score.device), score, -torch.inf).fill_diagonal_(-torch.inf)
        if float(score.max()) < least:
            break
        one, other = sorted(divmod(int(score.argmax()), len(groups)))
        vectors[one] = (weight[one] * vectors[one] + weight[other] * vectors[other]) / (weight[one] + weight[other])
        largest = max(groups[one] + groups[other], key=lambda index: float(areas[index]))
        words[one], weight[one] = words_RE[largest], weight[one] + weight[other]
        groups[one] = sorted(groups[one] + groups[other])
        near[one] |= near[other]
        near[:, one] |= near[:, other]
        others = [index for index in range(len(groups)) if index != other]
        groups, vectors, words, weight = [groups[i] for i in others], vectors[others], words[others], weight[others]
        near = near[others][:, others]
    return groups


def _touching(masks: Proposals) -> np.ndarray:
    """Return which regions touch or overlap, bool (R, R). Empty regions touch nothing."""
    from scipy import ndimage  # slow to import

    near = np.zeros((len(masks), len(masks)), bool)
    every, boxes = masks.masks(), masks.boxes.astype(np.int64)
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        part = slice(max(0, y0 - 1), y1 + 1), slice(max(0, x0 - 1), x1 + 1)
        grown = ndimage.binary_dilation(every[index][part], np.ones((3, 3), bool))
        near[index] = [bool((grown & other[part]).any()) for other in every] if grown.size else False
    return near


def union(found: RegionEmbeddings, groups: Sequence[Sequence[int]]) -> RegionEmbeddings:
    """Unite regions by groups. The vector of a union is the mean of its members' vectors, weighted by area."""
    regions = found.regions
    packed = [np.bitwise_or.reduce(regions.packed[list(group)], axis=0) for group in groups]
    quality = [float(regions.quality[list(group)].max()) for group in groups]
    unions = Proposals.from_packed(np.stack(packed), regions.size, quality) if groups else regions
    weights = torch.zeros(len(groups), len(regions))
    for row, group in enumerate(groups):
        weights[row, list(group)] = torch.from_numpy(regions.areas[list(group)]).float()
    vectors = {name: F.normalize(weights.to(rows) @ rows, dim=-1) for name, rows in found.vectors.items()}
    return replace(found, regions=unions, vectors=vectors, second={})


def merged_probs(p_RC: torch.Tensor, areas: np.ndarray, groups: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return probabilities of unions: the mean of their members', weighted by area."""
    if not groups:
        return p_RC
    weight = torch.from_numpy(np.maximum(areas, 1)).to(p_RC)
    rows = [weight[list(group)] @ p_RC[list(group)] / weight[list(group)].sum() for group in groups]
    return torch.stack(rows)
