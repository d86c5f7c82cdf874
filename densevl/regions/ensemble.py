"""Combine a decoder's own class scores with CLIP's, class by class.

FC-CLIP (Yu et al., NeurIPS 2023) and ODISE (Xu et al., CVPR 2023) take a weighted geometric mean, in which CLIP has the
larger weight on classes that the decoder was not trained on. They multiply it by the decoder's probability that there
is an object at all. Shape letters: R regions, K classes of the decoder, C classes asked for, T strings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from densevl.errors import OptionError, suggest
from densevl.regions.fusion import ScoreSource, fuse
from densevl.vocabulary import NOTHING, LabelSet

if TYPE_CHECKING:
    from densevl.proposals.decoded import Decoded

SHARES = {"fc-clip": (0.4, 0.8), "odise": (0.3, 0.7)}
"""CLIP's weight on classes that the decoder was trained on, and on others, by paper."""
_ENDINGS = re.compile(r"(-other)?-(merged|stuff|other)$")  # COCO's


def shares(given: str | Sequence[float]) -> tuple[float, float]:
    """CLIP's weights on classes that the decoder was trained on, and on others: a paper's, or two numbers within 0..1.

    Raises:
        OptionError: it is neither.
    """
    if isinstance(given, str) and given in SHARES:
        return SHARES[given]
    try:
        found = [float(part) for part in (given.split(",") if isinstance(given, str) else given)]
    except ValueError:
        known = ", ".join(SHARES)
        raise OptionError(
            f"clip_share {given!r} is unknown{suggest(str(given), SHARES)}; known: {known}, or two numbers, such as "
            "'0.4,0.8'"
        ) from None
    if len(found) != 2 or not all(0 <= share <= 1 for share in found):
        raise OptionError(
            f"clip_share is {tuple(found)}; it is CLIP's weight on classes that the decoder was trained on, and on "
            "others, both within 0..1"
        )
    return found[0], found[1]


def matches(names: Sequence[str], labels: LabelSet) -> torch.Tensor:
    """Which of K names mean which of C classes: bool (K, C). A class matches by its name and its synonyms.

    Commas separate the words of a name. Letter case, "_" for a space, and COCO's "-merged", "-other" and "-stuff" are
    ignored; "wall-brick" is "brick wall".
    """
    asked = [
        {_plain(word) for word in (name, *words)} for name, words in zip(labels.names, labels.synonyms, strict=True)
    ]
    read = [{form for word in re.split(r"[,;|]", name) for form in _forms(word)} for name in names]
    return torch.tensor([[bool(own & words) for words in asked] for own in read]).reshape(len(names), len(labels))


def seen_weights(decoded: Decoded, labels: LabelSet, share: tuple[float, float]) -> torch.Tensor:
    """CLIP's weight on each class, (C,): `share` where the decoder has a class, 1 where it has none of that name."""
    known, trained = (matches(names, labels).any(dim=0) for names in (decoded.names, decoded.trained))
    own = torch.where(trained, torch.tensor(share[0]), torch.tensor(share[1]))
    return torch.where(known, own, torch.tensor(1.0))


def with_decoder(
    logp_RT: torch.Tensor,
    classes: torch.Tensor,
    decoded: Decoded,
    labels: LabelSet,
    share: tuple[float, float],
    valid: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probabilities of the classes, of nothing, and of the decoder's "no object": (R, C + 2); the class of each.

    Args:
        logp_RT: CLIP's, over strings; a class takes that of its best string. classes: (T,) class of each string, -1 for
            nothing. decoded: R regions. share: see `shares`.
        valid: bool (R,), regions that CLIP has seen any part of; the decoder alone judges the others.
    """
    device, count = logp_RT.device, len(labels)
    clip = torch.full((len(logp_RT), count + 1), -torch.inf, device=device)
    column = torch.where(classes == NOTHING, count, classes).expand(len(logp_RT), -1)
    clip = clip.scatter_reduce(1, column, logp_RT.float(), "amax")
    own_RK, void_R = (torch.from_numpy(part).to(device) for part in decoded.log_probs())
    means = matches(decoded.names, labels).to(device)
    own = torch.where(means[None], own_RK[:, :, None], -torch.inf).logsumexp(dim=1) if len(own_RK) else clip[:, :count]
    own = torch.cat([own, torch.zeros_like(own[:, :1])], dim=1)  # the decoder has no opinion on nothing
    say = torch.cat([seen_weights(decoded, labels, share), torch.ones(1)]).to(device)
    fused = fuse([ScoreSource(own, 1 - say), ScoreSource(clip, say, valid)])
    both = torch.cat([fused + torch.log1p(-void_R)[:, None], void_R.log()[:, None]], dim=1)
    return both, torch.tensor([*range(count), NOTHING, NOTHING], device=device)


def _plain(word: str) -> str:
    return " ".join(word.replace("_", " ").casefold().split())


def _forms(word: str) -> set[str]:
    plain = _ENDINGS.sub("", _plain(word))
    return {plain, plain.replace("-", " "), " ".join(reversed(plain.split("-")))} - {""}
