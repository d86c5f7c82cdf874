"""Contexts that depend on the image: a small net shifts all their words (CoCoOp, Zhou et al., CVPR 2022).

    v_m(f) = v_m + U relu(D sqrt(E) f + d) + u
    min over v and the net of  sum_i w_i [CE(scale f_i.t(f_i), y_i) + tie mean_c |t_c(f_i) - t0_c|^2]

With views the first term is the mean over an image's looks g_v, v = 0..V, g_0 = f, and two more are added (GOPro,
Singha et al., BMVC 2023): sum_i w_i mean_c,v>0 |t_c(f_i) - t_c(g_iv)|^2, and CONTRAST times SimCLR's loss (Chen et al.,
ICML 2020) on the hidden layer of the net, whose positives are f and one g of an image in a batch. The image tower is
fixed here, so that the net is all of the image side that they teach.
Every image has rows of its own, so that a step costs the text tower M x S texts for each image of a batch, three times
as many for each of its looks, and an answer M x S. U and u start at zero, where contexts do not depend on the image.
Shape letters: H hidden units, W width of a word, others as in `contexts` and `training`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch.nn import functional as F

from densevl.errors import ModelError
from densevl.fewshot.prompts.contexts import Contexts, Parts, Spoken, Tower, descend, joined, leaf, unit_prompts
from densevl.fewshot.prompts.fitting import Plan, Progress, all_or_none
from densevl.fewshot.prompts.training import Task

CONTRAST, TEMPERATURE = 0.1, 0.1  # of SimCLR, as GOPro's
NARROWER, FEWEST = 16, 4  # the hidden layer: a share of the joint space, as CoCoOp's; and at least so many units


@dataclass(frozen=True, eq=False)
class Net(Parts):
    """Two layers. Attributes: down: (H, E), D. inner: (H,), d. up: (W, H), U. outer: (W,), u."""

    down: torch.Tensor
    inner: torch.Tensor
    up: torch.Tensor
    outer: torch.Tensor

    @classmethod
    def drawn(cls, joint: int, width: int, seed: int) -> Self:
        """A net that answers zero, whose first layer is random."""
        hidden = max(FEWEST, joint // NARROWER)
        generator = torch.Generator().manual_seed(seed)
        down = (2 * torch.rand(hidden, joint, generator=generator) - 1) / math.sqrt(joint)
        return cls(down, torch.zeros(hidden), torch.zeros(width, hidden), torch.zeros(width))

    def hidden(self, unit_E: torch.Tensor) -> torch.Tensor:
        """(..., H), of unit vectors (..., E)."""
        return F.relu(F.linear(math.sqrt(unit_E.shape[-1]) * unit_E.to(self.down), self.down, self.inner))

    def shift(self, unit_E: torch.Tensor) -> torch.Tensor:
        """(W,), of the unit vector of an image."""
        return F.linear(self.hidden(unit_E), self.up, self.outer)


@dataclass(frozen=True, eq=False)
class Conditioned:
    """Contexts and the net that shifts them."""

    contexts: Contexts
    net: Net

    def at(self, unit_E: torch.Tensor) -> Contexts:
        """The contexts of one image."""
        shift_W = self.net.shift(unit_E)
        return Contexts([words + shift_W.to(words) for words in self.contexts.words], self.contexts.fronts)

    def rows(self, tower: Tower, unit_E: torch.Tensor, spoken: Spoken) -> torch.Tensor:
        """(R, E) unit rows that one image has."""
        return joined(unit_prompts(tower, self.at(unit_E), spoken.strings), spoken.member.to(unit_E.device))

    def leaves(self, device: torch.device) -> Conditioned:
        """A copy to be trained."""
        own = partial(leaf, device=device)
        return Conditioned(self.contexts.map(own), self.net.map(own))

    def detached(self) -> Conditioned:
        """Without gradients."""
        return Conditioned(self.contexts.map(torch.Tensor.detach), self.net.map(torch.Tensor.detach))


def gather(tower: Tower, own: Conditioned, task: Task, chosen_B: torch.Tensor) -> float:
    """Add the gradient of some samples' loss, scaled as that of all samples is, to words and net; returns the loss."""
    total = 0.0
    for index in chosen_B.tolist():
        share = float(task.weights[index]) * len(task.targets) / len(chosen_B)
        looks_E = [task.features[index], *(() if task.views is None else task.views[index])]
        seen = _rows(tower, own, task, looks_E) if len(looks_E) > 1 else []
        for number, look_E in enumerate(looks_E):
            total += share * _look(tower, own, task, index, look_E, number, seen, share)
        total += share * sum(float(_apart(seen[0], other)) for other in seen[1:]) / max(1, len(seen) - 1)
    if task.views is not None and len(chosen_B) > 1:
        with torch.enable_grad():
            loss = CONTRAST * contrast(own.net, task.features[chosen_B], task.views[chosen_B])
        loss.backward()
        total += float(loss.detach())
    return total


@torch.no_grad()
def _rows(tower: Tower, own: Conditioned, task: Task, looks_E: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [own.rows(tower, look_E, task.spoken) for look_E in looks_E]


def _apart(one_CE: torch.Tensor, other_CE: torch.Tensor) -> torch.Tensor:
    return (one_CE - other_CE).square().sum(dim=1).mean()


def _look(
    tower: Tower,
    own: Conditioned,
    task: Task,
    index: int,
    look_E: torch.Tensor,
    number: int,
    seen: Sequence[torch.Tensor],
    share: float,
) -> float:
    """Add the gradient of one look's part of the loss times `share`; returns that part, without what looks share.

    What draws rows of looks together is differentiated for this look, others held: such parts add up to the whole.
    """
    count = max(1, len(seen))
    others = () if not seen else seen[1:] if not number else seen[:1]
    target, weight = task.targets[index : index + 1], torch.ones_like(task.weights[:1])
    one = Task(look_E[None], target, weight, task.spoken, task.text, task.scale, task.tie)
    alone = 0.0

    def loss(rows_CE: torch.Tensor) -> torch.Tensor:
        nonlocal alone
        value = one.loss(rows_CE) / count
        alone = float(value.detach())
        drawn = [_apart(rows_CE, other) / (count - 1) for other in others]
        return torch.stack([value, *drawn]).sum()

    with torch.enable_grad():
        moved = own.at(look_E)
        held = [words.detach().requires_grad_(True) for words in moved.words]
        descend(tower, Contexts(held, moved.fronts), task.spoken, loss)
    taught = [
        (words, share * leaf.grad) for words, leaf in zip(moved.words, held, strict=True) if leaf.grad is not None
    ]
    torch.autograd.backward([words for words, _ in taught], [gradient for _, gradient in taught])
    return alone


def contrast(net: Net, unit_BE: torch.Tensor, views_BVE: torch.Tensor) -> torch.Tensor:
    """SimCLR's loss of what the net makes of images: the mean over views, each paired with the image itself."""
    each, found = F.normalize(net.hidden(unit_BE), dim=-1, eps=1e-6), []
    count = len(each)
    partner = torch.arange(2 * count, device=each.device).roll(count)
    for views_BH in F.normalize(net.hidden(views_BVE), dim=-1, eps=1e-6).unbind(dim=1):
        both = torch.cat([each, views_BH])
        logits = (both @ both.mT / TEMPERATURE).fill_diagonal_(-torch.inf)
        found.append(F.cross_entropy(logits, partner))
    return torch.stack(found).mean()


def train(
    tower: Tower, task: Task, start: Conditioned, plan: Plan, hear: Callable[[], None]
) -> tuple[Conditioned, float]:
    """Batches in a seeded order, Adam, a rate that falls as a cosine; the result, and the mean loss of the last round.

    Raises:
        ModelError: it diverges.
    """
    own = start.leaves(task.features.device)
    hidden, joint = own.net.down.shape
    # What one step changes of the shift is then a like share of a word from every layer.
    rates = [
        ([*own.contexts.words, own.net.outer], plan.rate),
        ([own.net.up], plan.rate / hidden),
        ([own.net.down, own.net.inner], 0.1 / math.sqrt(joint)),
    ]
    solver = torch.optim.Adam([{"params": params, "lr": rate} for params, rate in rates])
    losses: list[float] = []
    for step, chosen in enumerate(plan.batches(len(task.targets))):
        for group, (_, rate) in zip(solver.param_groups, rates, strict=True):
            group["lr"] = rate * plan.fallen(step)
        solver.zero_grad(set_to_none=True)
        losses.append(gather(tower, own, task, chosen))
        solver.step()
        if not math.isfinite(losses[-1]) or not all(torch.isfinite(one).all() for one in own.net.tensors().values()):
            raise ModelError(f"learning prompts diverged at step {step + 1}; take a smaller rate")
        hear()
    return own.detached(), plan.recent(losses, len(task.targets))


@torch.no_grad()
def likelihood(tower: Tower, own: Conditioned, task: Task, kept_N: torch.Tensor, smoothing: float) -> float:
    """As `Task.likelihood`, each sample with the rows that are its own."""
    each = kept_N.nonzero().flatten()
    return sum(
        task.likelihood(own.rows(tower, task.features[index], task.spoken), index[None], smoothing) for index in each
    )


def learn(
    tower: Tower, task: Task, start: Conditioned, plan: Plan, progress: Progress | None = None
) -> tuple[Conditioned | None, dict[str, float]]:
    """Contexts and their net; see `all_or_none`."""
    return all_or_none(task, plan, partial(train, tower), start, lambda *judged: likelihood(tower, *judged), progress)
