"""How contexts are trained: full batches, Adam, a rate that falls as a cosine; and the step that is best.

    min over v of  sum_i w_i CE(scale f_i.t, y_i) + tie mean_c |t_c - t0_c|^2

The tie to the rows of the words (KgCoOp, Yao et al., CVPR 2023) is for classes with examples. Features are fixed, so
that a step costs the text tower M x S texts and nothing else. How many steps are best is asked of examples that were
left out, fold by fold; then all are trained on for so many. Shape letters: N samples, C classes with examples, E joint
space; others as in `contexts`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from densevl.fewshot.prompts.contexts import Contexts, Spoken, Tower, descend, joined, unit_prompts


@dataclass(frozen=True, eq=False)
class Task:
    """What is learned from and what for.

    Attributes:
        features: (N, E) unit rows. targets: (N,) int64, among C classes. weights: (N,) of sum 1.
        spoken: the C classes. text: (C, E), t0. scale: of cosines. tie: strength.
        views: (N, V, E), unit rows of other looks at the samples, which share their weights; None without.
        pixels: (N, 3, S, S), the samples as the image tower takes them, where that learns too; else None.
    """

    features: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    spoken: Spoken
    text: torch.Tensor
    scale: float
    tie: float
    views: torch.Tensor | None = None
    pixels: torch.Tensor | None = None

    def loss(self, rows_CE: torch.Tensor) -> torch.Tensor:
        """Of the rows of classes."""
        features, targets, weights = self.features, self.targets, self.weights
        if self.views is not None:
            looks = self.views.shape[1] + 1
            features = torch.cat([features[:, None], self.views], dim=1).flatten(0, 1)
            targets, weights = targets.repeat_interleave(looks), weights.repeat_interleave(looks) / looks
        logits = self.scale * features @ rows_CE.mT
        entropy = (weights * F.cross_entropy(logits, targets, reduction="none")).sum()
        return entropy + self.tie * (rows_CE - self.text).square().sum(dim=1).mean()

    def part(self, kept_N: torch.Tensor) -> Task:
        """The task of some samples."""
        weights = self.weights[kept_N]
        own = (self.features[kept_N], self.targets[kept_N], weights / weights.sum())
        views = None if self.views is None else self.views[kept_N]
        pixels = None if self.pixels is None else self.pixels[kept_N]
        return Task(*own, self.spoken, self.text, self.scale, self.tie, views, pixels)

    def likelihood(self, rows_CE: torch.Tensor, kept_N: torch.Tensor, smoothing: float) -> float:
        """How probable rows make some samples: log, summed, each class weighing 1 over all samples."""
        logp = (self.scale * self.features[kept_N] @ rows_CE.mT).double().log_softmax(dim=-1)
        own = logp.gather(1, self.targets[kept_N, None])[:, 0]
        counts = torch.bincount(self.targets, minlength=len(rows_CE))[self.targets[kept_N]]
        return float((((1 - smoothing) * own + smoothing * logp.mean(dim=1)) / counts).sum())


class Run:
    """Contexts on their way. Attributes: step: updates done. loss: before the last of them."""

    def __init__(self, tower: Tower, task: Task, start: Contexts, steps: int, rate: float) -> None:
        """Begin.

        Args:
            steps: over which the rate falls. rate: at its highest, of Adam.
        """
        self.tower, self.task, self.steps, self.rate = tower, task, steps, rate
        device = task.features.device
        words = [one.detach().to(device).clone().requires_grad_(True) for one in start.words]
        self.contexts = Contexts(words, start.fronts)
        self._solver = torch.optim.Adam(words, lr=rate)
        self._sizes = [sizes_of(one, tower.word_width) for one in start.words]
        self.step, self.loss = 0, math.nan

    def advance(self) -> torch.Tensor:
        """One update; the rows (C, E) before it."""
        for group in self._solver.param_groups:
            group["lr"] = self.rate * (0.5 + 0.5 * math.cos(math.pi * self.step / self.steps))
        self._solver.zero_grad(set_to_none=True)
        with torch.enable_grad():
            rows, self.loss = descend(self.tower, self.contexts, self.task.spoken, self.task.loss)
        sized_step(self._solver, self.contexts.words, self._sizes)
        self.step += 1
        return rows

    @torch.no_grad()
    def rows(self) -> torch.Tensor:
        """The rows (C, E) now."""
        return joined(unit_prompts(self.tower, self.contexts, self.task.spoken.strings), self.task.spoken.member)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that `go_on` needs."""
        found = {f"words {number}": words.detach() for number, words in enumerate(self.contexts.words)}
        for number, own in self._solver.state_dict()["state"].items():
            found |= {f"solver {number} {key}": value for key, value in own.items()}
        return found

    def go_on(self, tensors: Mapping[str, torch.Tensor], step: int, loss: float) -> None:
        """Where `tensors` were taken."""
        with torch.no_grad():
            for number, words in enumerate(self.contexts.words):
                words.copy_(tensors[f"words {number}"])
        state: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            if key.startswith("solver "):
                _, place, name = key.split(" ", 2)
                state.setdefault(int(place), {})[name] = value.clone()
        groups = self._solver.state_dict()["param_groups"]
        self._solver.load_state_dict({"state": state, "param_groups": groups})
        self.step, self.loss = step, loss


@torch.no_grad()
def sized_step(
    solver: torch.optim.Optimizer, words: Sequence[torch.Tensor], sizes: Sequence[torch.Tensor | None]
) -> None:
    """A step, in which deep words go so many times as far as `sizes_of` says."""
    before = [one.detach().clone() for one in words]
    solver.step()
    for one, old, size in zip(words, before, sizes, strict=True):
        if size is not None:
            one.copy_(old + (one - old) * size.to(one))


def sizes_of(words_nW: torch.Tensor, width: int) -> torch.Tensor | None:
    """(d * W,), how large deep words are in each block beside the first, by which their steps are longer; None of words
    that are not deep."""
    parts = words_nW.split(width, dim=1)
    if len(parts) == 1 or not len(words_nW):
        return None
    sizes = torch.stack([part.square().mean().sqrt() for part in parts])
    return (sizes / sizes[0].clamp(min=1e-12)).repeat_interleave(width)
