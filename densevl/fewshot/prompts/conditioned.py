"""Contexts that depend on the image: a small net shifts all their words (CoCoOp, Zhou et al., CVPR 2022).

    v_m(f) = v_m + U relu(D sqrt(E) f + d) + u
    min over v and the net of  sum_i w_i [CE(scale f_i.t(f_i), y_i) + tie mean_c |t_c(f_i) - t0_c|^2]

Every image has rows of its own, so that a step costs the text tower M x S texts for each image of a batch, and an
answer as many. U and u start at zero, where the contexts do not depend on the image. Shape letters: H hidden units, W
width of a word, others as in `contexts` and `training`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch.nn import functional as F

from densevl.errors import ModelError
from densevl.fewshot.prompts.contexts import Contexts, Spoken, Tower, descend, joined, unit_prompts
from densevl.fewshot.prompts.fitting import Progress, blocks
from densevl.fewshot.prompts.training import Task

NARROWER, FEWEST = 16, 4  # the hidden layer: a share of the joint space, as CoCoOp's; and at least so many units


@dataclass(frozen=True, eq=False)
class Net:
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

    def shift(self, unit_E: torch.Tensor) -> torch.Tensor:
        """(W,), of the unit vector of an image."""
        hidden = F.relu(F.linear(math.sqrt(len(unit_E)) * unit_E.to(self.down), self.down, self.inner))
        return F.linear(hidden, self.up, self.outer)

    def tensors(self) -> dict[str, torch.Tensor]:
        """By name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Net:
        """Each tensor changed."""
        return Net(**{name: change(own) for name, own in self.tensors().items()})


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

        def leaf(one: torch.Tensor) -> torch.Tensor:
            return one.detach().to(device).clone().requires_grad_(True)

        return Conditioned(
            Contexts([leaf(one) for one in self.contexts.words], self.contexts.fronts), self.net.map(leaf)
        )

    def detached(self) -> Conditioned:
        """Without gradients."""
        own = [one.detach() for one in self.contexts.words]
        return Conditioned(Contexts(own, self.contexts.fronts), self.net.map(torch.Tensor.detach))


@dataclass(frozen=True)
class Plan:
    """Attributes: steps: of Adam. batch: images of one. rate: at its highest, of words. folds: as of `Schedule`.
    seed: of the order of images."""

    steps: int
    batch: int
    rate: float
    folds: int
    seed: int


def gather(tower: Tower, own: Conditioned, task: Task, chosen_B: torch.Tensor) -> float:
    """Add the gradient of some samples' loss, scaled as that of all samples is, to words and net; returns the loss."""
    total = 0.0
    for index in chosen_B.tolist():
        one = task.part(torch.tensor([index], device=task.targets.device))
        share = float(task.weights[index]) * len(task.targets) / len(chosen_B)
        with torch.enable_grad():
            moved = own.at(task.features[index])
            held = [words.detach().requires_grad_(True) for words in moved.words]
            _, value = descend(tower, Contexts(held, moved.fronts), task.spoken, one.loss)
        taught = [
            (words, share * leaf.grad) for words, leaf in zip(moved.words, held, strict=True) if leaf.grad is not None
        ]
        torch.autograd.backward([words for words, _ in taught], [gradient for _, gradient in taught])
        total += share * value
    return total


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
    count = len(task.targets)
    batch, generator = min(plan.batch, count), torch.Generator().manual_seed(plan.seed)
    rounds = [torch.randperm(count, generator=generator) for _ in range(-(-plan.steps * batch // count))]
    losses: list[float] = []
    for step, chosen in enumerate(torch.cat(rounds)[: plan.steps * batch].split(batch)):
        for group, (_, rate) in zip(solver.param_groups, rates, strict=True):
            group["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * step / plan.steps))
        solver.zero_grad(set_to_none=True)
        losses.append(gather(tower, own, task, chosen))
        solver.step()
        if not math.isfinite(losses[-1]) or not all(torch.isfinite(one).all() for one in own.net.tensors().values()):
            raise ModelError(f"learning prompts diverged at step {step + 1}; take a smaller rate")
        hear()
    recent = losses[-max(1, count // batch) :]
    return own.detached(), sum(recent) / len(recent)


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
    """Contexts and their net, or None where left-out examples say that the words as they were are better.

    Returns:
        They, and "steps", "loss" and, with folds, the "gain" in likelihood per class, as head "prompt" tells them.

    Raises:
        ModelError: training diverges.
    """
    parts, done = blocks(task.targets, plan.folds), 0

    def hear() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, (len(parts) + 1) * plan.steps)

    gain, smoothing = 0.0, 1 / (len(task.targets) + 1)
    for kept_N in parts:
        judged, _ = train(tower, task.part((~kept_N).nonzero().flatten()), start, plan, hear)
        gain += likelihood(tower, judged, task, kept_N, smoothing)
        gain -= task.likelihood(task.text, kept_N.nonzero().flatten(), smoothing)
    found = {"gain": gain / len(task.text)} if parts else {}
    if parts and gain <= 0:
        return None, {"steps": 0, **found}
    made, loss = train(tower, task, start, plan, hear)
    return made, {"steps": plan.steps, "loss": loss, **found}
