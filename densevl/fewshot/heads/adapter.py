"""A small net beside the words: Multi-Modal Adapter (Seputis et al., 2024), and CLIP-Adapter (Gao et al., 2023).

Image and words, brought down to a few numbers, look at each other by one masked attention; what they find is brought up
again and mixed in:

    f' = (1 - share) f + share up(attention(f; words)),   w_c' = (1 - share) w_c + share up(attention(w_c; f))

A word looks at the image alone, so that all words find the same, g(f), and the logit of a class needs no vector of its
own for each feature: scale <f', (1 - share) w_c + share g(f)>, over their lengths. Nothing of size N x C x D is built.
Without attention it is CLIP-Adapter: f' = (1 - share) f + share up relu(down f), and words stay. `up` starts at 0,
where both are the words alone. Shape letters: N samples, C classes, D width, A heads, R width of the bottleneck.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from densevl.errors import OptionError
from densevl.fewshot.choosing import JUDGED, folds, spread
from densevl.fewshot.head import Head, Samples
from densevl.fewshot.settings import SEED, Rule

HEADS = 4
BATCH = 1024
STRIDE = 10  # steps between two looks at those left out
MOST = 200
PATIENCE = 3  # looks without a better one
ALONE = 20  # steps where no class has two examples and nothing can be left out


class Adapter(Head):
    """Trained by Adam on features that stay as they are; how long is chosen by four folds."""

    name: ClassVar[str] = "adapter"
    rules: ClassVar[Mapping[str, Rule]] = {
        "share": Rule(0, 1),
        "width": Rule(HEADS, 2**16, whole=True),
        "words": Rule(flag=True),
        "steps": Rule(whole=True, optional=True),
        "rate": Rule(above=True),
        "seed": SEED,
    }

    def __init__(
        self,
        share: float = 0.2,
        width: int = 64,
        words: bool = True,
        steps: int | None = None,
        rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        """Settings.

        Args:
            share: of what the net adds, 0..1; 0 is the words alone. width: of the bottleneck, a multiple of 4.
            words: words and image look at each other; False is CLIP-Adapter. steps: of Adam, of 1024 examples each;
                None chooses up to 200 by four folds. rate: of Adam. seed: of the first weights and of the order.

        Raises:
            OptionError: out of range.
        """
        super().__init__(share=share, width=width, words=words, steps=steps, rate=rate, seed=seed)
        if width % HEADS:
            raise OptionError(f"width is a multiple of {HEADS}, not {width}")
        self.share, self.width, self.words = share, width, words
        self.steps, self.rate, self.seed = steps, rate, seed

    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("share", "width", "words", "steps", "rate", "seed")}

    def _fit(self, samples: Samples) -> None:
        steps = self._choose(samples) if self.steps is None else self.steps
        self.net = self._begun(samples)
        losses = list(self._train(self.net, samples, steps))
        self.found = {"steps": steps, **({"loss before": losses[0], "loss": losses[-1]} if losses else {})}

    def _choose(self, samples: Samples) -> int:
        """The steps after which examples left out are most probable, all folds together, trained side by side."""
        some = spread(len(samples), JUDGED).to(samples.labels.device)
        samples = Samples(samples.features[some], samples.labels[some], samples.weights[some])
        runs = []
        for out in folds(samples.labels):
            rest = Samples(samples.features[~out], samples.labels[~out], samples.weights[~out])
            net = self._begun(rest)
            runs.append((net, self._train(net, rest, MOST), out))
        if not runs:
            return ALONE
        totals: list[float] = []
        while len(totals) <= MOST // STRIDE and min(totals[-PATIENCE:], default=0) <= min(totals, default=0):
            totals.append(sum(self._entropy(net, samples, out) for net, _, out in runs))
            for _, training, _ in runs:
                for _ in islice(training, STRIDE):
                    pass
        return STRIDE * min(range(len(totals)), key=totals.__getitem__)

    def _entropy(self, net: Mapping[str, torch.Tensor], samples: Samples, out: torch.Tensor) -> float:
        """Cross-entropy of the examples left out, summed."""
        with torch.no_grad():
            logits = self._logits(net, samples.features[out])[:, self.seen]
        target = (self.seen.cumsum(0) - 1)[samples.labels[out]]
        return float(F.cross_entropy(logits, target, reduction="sum"))

    def _begun(self, samples: Samples) -> dict[str, torch.Tensor]:
        """The first weights: `up` is 0."""
        wide, draw = samples.features.shape[1], torch.Generator().manual_seed(self.seed)
        shapes = {"down": (wide, self.width), **({"qkv": (self.width, 3 * self.width)} if self.words else {})}
        net = {name: torch.randn(shape, generator=draw) / shape[0] ** 0.5 for name, shape in shapes.items()}
        net["up"] = torch.zeros(self.width, wide)
        return {name: value.to(samples.features) for name, value in net.items()}

    def _train(self, net: dict[str, torch.Tensor], samples: Samples, steps: int) -> Iterator[float]:
        """Change the weights of a net step by step; yields the loss before each."""
        order = torch.Generator().manual_seed(self.seed)
        target = (self.seen.cumsum(0) - 1)[samples.labels]
        for value in net.values():
            value.requires_grad_(True)
        solver = torch.optim.Adam(net.values(), lr=self.rate)
        for _ in range(steps):
            few: slice | torch.Tensor = slice(None)
            if len(samples) > BATCH:
                few = torch.randperm(len(samples), generator=order)[:BATCH].to(target.device)
            with torch.enable_grad():
                logits = self._logits(net, samples.features[few])[:, self.seen]
                weights = samples.weights[few]
                loss = (weights * F.cross_entropy(logits, target[few], reduction="none")).sum() / weights.sum()
                solver.zero_grad()
                loss.backward()
            solver.step()
            yield float(loss.detach())
        for value in net.values():
            value.requires_grad_(False)

    def _logits(self, net: Mapping[str, torch.Tensor], unit_ND: torch.Tensor) -> torch.Tensor:
        """Logits (N, C)."""
        keep, share = 1 - self.share, self.share
        low_NR = unit_ND @ net["down"]
        if not self.words:
            added = F.relu(low_NR) @ net["up"]
            return self.scale * F.normalize(keep * unit_ND + share * added, dim=-1) @ self.text.mT
        found_NR, one_NR = self._look(net, low_NR)
        f_ND, g_ND = keep * unit_ND + share * found_NR @ net["up"], share * one_NR @ net["up"]
        text = keep * self.text
        dots_NC = f_ND @ text.mT + (f_ND * g_ND).sum(dim=1, keepdim=True)
        squares_NC = (text**2).sum(dim=1) + 2 * g_ND @ text.mT + (g_ND**2).sum(dim=1, keepdim=True)
        return self.scale * dots_NC / (f_ND.norm(dim=1, keepdim=True) * squares_NC.clamp(min=1e-12).sqrt())

    def _look(self, net: Mapping[str, torch.Tensor], low_NR: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the image finds among itself and all words, and what each word finds in the image: (N, R) each."""
        queries, keys, values = (low_NR @ net["qkv"]).chunk(3, dim=1)
        _, word_keys, word_values = (self.text @ net["down"] @ net["qkv"]).chunk(3, dim=1)
        split = (HEADS, self.width // HEADS)
        q_NAd, k_NAd, v_NAd = (part.unflatten(1, split) for part in (queries, keys, values))
        k_CAd, v_CAd = (part.unflatten(1, split) for part in (word_keys, word_values))
        own_NA1 = (q_NAd * k_NAd).sum(dim=2, keepdim=True)
        logits = torch.cat([own_NA1, torch.einsum("nad,cad->nac", q_NAd, k_CAd)], dim=2) / split[1] ** 0.5
        shares = logits.softmax(dim=2)
        found = shares[..., :1] * v_NAd + torch.einsum("nac,cad->nad", shares[..., 1:], v_CAd)
        return found.flatten(1), values

    def _judge(self, unit_ND: torch.Tensor, words_NC: torch.Tensor) -> torch.Tensor:
        parts = unit_ND.split(4 * BATCH)
        return torch.cat([self._logits(self.net, part) for part in parts]) if len(unit_ND) else words_NC

    def _tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.net)

    def _restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.net = {name: tensors[name] for name in ("down", "up", *(("qkv",) if self.words else ()))}
