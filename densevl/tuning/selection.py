"""The choice: stages of candidates narrowed on more and more pictures, and cross-validation of the whole procedure.

The choice is a function of the pictures it may see. Made on all of them it gives the answer; made on all but a fold it
gives an answer that never saw the fold, on which it is then validated. Because the function includes the narrowing, the
whole procedure is validated (nested cross-validation) rather than the luckiest of many candidates. Counts that both
need are counted once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from densevl.tuning.candidates import CHEAPER, Candidate, Space
from densevl.tuning.ledger import Ledger
from densevl.tuning.scores import Counts, Difference, Measure, difference

FOLDS = 5
LEAST = 4
"""Number of pictures in the first, coarsest round."""
KEEP = 3
"""One in this many candidates advances to the next round; and the smallest number that advances."""
LOSS = 0.005
"""The largest loss of a cheaper setting, at the lower end of the interval."""
SAVES = 0.9
"""A setting is cheaper if it takes at most this fraction of the time."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """A stage of a choice.

    Attributes:
        settings: what was varied. tried: number of candidates. complete: whether all were run as planned.
        finalists: those counted on all pictures, best first. chosen: the one taken.
    """

    settings: tuple[str, ...]
    tried: int
    finalists: tuple[Candidate, ...]
    chosen: Candidate
    complete: bool


@dataclass(frozen=True)
class Judged:
    """The procedure on unseen pictures.

    Attributes:
        gain: of its choices over the default. value, default: the measure of both. folds: the gain in each fold.
        choices: the choice made without each fold. complete: whether the time was enough; otherwise it says nothing.
    """

    gain: Difference
    value: float
    default: float
    folds: tuple[float, ...]
    choices: tuple[Candidate, ...]
    complete: bool


class Selection:
    """Chooses among the candidates of a space by the counts of a ledger."""

    def __init__(
        self,
        space: Space,
        ledger: Ledger,
        measure: Measure,
        *,
        seed: int = 0,
        least: float = 0.0,
        say: Say | None = None,
    ) -> None:
        """Prepare; pictures are used in an order drawn by the seed.

        Args: least: a gain of no more than this is ignored.
        """
        self.least = least
        self.space, self.ledger, self.measure, self.seed = space, ledger, measure, seed
        self._say = say
        self.order = [int(at) for at in np.random.default_rng(seed).permutation(ledger.pictures)]

    def choose(self, visible: Sequence[int], *, told: str = "") -> list[Step]:
        """Choose by some pictures only: one step per stage, of which the last holds the choice.

        A stage leaves its start for the best candidate only if that is better by more than a standard error of the
        difference (the one-standard-error rule of Breiman et al., 1984).
        """
        current, steps = self.space.default, []
        self.ledger.ensure([current], visible, must=True)
        for stage in self.space.stages:
            pool = self.space.around(current, stage)
            self._tell(f"{told}{' and '.join(stage)}, {len(pool)} candidates")
            finalists, complete = self._narrowed(pool, current, visible)
            best = finalists[0]
            if best != current:
                gain = self.difference(best, current, visible)
                current = best if gain.value > max(gain.error, self.least) else current
            steps.append(Step(stage, len(pool), tuple(finalists), current, complete))
        return steps

    def _narrowed(
        self, pool: list[Candidate], current: Candidate, visible: Sequence[int]
    ) -> tuple[list[Candidate], bool]:
        """The candidates of a pool that were run on all pictures, best first, and whether the time was enough."""
        for number in rungs(len(visible), len(pool)):
            images = visible[:number]
            self.ledger.ensure(pool, images)
            ready = [own for own in pool if self.ledger.has(own, images)]
            if len(ready) < len(pool):
                done = [own for own in pool if self.ledger.has(own, visible)]
                return self._ranked(done, visible, current), False
            ranked = self._ranked(ready, images, current)
            kept = ranked[: max(KEEP, math.ceil(len(ranked) / KEEP))] if number < len(visible) else ranked
            pool = list(dict.fromkeys([*kept, current]))
        return self._ranked(pool, visible, current), True

    def _ranked(self, pool: Sequence[Candidate], images: Sequence[int], current: Candidate) -> list[Candidate]:
        """The best first; ties go to the current candidate, then to the earlier."""
        values = {own: self.value(own, images) for own in pool}
        return sorted(pool, key=lambda own: (-np.nan_to_num(values[own], nan=-1.0), own != current))

    def judge(self) -> Judged:
        """Cross-validate the choice."""
        default, order = self.space.default, self.order
        folds = [order[start :: min(FOLDS, len(order))] for start in range(min(FOLDS, len(order)))]
        chosen: list[tuple[Candidate, list[int]]] = []
        complete = True
        for number, held in enumerate(folds, start=1):
            visible = [at for at in order if at not in set(held)]
            steps = self.choose(visible, told=f"fold {number} of {len(folds)}: ")
            own = steps[-1].chosen if steps else default
            self.ledger.ensure([own], held)
            complete = complete and all(step.complete for step in steps) and self.ledger.has(own, held)
            chosen.append((own if self.ledger.has(own, held) else default, held))
        images = [at for _, held in chosen for at in held]
        tuned = np.concatenate([self.ledger.counts(own, held) for own, held in chosen])
        usual = self.ledger.counts(default, images)
        return Judged(
            difference(tuned, usual, self.measure, self.seed),
            float(self.measure(tuned.sum(axis=0))),
            float(self.measure(usual.sum(axis=0))),
            tuple(self.value(own, held) - self.value(default, held) for own, held in chosen),
            tuple(own for own, _ in chosen),
            complete,
        )

    def cheapen(self, start: Candidate) -> tuple[Candidate, list[Candidate]]:
        """Change settings that save time without a loss, one after the other: the choice, and what was tried.

        A setting is taken if its time is at most 90 % and its loss, at the lower end of the interval, at most half a
        point. Each is a test of one setting, which needs no fold, because nothing is picked for being best.
        """
        current, looked = start, [start]
        for name in CHEAPER[self.space.use]:
            pool = self.space.around(current, [name])
            if len(pool) < 2:
                continue
            self._tell(f"{name}, {len(pool)} candidates")
            self.ledger.ensure(pool, self.order)
            ready = [own for own in pool if self.ledger.has(own, self.order)]
            looked += [own for own in ready if own not in looked]
            seconds = {own: self.ledger.seconds(own) for own in ready}
            fit = [
                own
                for own in ready
                if own == current
                or (seconds[own] <= SAVES * seconds[current] and self.difference(own, current, self.order).low >= -LOSS)
            ]
            current = min(fit, key=lambda own: seconds[own])
        return current, looked

    def value(self, candidate: Candidate, images: Sequence[int]) -> float:
        """The measure of a candidate on some pictures."""
        return float(self.measure(self.ledger.counts(candidate, images).sum(axis=0)))

    def difference(self, one: Candidate, other: Candidate, images: Sequence[int]) -> Difference:
        """How much better one candidate is than another on some pictures."""
        counts: list[Counts] = [self.ledger.counts(own, images) for own in (one, other)]
        return difference(counts[0], counts[1], self.measure, self.seed)

    def _tell(self, text: str) -> None:
        if self._say is not None:
            self._say(text)


def rungs(images: int, candidates: int) -> list[int]:
    """The numbers of pictures on which candidates are run in each round: 4, then twice as many, then all."""
    if candidates <= KEEP:
        return [images]
    found = [LEAST]
    while found[-1] * 2 < images:
        found.append(found[-1] * 2)
    return [*(number for number in found if number < images), images]
