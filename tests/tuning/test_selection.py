"""The choice on made-up counts: what it may see, when it is sure, when time is up, and what it goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from densevl.errors import EvaluationError
from densevl.tuning.candidates import Candidate, Space
from densevl.tuning.ledger import Ledger
from densevl.tuning.scores import mean_iou
from densevl.tuning.selection import Selection, rungs

VALUES: dict[str, tuple[str | None, ...]] = {
    "recipe": (None, "a", "b", "c"),
    "background": ("auto", "none", "0.3"),
    "templates": (None, "x", "y"),
    "plan": (None, "tiles"),
    "precision": ("float32", "int8"),
}
SPACE = Space("segment", VALUES)
PIXELS = 200


class World:
    """Pictures on which each candidate gets a known share right; remembers what it was asked."""

    def __init__(self, gains: dict[str, float], noise: float = 0.02, seconds: dict[str, float] | None = None) -> None:
        self.gains, self.noise, self.times = gains, noise, seconds or {}
        self.asked: list[tuple[Candidate, int]] = []

    def __call__(self, at: int, candidates: Sequence[Candidate]) -> dict[Candidate, Any]:
        found = {}
        for own in candidates:
            self.asked.append((own, at))
            rng = np.random.default_rng([at, *own.key.encode()])
            share = 0.5 + sum(self.gains.get(str(value), 0.0) for _, value in own.settings)
            right = rng.binomial(PIXELS, np.clip(share + rng.normal(0, self.noise, 2), 0.01, 0.99))
            seconds = 1 + sum(self.times.get(str(value), 0.0) for _, value in own.settings)
            found[own] = np.stack([right, np.full(2, PIXELS), np.full(2, PIXELS)]), seconds
        return found


def chooser(world: World, pictures: int = 16, **more: Any) -> Selection:
    return Selection(SPACE, Ledger(world, (pictures, 2), **more), mean_iou)


def test_what_is_better_is_chosen_setting_by_setting_and_holds_on_unseen_pictures() -> None:
    found = chooser(World({"b": 0.2, "0.3": 0.1, "y": 0.1}))
    steps, judged = found.choose(found.order), found.judge()
    assert steps[-1].chosen.changed(SPACE.default) == {"recipe": "b", "background": "0.3", "templates": "y"}
    assert judged.complete
    assert judged.gain.sure
    assert judged.gain.value > 0.2
    assert set(judged.choices) == {steps[-1].chosen}


def test_luck_among_many_candidates_is_not_taken_for_a_gain() -> None:
    """The best of many equal ones looks better on the pictures it was picked on, and not on others."""
    sure = 0
    for seed in range(8):
        found = chooser(World({}, noise=0.1 + seed / 1000))
        found.choose(found.order)
        sure += found.judge().gain.sure
    assert sure <= 2


def test_a_fold_is_never_seen_by_the_choice_that_is_judged_on_it() -> None:
    world = World({"b": 0.2})
    found = chooser(world)
    visible = found.order[:11]
    found.choose(visible)
    assert {at for _, at in world.asked} <= set(visible)


def test_every_picture_is_counted_once_for_a_candidate() -> None:
    world = World({"b": 0.1})
    found = chooser(world)
    found.choose(found.order)
    found.judge()
    assert len(world.asked) == len(set(world.asked))


def test_the_same_seed_chooses_the_same() -> None:
    first, second = chooser(World({}, noise=0.2)), chooser(World({}, noise=0.2))
    assert first.choose(first.order) == second.choose(second.order)
    assert first.judge() == second.judge()


@pytest.mark.parametrize(
    ("gains", "seconds", "kept"),
    [
        ({}, {"int8": -0.4}, "int8"),
        ({"int8": -0.1}, {"int8": -0.4}, "float32"),
        ({}, {"int8": 0.4}, "float32"),
        ({}, {"int8": -0.05}, "float32"),
    ],
    ids=["as good and faster", "faster and worse", "slower", "hardly faster"],
)
def test_a_cheaper_setting_is_taken_only_where_it_loses_nothing(gains, seconds, kept) -> None:
    class Same(World):
        """The same luck for all candidates, so that they differ by their gains alone."""

        def __call__(self, at: int, candidates: Sequence[Candidate]) -> dict[Candidate, Any]:
            own = super().__call__(at, [SPACE.default])[SPACE.default][0]
            made = super().__call__(at, candidates)
            lost = {one: round(PIXELS * -gains.get(str(one["precision"]), 0)) for one in candidates}
            return {one: (own - np.array([[lost[one]], [0], [0]]), made[one][1]) for one in candidates}

    found = chooser(Same(gains, seconds=seconds))
    chosen, looked = found.cheapen(SPACE.default)
    assert chosen["precision"] == kept
    assert len(looked) == 3  # the default, tiles and int8


def test_when_time_is_up_only_the_default_is_counted_and_nothing_is_claimed() -> None:
    now = [0.0]

    class Slow(World):
        def __call__(self, at: int, candidates: Sequence[Candidate]) -> dict[Candidate, Any]:
            now[0] += len(candidates)
            return super().__call__(at, candidates)

    found = chooser(Slow({"b": 0.3}), budget=40, clock=lambda: now[0])
    steps, judged = found.choose(found.order), found.judge()
    assert not steps[0].complete
    assert not judged.complete
    assert found.ledger.has(SPACE.default, found.order)
    assert now[0] < 120


@pytest.mark.parametrize(
    ("images", "candidates", "want"), [(40, 30, [4, 8, 16, 32, 40]), (40, 3, [40]), (5, 30, [4, 5]), (3, 30, [3])]
)
def test_candidates_are_looked_at_on_ever_more_pictures(images, candidates, want) -> None:
    assert rungs(images, candidates) == want


def test_a_second_run_goes_on_from_the_file_and_counts_nothing_anew(tmp_path) -> None:
    path, identity = tmp_path / "counted.npz", {"model": "mini"}
    first = chooser(World({"b": 0.2}), path=path, identity=identity)
    steps = first.choose(first.order)
    first.ledger.save()
    world = World({"b": 0.2})
    second = chooser(world, path=path, identity=identity)
    assert second.choose(second.order) == steps
    assert not world.asked
    assert second.ledger.resumed
    assert second.ledger.seconds(SPACE.default) == first.ledger.seconds(SPACE.default)


def test_counts_of_something_else_and_damaged_ones_are_refused(tmp_path) -> None:
    path = tmp_path / "counted.npz"
    first = chooser(World({}), path=path, identity={"model": "mini"})
    first.ledger.ensure([SPACE.default], [0], must=True)
    first.ledger.save()
    with pytest.raises(EvaluationError, match=r"counts of something else \(model\): .*--fresh"):
        chooser(World({}), path=path, identity={"model": "photo"})
    with pytest.raises(EvaluationError, match="cannot be read: it is damaged"):
        chooser(World({}), pictures=9, path=path, identity={"model": "mini"})
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(EvaluationError, match="cannot be read: it is damaged"):
        chooser(World({}), path=path, identity={"model": "mini"})
