"""Second-order attribution: what each token of a text and each patch add together (Moeller et al., TMLR 2025).

For encoders g and references r, the integrated Jacobians of both sides give
A_ij = sum over d of U_id V_jd, with U_i = (the mean of dg/dx_i along the straight path from r to x) (x - r)_i. Its sum
is f(x, x) - f(x, r) - f(r, x) + f(r, r) for f the dot product of the embeddings. What is varied are the inputs of the
last block of the image tower, and those of a block of the text tower. dg/dx_i (x - r)_i is a forward derivative for
each token i; in the last block, of which one token is read, it is made for all tokens at once.
Shape letters: N tokens, P points of the path, A heads, d head width, D width, E joint space, S tokens of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from densevl.recipes.blocks import Block

POINTS = (10, 20, 40, 80, 160)
"""Of the path, by Gauss and Legendre's rule: more where fewer leave a gap."""
GAP = 1e-4
"""Of the sum of all pairs to what it is to be; cosines are at most 1."""
CLOSE = 2e-5
"""Of the sum of a side's changes, over the norm of the embedding, to what it is to be."""
AT_ONCE = 2048
"""Tokens of all points that are run together, which bounds the memory."""


class Reader(Protocol):
    """Blocks of a tower and its read-out, as a function of the tokens that enter them."""

    def tokens(self, count: int) -> int:
        """How many tokens are run for the changes of so many at one place."""

    def __call__(self, x_ND: torch.Tensor) -> torch.Tensor:
        """The embedding (E,), not normalised."""

    def changes(self, x_PND: torch.Tensor, delta_ND: torch.Tensor) -> torch.Tensor:
        """How the embedding changes with each token alone, times the way that it is moved, at P places: (P, N, E)."""


@dataclass(frozen=True)
class LastBlock:
    """The last block, read at one token that sees all others: what moves one token moves its own key and value alone.

    Attributes:
        block: the view. place: of the token that is read.
        read: tokens after the block (1, M, D) to the joint space (1, M, E), each for itself.
    """

    block: Block
    place: int
    read: Callable[[torch.Tensor], torch.Tensor]

    def tokens(self, count: int) -> int:
        """See `Reader`."""
        return count

    def __call__(self, x_ND: torch.Tensor) -> torch.Tensor:
        """See `Reader`."""
        q, k, v = self._project(x_ND[None]).unbind()
        o_PAd = torch.einsum("pan,pand->pad", self._looks(q, k), v)
        return self._finish(o_PAd[:, None], x_ND[None, self.place, None])[0, 0]

    def changes(self, x_PND: torch.Tensor, delta_ND: torch.Tensor) -> torch.Tensor:
        """See `Reader`."""
        place, delta_PND = self.place, delta_ND.expand_as(x_PND)
        q, k, v = self._project(x_PND).unbind()
        dq, dk, dv = forward_derivative(self._project, x_PND, delta_PND).unbind()
        looks_PAN = self._looks(q, k)
        o_PAd = torch.einsum("pan,pand->pad", looks_PAN, v)
        scale = q.shape[-1] ** -0.5
        # a token's own key moves its own logit, its value what is read there
        logit_PAN = scale * torch.einsum("pad,pand->pan", q[:, :, place], dk)
        do_PNAd = ((looks_PAN * logit_PAN)[..., None] * (v - o_PAd[:, :, None])).transpose(1, 2)
        do_PNAd = do_PNAd + (looks_PAN[..., None] * dv).transpose(1, 2)
        # and the query of the token that is read moves all logits
        asked_PAN = scale * torch.einsum("pad,pand->pan", dq[:, :, place], k)
        asked_PAN = looks_PAN * (asked_PAN - (looks_PAN * asked_PAN).sum(dim=-1, keepdim=True))
        do_PNAd[:, place] += torch.einsum("pan,pand->pad", asked_PAN, v)
        dx_PND = torch.zeros_like(x_PND)
        dx_PND[:, place] = delta_ND[place]
        split = do_PNAd.shape[2:]
        width = split[0] * split[1]

        def finish(both: torch.Tensor) -> torch.Tensor:
            return self._finish(both[..., :width].unflatten(-1, split), both[..., width:])

        at_P1W = torch.cat([o_PAd.flatten(1), x_PND[:, place]], dim=-1)[:, None]
        moved_PNW = torch.cat([do_PNAd.flatten(2), dx_PND], dim=-1)
        return forward_derivative(finish, at_P1W.expand_as(moved_PNW), moved_PNW)

    def _project(self, x_PND: torch.Tensor) -> torch.Tensor:
        """q, k and v: (3, P, A, N, d)."""
        return torch.stack([*self.block.project(self.block.norm(x_PND), "qkv").values()])

    def _looks(self, q_PANd: torch.Tensor, k_PANd: torch.Tensor) -> torch.Tensor:
        """Where the token that is read looks: (P, A, N)."""
        logits_PAN = torch.einsum("pad,pand->pan", q_PANd[:, :, self.place], k_PANd)
        return (q_PANd.shape[-1] ** -0.5 * logits_PAN).softmax(dim=-1)

    def _finish(self, o_PMAd: torch.Tensor, x_PMD: torch.Tensor) -> torch.Tensor:
        """M cases of what heads give and of the token before the block, to embeddings (P, M, E)."""
        y_PMD = x_PMD + self.block.merge(o_PMAd.transpose(1, 2))
        return self.read(y_PMD + self.block.ffn(y_PMD))


@dataclass(frozen=True)
class CausalBlocks:
    """The last blocks of a text tower, in which tokens see those before them, read at the last token given.

    Attributes: blocks: the views. read: as of `LastBlock`.
    """

    blocks: Sequence[Block]
    read: Callable[[torch.Tensor], torch.Tensor]

    def tokens(self, count: int) -> int:
        """See `Reader`."""
        return count * count

    def __call__(self, x_ND: torch.Tensor) -> torch.Tensor:
        """See `Reader`."""
        return self._run(x_ND[None])[0]

    def changes(self, x_PND: torch.Tensor, delta_ND: torch.Tensor) -> torch.Tensor:
        """See `Reader`."""
        count = len(delta_ND)
        alone_NND = torch.eye(count, dtype=delta_ND.dtype, device=delta_ND.device)[..., None] * delta_ND
        at_MND = x_PND.repeat_interleave(count, dim=0)
        return forward_derivative(self._run, at_MND, alone_NND.repeat(len(x_PND), 1, 1)).unflatten(0, (-1, count))

    def _run(self, x_BND: torch.Tensor) -> torch.Tensor:
        count = x_BND.shape[1]
        later_NN = torch.ones(count, count, dtype=torch.bool, device=x_BND.device).triu(1)
        for block in self.blocks:
            q, k, v = block.project(block.norm(x_BND), "qkv").values()
            logits = (q.shape[-1] ** -0.5 * (q @ k.mT)).masked_fill(later_NN, -torch.inf)
            x_BND = x_BND + block.merge(logits.softmax(dim=-1) @ v)
            x_BND = x_BND + block.ffn(x_BND)
        return self.read(x_BND[:, -1:])[:, 0]


def forward_derivative(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, delta: torch.Tensor
) -> torch.Tensor:
    """The derivative of a function at x along delta, by two passes backward, for which all operators are made."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = function(x)
        weights = torch.zeros_like(y, requires_grad=True)
        (back,) = torch.autograd.grad(y, x, weights, create_graph=True)
        return torch.autograd.grad(back, weights, delta)[0]


@dataclass(frozen=True, eq=False)
class Integrated:
    """One side. Attributes: changes_NE: U, by token; whole_E, reference_E: the embeddings of x and of r."""

    changes_NE: torch.Tensor
    whole_E: torch.Tensor
    reference_E: torch.Tensor

    @property
    def gap(self) -> float:
        """How far the changes are from adding up, over the norm of the embedding."""
        lost_E = self.changes_NE.sum(0) - (self.whole_E - self.reference_E)
        return float(lost_E.norm() / self.whole_E.norm())


def integrate(read: Reader, x_ND: torch.Tensor, reference_ND: torch.Tensor) -> Integrated:
    """Integrate the derivatives of a side along the path from its reference, with as many points as it takes.

    Args:
        x_ND, reference_ND: what enters the blocks of `read`.
    """
    delta_ND, whole_E, reference_E = x_ND - reference_ND, read(x_ND), read(reference_ND)
    step = max(1, AT_ONCE // read.tokens(len(x_ND)))
    for points in POINTS:
        places, weights = (torch.from_numpy(row).to(x_ND) for row in np.polynomial.legendre.leggauss(points))
        total_NE: torch.Tensor | float = 0.0
        for some, own in zip(places.split(step), weights.split(step), strict=True):
            x_PND = reference_ND + (some[:, None, None] + 1) / 2 * delta_ND
            total_NE = total_NE + torch.einsum("p,pne->ne", own / 2, read.changes(x_PND, delta_ND))
        found = Integrated(torch.as_tensor(total_NE), whole_E, reference_E)
        if found.gap <= CLOSE:
            break
    return found


@dataclass(frozen=True, eq=False)
class Interactions:
    """What text and image make together.

    Attributes:
        pairs_SN: what each token of the text and each of the image add together to the cosine.
        score: the cosine, f(x, x). text_alone, image_alone: with the other side's reference in its place, f(x, r) and
            f(r, x). references: of both references, f(r, r). All are over the norms of text and image.
        gap: the sum of the pairs less f(x, x) - f(x, r) - f(r, x) + f(r, r).
    """

    pairs_SN: torch.Tensor
    score: float
    text_alone: float
    image_alone: float
    references: float
    gap: float


def interact(text: Integrated, image: Integrated) -> Interactions:
    """Pair the two sides."""
    norm = text.whole_E.norm() * image.whole_E.norm()
    pairs_SN = text.changes_NE @ image.changes_NE.mT / norm
    score, alone, other, none = (
        float(one @ two / norm)
        for one, two in (
            (text.whole_E, image.whole_E),
            (text.whole_E, image.reference_E),
            (text.reference_E, image.whole_E),
            (text.reference_E, image.reference_E),
        )
    )
    gap = float(pairs_SN.double().sum()) - (score - alone - other + none)
    return Interactions(pairs_SN, score, alone, other, none, gap)
