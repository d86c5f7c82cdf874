"""The state of a training run: its plan, one update, and a checkpoint from which it resumes identically.

The clock, the averages over workers and over time, and the atomic checkpoint are those of `tools.mini.run`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densevl.backbones.mini import read_compact
from densevl.proposals.sam.mini_sam import SamConfig, build_sam, read_weights
from densevl.weights import read_checkpoint
from tools.mini.muon import Muon
from tools.mini.run import CHECKPOINT
from tools.mini.run import Run as ClipRun
from tools.mini_sam.data import Sources, Stream
from tools.mini_sam.loss import objective
from tools.mini_sam.model import Weights, resized_state, split_parameters, start_from_clip


@dataclass(frozen=True)
class Stage:
    """A part of the run: image side, and until which share of the run."""

    image: int
    until: float


@dataclass(frozen=True)
class Plan:
    """All settings of a run.

    Attributes:
        out: folder of checkpoint and log.
        total: budget in seconds, or in steps if `by_steps`; `checkpoint` is in the same unit.
        start: weights of a mini-sam to continue, or of a mini whose image tower initialises the encoder, None for
            random ones.
        fast: matrix products in bfloat16.
        config: the network; its image side is that of the last stage.
        batch: images of a worker's step; prompts: for each image.
    """

    out: Path
    total: float
    by_steps: bool = False
    checkpoint: float = 120
    workers: int = 1
    batch: int = 16
    prompts: int = 4
    seed: int = 0
    start: Path | None = None
    fast: bool = True
    config: SamConfig = field(default_factory=SamConfig)
    stages: tuple[Stage, ...] = (Stage(96, 0.6), Stage(128, 1.0))
    muon_lr: float = 0.02
    adam_lr: float = 1.5e-3
    ema: float = 0.998
    warm_up: int = 0

    def rate(self, progress: float) -> float:
        """Factor on the learning rates: a ramp, then a cosine down to .02."""
        return min(max(progress / 0.03, 0.05), 0.51 + 0.49 * math.cos(math.pi * min(progress, 1.0)))


def goes_on(start: Path) -> bool:
    """Tell whether the weights to start from are a whole mini-sam."""
    return "sam_config" in read_checkpoint(start).header


class Run(ClipRun):
    """The state of a run in one worker; all workers hold the same weights."""

    def __init__(self, plan: Plan, sources: Sources, rank: int = 0) -> None:
        self.plan, self.sources, self.rank = plan, cache(sources), rank
        self.step_count, self.clock, self.stage, self.images = 0, 0.0, 0, 0
        saved = torch.load(plan.out / CHECKPOINT, weights_only=True) if (plan.out / CHECKPOINT).exists() else None
        torch.manual_seed(plan.seed)
        self._hold(None)
        if saved:
            self._restore(saved)
        else:
            if plan.start:
                self._start_from(plan.start)
            self.ema = {key: value.clone() for key, value in self.learner.state_dict().items()}
        self._begun, self._before = time.monotonic(), self.clock
        self.restart_stream()

    @property
    def config(self) -> SamConfig:
        """The network of this stage."""
        return replace(self.plan.config, image=self.plan.stages[self.stage].image)

    def step(self) -> dict[str, float]:
        """Do one update; return the parts of the loss."""
        plan = self.plan
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.fast):
            parts = objective(self.learner, self.stream.batch(), self.generator)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        parts["loss"].backward()
        now = self._average(self._time())
        rate = plan.rate(self.progress)
        for optimizer, peak in zip(self.optimizers, (plan.muon_lr, plan.adam_lr), strict=True):
            optimizer.param_groups[0]["lr"] = peak * rate
            optimizer.step()
        self.step_count, self.clock = self.step_count + 1, now
        self.images += plan.batch * plan.workers
        self._average_weights()
        if self.stage + 1 < len(plan.stages) and self.progress >= plan.stages[self.stage].until:
            self._enter(self.stage + 1)
        return {key: float(value.detach()) for key, value in parts.items()}

    def restart_stream(self) -> None:
        """Reseed the draws with a seed that only depends on the step, so that a resumed run sees the same."""
        plan, rng = self.plan, np.random.default_rng([self.plan.seed, self.rank, self.step_count])
        self.generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        source = self.sources(self.config.image, plan.seed * 101 + self.rank)
        self.stream = Stream(source, rng, plan.batch, plan.prompts, 4 * self.config.grid)

    def state(self) -> dict[str, Any]:
        """Return the content of a checkpoint: plain tensors and numbers."""
        return {
            "config": asdict(self.config),
            "learner": self.learner.state_dict(),
            "ema": self.ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "counts": [self.step_count, self.clock, self.stage, self.images],
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.step_count, self.clock, self.stage, self.images = state["counts"]
        self._hold(state["learner"])
        self.ema = state["ema"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def _hold(self, weights: Weights | None) -> None:
        """Build the network of this stage, with given or random weights, and its optimisers."""
        self.learner = build_sam(self.config).train()
        if weights:
            self.learner.load_state_dict(weights)
        matrices, others = split_parameters(self.learner)
        self.optimizers = [Muon(matrices), torch.optim.AdamW(others, weight_decay=0.0, betas=(0.9, 0.98))]

    def _enter(self, stage: int) -> None:
        self.stage = stage
        self.ema = resized_state(self.ema, self.config.grid)
        self._hold(resized_state(self.learner.state_dict(), self.config.grid))
        self.restart_stream()

    def _start_from(self, path: Path) -> None:
        """Start from a mini-sam, or the encoder alone from a mini.

        The latter takes the first worker's images in every worker: the weights must be equal.
        """
        if goes_on(path):
            state, _ = read_weights(path)
            self._hold(resized_state({key: value.float() for key, value in state.items()}, self.config.grid))
            return
        state, _ = read_compact(path)
        tower = {key: value for key, value in state.items() if key.startswith("visual.")}
        source = self.sources(self.config.image, self.plan.seed * 101)
        some = Stream(source, np.random.default_rng(self.plan.seed), 16, 1, 4 * self.config.grid).batch()
        start_from_clip(self.learner, tower, some.pixels)
