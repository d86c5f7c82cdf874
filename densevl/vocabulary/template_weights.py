"""Template weights fitted to an image, a region or a pixel (Metzen et al., AutoCLIP).

Templates that bring the image closer to the labels get more weight. With e_mt the cosine of a feature and prompt
(m, t), w = softmax(rho) and s_t = sum_m w_m e_mt, one step of gradient ascent on logsumexp_t(s_t) from rho = 0 gives
rho = alpha * g with g_m = 1/M sum_t softmax(s)_t (e_mt - s_t). The step alpha is chosen such that w has the entropy
`entropy` * log M.
Shape letters: N features (images, regions or pixels), M templates, T query strings, D joint-space width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from densevl.errors import OptionError

ENTROPY = 0.85  # of the largest possible, as in the paper
STEPS = 40  # of bisection, which gives alpha to 12 digits


def template_weights(cosines_NMT: torch.Tensor, *, entropy: float = ENTROPY, temperature: float = 1.0) -> torch.Tensor:
    """Weights (N, M), rows sum to 1.

    Args:
        cosines_NMT: (N, M, T) of each feature with each prompt.
        entropy: of the weights, as a fraction of that of equal weights, above 0 and up to 1 (equal weights).
        temperature: divides cosines before the logsumexp. The paper has 1, where all strings count nearly alike; with
            CLIP's own 0.01 only the likely ones count.
    """
    if not 0 < temperature < math.inf:
        raise OptionError(f"temperature is {temperature}: it must be above 0 and finite")
    likely_NT = torch.softmax(cosines_NMT.mean(dim=1) / temperature, dim=-1)
    return _weights(torch.einsum("nmt,nt->nm", cosines_NMT, likely_NT), entropy)


def weighted_scores(
    score: Callable[[torch.Tensor], torch.Tensor],
    prompts_MTD: torch.Tensor,
    *,
    entropy: float = ENTROPY,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Scores (..., T) of features, each with its own weights: s_t = sum_m w_m e_mt.

    Prompts are scored template by template, three times, which takes memory for (..., T) and (..., M) numbers instead
    of (..., M, T). Unlike the rows of `image_classifier`, the weighted mean of prompts is not normalised.

    Args:
        score: rows (T, D) to their scores (..., T). prompts_MTD: unit prompt embeddings.
        entropy, temperature: see `template_weights`.
    """
    mean = score(prompts_MTD[0])
    for rows_TD in prompts_MTD[1:]:
        mean = mean + score(rows_TD)
    mean = mean / len(prompts_MTD)
    likely = torch.softmax(mean / temperature, dim=-1)
    gain = torch.stack([(score(rows_TD) * likely).sum(dim=-1) for rows_TD in prompts_MTD], dim=-1)
    weights = _weights(gain.flatten(end_dim=-2), entropy).view_as(gain)
    total = torch.zeros_like(mean)
    for rows_TD, weight in zip(prompts_MTD, weights.unbind(dim=-1), strict=True):
        total += weight[..., None] * score(rows_TD)
    return total


def _weights(gain_NM: torch.Tensor, entropy: float) -> torch.Tensor:
    """Weights (N, M) from the gain of each template."""
    count = gain_NM.shape[1]
    if count == 1 or entropy >= 1:
        return torch.full_like(gain_NM, 1 / count)
    gain = gain_NM.double()
    gain = gain - gain.amax(dim=1, keepdim=True)  # softmax is invariant to shifts
    return torch.softmax(_step(gain, entropy * math.log(count)) * gain, dim=1).to(gain_NM)


def _step(gain_NM: torch.Tensor, target: float) -> torch.Tensor:
    """(N, 1) alpha with entropy(softmax(alpha * gain)) = target, by bisection of log alpha, in which entropy falls."""
    spread = (gain_NM.amax(dim=1, keepdim=True) - gain_NM.amin(dim=1, keepdim=True)).clamp(min=1e-12)
    low, high = torch.log(1e-3 / spread), torch.log(1e6 / spread)
    for _ in range(STEPS):
        middle = (low + high) / 2
        weights = torch.softmax(middle.exp() * gain_NM, dim=1)
        too_even = torch.special.entr(weights).sum(dim=1, keepdim=True) > target
        low, high = torch.where(too_even, middle, low), torch.where(too_even, high, middle)
    return low.exp()


def image_classifier(
    prompts_MTD: torch.Tensor, image_D: torch.Tensor, *, entropy: float = ENTROPY, temperature: float = 1.0
) -> torch.Tensor:
    """Unit rows (T, D) for one image: the prompts averaged with the weights of its feature.

    Args:
        prompts_MTD: unit prompt embeddings; image_D: its feature, any length.
        entropy, temperature: see `template_weights`.

    Unlike in the paper, rows are normalised: so equal weights give CLIP's ensemble, and the rows are used like any
    others.
    """
    cosines_MT = prompts_MTD @ F.normalize(image_D.float(), dim=-1)
    weights_M = template_weights(cosines_MT[None], entropy=entropy, temperature=temperature)[0]
    return F.normalize(torch.einsum("m,mtd->td", weights_M, prompts_MTD), dim=-1)
