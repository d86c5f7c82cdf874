"""From region embeddings and words to class probabilities and labels.

Shape letters: R regions, E joint space, T strings, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from densevl.errors import LabelError
from densevl.inference.kinds import levelled
from densevl.vocabulary import NOTHING, Background
from densevl.vocabulary.template_weights import weighted_scores

if TYPE_CHECKING:
    from densevl.vocabulary.text_classifier import TextEmbeddings


@dataclass(frozen=True, eq=False)
class Decision:
    """Attributes: probs (R, C), nothing (R,), scores (R,) float32; labels (R,) int64, -1 for nothing."""

    probs: torch.Tensor
    nothing: torch.Tensor
    labels: torch.Tensor
    scores: torch.Tensor


def against(features: torch.Tensor, text: TextEmbeddings) -> torch.Tensor:
    """Cosines (..., T) of unit features (..., E) with a vocabulary; each feature weights the templates if asked."""
    if text.prompts is None:
        return features @ text.vectors.T
    return weighted_scores(lambda rows_TE: features @ rows_TE.T, text.prompts)


def log_probs(
    vectors_RE: torch.Tensor, text: TextEmbeddings, scale: float, gauge_GE: torch.Tensor | None = None
) -> torch.Tensor:
    """Log probabilities (R, T) over all strings, the log softmax of scale * cosine.

    Args:
        gauge_GE: unit rows of regions across the photo, used to put words and pictures on one scale.
    """
    scores_RT = against(vectors_RE.float(), text)
    if gauge_GE is not None:
        scores_RT = levelled(scores_RT, text, against(gauge_GE.float(), text))
    logits_RT = scale * scores_RT
    if text.bias is not None:
        logits_RT = logits_RT + text.bias
    return logits_RT.log_softmax(dim=1)


def prototypes(
    examples: Mapping[str, torch.Tensor], text: torch.Tensor | None = None, words: float = 0.0
) -> torch.Tensor:
    """Unit rows (C, E) that stand for classes: the mean of each one's example rows (R, E), mixed with its words.

    Args:
        examples: rows by name; rows of zeros are left out. text: (K, E) unit rows of the first K names, K <= C.

    Raises:
        LabelError: a name has no row.
    """
    rows = []
    for index, (name, given) in enumerate(examples.items()):
        mean = F.normalize(given.float().sum(dim=0), dim=0)
        if not bool(mean.any()):
            raise LabelError(f"'{name}' has no example: embed at least one region that is not empty")
        if text is not None and index < len(text):
            mean = F.normalize((1 - words) * mean + words * text[index], dim=0)
        rows.append(mean)
    return torch.stack(rows)


def decide(
    logp_RT: torch.Tensor,
    classes: torch.Tensor,
    count: int,
    policy: Background,
    *,
    margin: float = 0.0,
    valid: torch.Tensor | None = None,
) -> Decision:
    """Name regions: a class has the probability of its best string, and the best class wins.

    Args:
        logp_RT: log probabilities over strings. classes: (T,) class of each string, -1 for background. count: C.
        policy: its threshold and other rules reject regions as they reject pixels: see `Background`.
        margin: a region whose best class leads the second, or nothing, by less is labelled nothing.
        valid: (R,) bool; regions without a pixel are nothing, with probabilities 0.
    """
    p_RT = logp_RT.float().exp()  # half precision of a caller's autocast
    probs = torch.zeros(len(p_RT), count, device=p_RT.device)
    owned = classes != NOTHING
    probs.scatter_reduce_(1, classes[owned].expand(len(p_RT), -1), p_RT[:, owned], "amax")
    nothing = p_RT[:, ~owned].amax(dim=1) if (~owned).any() else torch.zeros(len(p_RT), device=p_RT.device)
    if valid is not None:
        probs, nothing = probs * valid[:, None], nothing * valid
    ranked = torch.cat([probs, nothing[:, None]], dim=1).topk(min(2, count + 1), dim=1).values
    best, labels = probs.max(dim=1)
    wins = (best > nothing) & (best >= policy.threshold) & (ranked[:, 0] - ranked[:, -1] >= margin) & (best > 0)
    if policy.rest:
        wins &= best >= 1 - best
    return Decision(probs, nothing, torch.where(wins, labels, NOTHING), torch.maximum(best, nothing))
