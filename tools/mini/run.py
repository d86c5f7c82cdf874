"""The state of a training run: its plan, one update, and a checkpoint from which it resumes identically.

The budget is time (or steps, in tests): learning rate, patch dropout and image size follow the used share of it.
Workers hold equal weights and average their gradients, so every decision uses shared numbers.
"""

from __future__ import annotations

import io
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from densevl.backbones.mini import read_compact
from densevl.files import atomic_write
from tools.mini.data import Stream
from tools.mini.model import Learner, MiniConfig
from tools.mini.muon import Muon
from tools.mini.objective import Objective
from tools.mini.prompts import Bank
from tools.mini.sources import Sources
from tools.mini.tokens import CompactTokenizer

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Stage:
    """A part of the run: image side, until which share of the run, and until which share half the patches drop."""

    image: int
    until: float
    drop_until: float


@dataclass(frozen=True)
class Plan:
    """All settings of a run.

    Attributes:
        out: folder of checkpoint and log.
        total: budget in seconds, or in steps if `by_steps`; `checkpoint` and `probe` are in the same unit.
        config: the network at the first stage; nouns: how many are trained.
        start: weights of a mini with `config`'s sizes and as many nouns to start from, None for random ones.
        warm_up: steps of text-only training.
        fast: matrix products in bfloat16.
    """

    out: Path
    total: float
    by_steps: bool = False
    checkpoint: float = 180
    probe: float = 480
    workers: int = 1
    batch: int = 64
    seed: int = 0
    nouns: int = 40
    start: Path | None = None
    warm_up: int = 200
    fast: bool = True
    config: MiniConfig = field(default_factory=MiniConfig)
    stages: tuple[Stage, ...] = (Stage(64, 0.62, 0.38), Stage(96, 1.0, 0.82))
    muon_lr: float = 0.02
    adam_lr: float = 1.5e-3
    ema: float = 0.999

    @classmethod
    def going_on(cls, out: Path, total: float, start: Path, **others: Any) -> Plan:
        """Make a plan that starts from the file of a mini at its own image side, without a warm-up."""
        config = MiniConfig.of(read_compact(start)[1]["model_cfg"])
        stages = (Stage(config.image, 1.0, 0.5),)
        rates = {"muon_lr": 0.01, "adam_lr": 8e-4}
        return cls(out, total, start=start, config=config, stages=stages, warm_up=0, **rates, **others)

    def rate(self, step: int, progress: float) -> float:
        """Factor on the learning rates: a ramp for the texts, a ramp for the rest, then a cosine down to .02."""
        if step < self.warm_up:
            return min(1.0, (step + 1) / 20)
        return min(max(progress / 0.03, 0.1), 0.51 + 0.49 * math.cos(math.pi * min(progress, 1.0)))


class Run:
    """The state of a run in one worker; all workers hold the same weights."""

    def __init__(self, plan: Plan, sources: Sources, rank: int = 0) -> None:
        self.plan, self.sources, self.rank = plan, sources, rank
        saved = torch.load(plan.out / CHECKPOINT, weights_only=True) if (plan.out / CHECKPOINT).exists() else None
        self.bank = Bank(plan.nouns)
        started = read_compact(plan.start) if plan.start and not saved else None
        if saved or started:
            ids = (saved or started[0])["token_ids"]
            self.tokenizer = CompactTokenizer(ids.tolist(), plan.config.context)
        else:
            self.tokenizer = CompactTokenizer.covering(self.bank.texts(), plan.config.context)
        self.dtype = torch.bfloat16 if plan.fast else torch.float32
        self.objective = Objective(self.bank, self.tokenizer, self.dtype)
        self.step_count, self.clock, self.stage, self.images = 0, 0.0, 0, 0
        torch.manual_seed(plan.seed)
        self._hold(Learner(plan.config, self.tokenizer.rows))
        if started:
            self.learner.load(*started)
        self.ema = {key: value.clone() for key, value in self.learner.state_dict().items()}
        if saved:
            self._restore(saved)
        self._begun, self._before = time.monotonic(), self.clock
        self.restart_stream()

    @property
    def progress(self) -> float:
        """Return the used share of the budget."""
        return self.clock / self.plan.total

    def step(self) -> dict[str, float]:
        """Do one update; return the parts of the loss."""
        plan, warm = self.plan, self.step_count < self.plan.warm_up
        self.objective.seed(plan.seed, self.rank, self.step_count)
        if warm:
            parts = self.objective.warm_up(self.learner)
        else:
            keep = 0.5 if self.progress < plan.stages[self.stage].drop_until else 1.0
            parts = self.objective(self.learner, self.stream.batch(plan.batch), keep)
            self.images += plan.batch * plan.workers
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        parts["loss"].backward()
        now = self._average(self._time())
        rate = plan.rate(self.step_count, self.progress)
        for optimizer, peak in zip(self.optimizers, (plan.muon_lr, plan.adam_lr), strict=True):
            optimizer.param_groups[0]["lr"] = peak * rate
            optimizer.step()
        self.step_count, self.clock = self.step_count + 1, now
        self._average_weights()
        if self.stage + 1 < len(plan.stages) and self.progress >= plan.stages[self.stage].until:
            self._enter(self.stage + 1)
        return {key: float(value.detach()) for key, value in parts.items()}

    def restart_stream(self) -> None:
        """Reseed the scenes with a seed that only depends on the step, so that a resumed run sees the same."""
        size = self.plan.stages[self.stage].image
        scene, surface = self.sources(size, self.plan.nouns, [self.plan.seed, self.rank, self.step_count])
        seed = [self.plan.seed, self.rank, self.step_count, 1]
        self.stream = Stream(scene, surface, self.plan.nouns, len(self.bank), seed)

    def state(self) -> dict[str, Any]:
        """Return the content of a checkpoint: plain tensors and numbers."""
        return {
            "config": self.config.to_dict(),
            "nouns": self.plan.nouns,
            "token_ids": torch.from_numpy(self.tokenizer.ids),
            "learner": self.learner.state_dict(),
            "ema": self.ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "counts": [self.step_count, self.clock, self.stage, self.images],
        }

    def save(self) -> None:
        """Write the new checkpoint beside the old one, then replace it."""
        buffer = io.BytesIO()
        torch.save(self.state(), buffer)
        atomic_write(self.plan.out / CHECKPOINT, buffer.getvalue())

    def _restore(self, state: dict[str, Any]) -> None:
        self.step_count, self.clock, self.stage, self.images = state["counts"]
        self._hold(Learner(MiniConfig(**state["config"]), self.tokenizer.rows))
        self.learner.load_state_dict(state["learner"])
        self.ema = state["ema"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def _hold(self, learner: Learner) -> None:
        self.learner = learner
        self.config = MiniConfig(**{**self.plan.config.to_dict(), "image": learner.clip.visual.image_size[0]})
        matrices, others = split_parameters(learner)
        adam = torch.optim.AdamW(others, weight_decay=0.0, betas=(0.9, 0.98))
        self.optimizers = [Muon(matrices, dtype=self.dtype), adam]

    def _enter(self, stage: int) -> None:
        config = MiniConfig(**{**self.plan.config.to_dict(), "image": self.plan.stages[stage].image})
        averaged = Learner(self.config, self.tokenizer.rows)
        averaged.load_state_dict(self.ema)
        self.stage = stage
        self.ema = averaged.resized(config, self.tokenizer.rows).state_dict()
        self._hold(self.learner.resized(config, self.tokenizer.rows))
        self.restart_stream()

    def _time(self) -> float:
        return self.step_count + 1.0 if self.plan.by_steps else self._before + time.monotonic() - self._begun

    def _average(self, now: float) -> float:
        """Average gradients over the workers in one message, with the first worker's clock."""
        if self.plan.workers == 1:
            return now
        grads = [p.grad for p in self.learner.parameters() if p.grad is not None]
        clock = torch.tensor([now if self.rank == 0 else 0.0])
        flat = torch.cat([g.flatten() for g in grads] + [clock])
        dist.all_reduce(flat)
        for grad, mean in zip(grads, flat[:-1].split([g.numel() for g in grads]), strict=True):
            grad.copy_(mean.view_as(grad)).div_(self.plan.workers)
        return float(flat[-1])

    @torch.no_grad()
    def _average_weights(self) -> None:
        joint = self.step_count - self.plan.warm_up
        decay = min(self.plan.ema, (1 + joint) / (10 + joint)) if joint > 0 else 0.0
        for key, value in self.learner.state_dict().items():
            self.ema[key].lerp_(value, 1 - decay)


def split_parameters(learner: Learner) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the weight matrices of the transformer blocks (for Muon), and everything else (for AdamW)."""
    matrices, others = [], []
    for name, parameter in learner.named_parameters():
        (matrices if "resblocks" in name and parameter.ndim == 2 else others).append(parameter)
    return matrices, others
