"""Examples without labels: features that words name surely enough stand in for examples.

All of them judge the unlabelled features together, so the answer for one depends on which others there are
(transductive). Shape letters: N features, C classes, E joint space, D = C + N nodes of a graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from densevl.errors import LabelError, ModelError, OptionError, one_of
from densevl.fewshot.settings import Rule, require

if TYPE_CHECKING:
    from scipy.sparse import csr_array

HOWS = ("top", "spread", "retrieve")
COUNT = 16  # of a class, UPL's
NEIGHBOURS, ALPHA = 10, 0.99  # of the graph, ReCLIP's
ROWS_AT_ONCE = 2048
NONE = -1


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """Classes of unlabelled features.

    Attributes:
        labels: (N,) int64, -1 for a feature that stands for none. sure: (N,) float32, 0..1, how sure the class is.
    """

    labels: torch.Tensor
    sure: torch.Tensor


def pseudo_labels(
    how: str, features_NE: torch.Tensor, text_CE: torch.Tensor, *, scale: float = 100.0, count: int | None = COUNT
) -> PseudoLabels:
    """Name features by words, and keep the surest of each class.

    Args:
        how: "top", those likeliest to be of a class among those it is the likeliest of (UPL; Huang et al., 2022: no
            threshold, so that every class gets some); "spread", by words carried on from feature to feature (`spread`,
            ReCLIP), then the same; "retrieve", those nearest to the words of a class, whichever class they are likest
            (SuS-X), each for one class at most.
        features_NE: any length. text_CE: unit rows of the classes, then perhaps of others, which compete.
        scale: what cosines are multiplied by. count: at most so many of a class; None keeps all.

    Raises:
        OptionError: no such way, or no count.
        ModelError: features that do not fit the text.
    """
    one_of(how, HOWS, "how", OptionError)
    require({"count": count}, {"count": Rule(1, whole=True, optional=True)})
    features = _checked(features_NE, text_CE)
    if how == "spread":
        scores_NC = spread(features, text_CE)
        total_N1 = scores_NC.sum(dim=1, keepdim=True)
        chances_NC = torch.where(total_N1 > 0, scores_NC / total_N1.clamp(min=1e-12), 0)
    else:
        chances_NC = (scale * features @ text_CE.mT).softmax(dim=1)
    if how == "retrieve":
        return _retrieved(features @ text_CE.mT, chances_NC, len(features) if count is None else count)
    sure, labels = chances_NC.max(dim=1)
    labels = torch.where(sure > 0, labels, NONE)
    return PseudoLabels(labels if count is None else _surest(labels, sure, count), sure)


def spread(
    features_NE: torch.Tensor, text_CE: torch.Tensor, neighbours: int = NEIGHBOURS, alpha: float = ALPHA
) -> torch.Tensor:
    """Words carried on from feature to feature: scores (N, C) float32, 0 or more, 0 where no word reaches.

    ReCLIP (Hu et al., WACV 2024): what all words have in common is taken off, and what no word speaks of; then every
    feature and every word is joined to its nearest, and the classes of the words are propagated:
    z = (I - alpha D^-1/2 A D^-1/2)^-1 y, by conjugate gradients.

    Args:
        features_NE: any length. text_CE: unit rows. neighbours: of a node. alpha: how far classes are carried, 0..1.

    Raises:
        OptionError: out of range.
        ModelError: features that do not fit the text, or a solution that was not found.
    """
    import numpy as np
    from scipy.sparse import eye_array
    from scipy.sparse.linalg import cg

    if neighbours < 1 or not 0 < alpha < 1:
        raise OptionError(f"neighbours is {neighbours} and alpha {alpha}: at least 1, and between 0 and 1")
    features = _checked(features_NE, text_CE)
    words, images = (aligned(rows, text_CE) for rows in (text_CE, features))
    system = eye_array(len(words) + len(images)) - alpha * normalised(graph(words, images, neighbours))
    found = np.zeros((len(words), len(images)))
    for index in range(len(words)):
        start = np.zeros(system.shape[0])
        start[index] = 1
        solution, failed = cg(system, start, rtol=1e-8, maxiter=10_000)
        if failed:
            raise ModelError(f"the classes of words could not be carried on (alpha {alpha}); take a smaller alpha")
        found[index] = solution[len(words) :]
    return torch.from_numpy(found.T).float().clamp(min=0).to(features)


def aligned(rows_NE: torch.Tensor, text_CE: torch.Tensor) -> torch.Tensor:
    """Rows in the space of the words without what is most common to them, unit, float64: (N, E)."""
    if len(text_CE) < 3:  # nothing would be left that tells two words apart
        return F.normalize(rows_NE.double(), dim=1)
    _, size, basis_CE = torch.linalg.svd(text_CE.double(), full_matrices=False)
    kept = basis_CE[1:][size[1:] > 1e-9 * size[0]]
    return F.normalize(rows_NE.double() @ kept.mT @ kept, dim=1)


def graph(words_CE: torch.Tensor, images_NE: torch.Tensor, neighbours: int) -> csr_array:
    """Affinities (D, D), symmetric: cosines above 0 of each node to the nearest images, words before images."""
    from scipy.sparse import coo_array

    nodes, count = torch.cat([words_CE, images_NE]), len(words_CE)
    most = min(neighbours, len(images_NE) - 1) or 1
    starts, ends, values = [], [], []
    for at in range(0, len(nodes), ROWS_AT_ONCE):
        part = nodes[at : at + ROWS_AT_ONCE] @ images_NE.mT
        rows = torch.arange(at, at + len(part), device=part.device)
        own = rows >= count
        part[own, rows[own] - count] = -1  # no node is its own neighbour
        best = part.topk(most, dim=1)
        starts.append(rows[:, None].expand_as(best.indices).flatten())
        ends.append(best.indices.flatten() + count)
        values.append(best.values.clamp(min=0).flatten())
    triple = [torch.cat(column).cpu().numpy() for column in (values, starts, ends)]
    one_way = coo_array((triple[0], (triple[1], triple[2])), shape=(len(nodes), len(nodes))).tocsr()
    return one_way.maximum(one_way.T)


def normalised(affinities: csr_array) -> csr_array:
    """D^-1/2 A D^-1/2; a node without neighbours stays without."""
    import numpy as np
    from scipy.sparse import diags_array

    degree = np.asarray(affinities.sum(axis=1)).ravel()
    root = diags_array(np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1e-300)), 0))
    return (root @ affinities @ root).tocsr()


def _checked(features_NE: torch.Tensor, text_CE: torch.Tensor) -> torch.Tensor:
    if features_NE.ndim != 2 or features_NE.shape[1:] != text_CE.shape[1:]:
        raise ModelError(f"features {tuple(features_NE.shape)} and words {tuple(text_CE.shape)} are of other spaces")
    if not len(features_NE):
        raise LabelError("nothing to learn from: no features without labels")
    return F.normalize(features_NE.float(), dim=1)


def _surest(labels_N: torch.Tensor, sure_N: torch.Tensor, count: int) -> torch.Tensor:
    """The labels of the surest of each class; of equally sure ones the first."""
    kept = torch.full_like(labels_N, NONE)
    for index in labels_N[labels_N >= 0].unique().tolist():
        own = (labels_N == index).nonzero().flatten()
        best = own[sure_N[own].argsort(descending=True, stable=True)[:count]]
        kept[best] = index
    return kept


def _retrieved(cosines_NC: torch.Tensor, chances_NC: torch.Tensor, count: int) -> PseudoLabels:
    """The nearest of each class; one that is near to several is of the likeliest of these."""
    nearest = cosines_NC.argsort(dim=0, descending=True, stable=True)[:count]
    taken = torch.zeros_like(chances_NC, dtype=torch.bool).scatter_(0, nearest, True)
    sure, labels = torch.where(taken, chances_NC, -1).max(dim=1)
    return PseudoLabels(torch.where(sure >= 0, labels, NONE), sure.clamp(min=0))
