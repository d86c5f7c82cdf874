"""Does mini know pairs that it never saw? python -m tools.mini.pairs [--seeds N] [--json FILE] [--markdown FILE].

A hash of two names decides which pairs (noun and noun, noun and texture) are held out, so scenes with one contain some
nouns and textures more often than others. Here every such scene has a twin with as many objects, drawn from the same
seed, that shows no held-out pair; over the set, the twins contain exactly the same nouns and textures, dealt again.

Each other value of the hash stands for as many pairs, which training did see. The gap between their sets is the effect
of the choice of pairs alone: a pair may be hard because it looks alike, not because it is new. All figures are per
cent.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from densevl.backbones.mini import Mini
from densevl.errors import DensevlError
from tools.mini.evaluate import SEED, Judge, Set
from tools.mini.metrics import confusion, iou_of_classes, mean_iou
from tools.mini.prompts import benchmark_names
from tools.render.nouns import BENCHMARK_NOUNS, HASHES, HELD_OUT, all_nouns, pair_hash
from tools.render.scenes import Scene, SceneMaker
from tools.render.textures import all_textures

KINDS = ("noun and noun", "noun on texture")
"""The kinds of pairs in a scene."""
COLUMNS = ("pairs", "twins", "gap", "objects of the pair", "same nouns in twins", "objects beside")
"""mIoU of both sets and its difference; then the share of pixels that get the right noun of 20."""
SWAPS = 200_000


@dataclass(frozen=True)
class Content:
    """Contents of a scene: indices of different nouns, and of the texture."""

    nouns: tuple[int, ...]
    texture: int

    def hashes(self) -> tuple[list[int], list[int]]:
        """Return the hash of every pair of nouns, and of every noun with the texture: one list for each of `KINDS`."""
        names, ground = [all_nouns()[n].name for n in self.nouns], all_textures()[self.texture].name
        inner = [pair_hash(a, b) for i, a in enumerate(names) for b in names[:i]]
        return inner, [pair_hash(name, ground) for name in names]

    def shows(self, values: set[int]) -> int:
        """Return how many of its pairs have one of these hashes."""
        inner, outer = self.hashes()
        return sum(value in values for value in inner + outer)

    def members(self, value: int) -> set[int]:
        """Return the nouns that belong to a pair of this hash."""
        alone = (replace(self, nouns=(noun,)) for noun in self.nouns)
        found = {content.nouns[0] for content in alone if content.shows({value})}
        for i, noun in enumerate(self.nouns):
            for other in self.nouns[:i]:
                if replace(self, nouns=(noun, other)).hashes()[0] == [value]:
                    found |= {noun, other}
        return found


def draw(count: int, value: int, rng: np.random.Generator) -> list[Content]:
    """Scenes that each show a pair of this hash, of one kind only, and no held-out pair unless this is their hash.

    The kinds alternate in twos, two and three objects one by one.
    """
    found: list[Content] = []
    while len(found) < count:
        nouns = rng.choice(BENCHMARK_NOUNS, 2 + len(found) % 2, replace=False)
        content = Content(tuple(nouns.tolist()), int(rng.integers(len(all_textures()))))
        wanted, unwanted = content.hashes()[:: 1 - 2 * kind_of(len(found))]
        if value in wanted and value not in unwanted and (value == HELD_OUT or not content.shows({HELD_OUT})):
            found.append(content)
    return found


def kind_of(position: int) -> int:
    """Index into `KINDS` of a scene of `draw` by its position."""
    return position // 2 % 2


def twins(contents: list[Content], avoided: set[int], rng: np.random.Generator) -> list[Content]:
    """Deal the nouns and the textures of scenes again so that no scene shows a pair with one of these hashes.

    Scenes exchange only with scenes of their kind, so each kind keeps its nouns and textures.

    Raises:
        DensevlError: If no such deal was found.
    """
    dealt = list(contents)
    kinds = [[i for i in range(len(dealt)) if kind_of(i) == kind] for kind in range(len(KINDS))]
    for _ in range(SWAPS):
        bad = [i for i, content in enumerate(dealt) if content.shows(avoided)]
        if not bad:
            return dealt
        one = int(rng.choice(bad))
        other = int(rng.choice(kinds[kind_of(one)]))
        before, after = (dealt[one], dealt[other]), _exchanged(dealt[one], dealt[other], rng)
        if one != other and _cost(after, avoided) <= _cost(before, avoided):
            dealt[one], dealt[other] = after
    raise DensevlError(f"no deal without the pairs of {sorted(avoided)} was found: ask for more scenes")


def _exchanged(one: Content, other: Content, rng: np.random.Generator) -> tuple[Content, Content]:
    """Exchange a random noun, or the texture."""
    if rng.random() < 1 / 3:
        return replace(one, texture=other.texture), replace(other, texture=one.texture)
    i, j = int(rng.integers(len(one.nouns))), int(rng.integers(len(other.nouns)))
    first = (*one.nouns[:i], other.nouns[j], *one.nouns[i + 1 :])
    second = (*other.nouns[:j], one.nouns[i], *other.nouns[j + 1 :])
    return replace(one, nouns=first), replace(other, nouns=second)


def _cost(contents: tuple[Content, Content], avoided: set[int]) -> float:
    if any(len(set(content.nouns)) < len(content.nouns) for content in contents):
        return np.inf
    return sum(content.shows(avoided) for content in contents)


def drawn(maker: SceneMaker, contents: list[Content], seed: int, first: int = 0) -> list[Scene]:
    """Draw each scene from its number, so that a twin has the sizes, turns and corners of its scene."""
    scenes = []
    for number, content in enumerate(contents, first):
        maker.rng = np.random.default_rng([seed, number])
        scenes.append(maker.of(content.nouns, content.texture))
    return scenes


@dataclass(frozen=True)
class Answers:
    """A model's answers about scenes: for every scene its content, and by pixel the truth, the label and the noun."""

    contents: list[Content]
    truth: np.ndarray  # (scenes, pixels), 0 background
    label: np.ndarray
    noun: np.ndarray  # as if no pixel were background

    def counts(self, rows: list[int]) -> np.ndarray:
        """Return the confusion of some scenes."""
        return confusion(self.truth[rows], self.label[rows], BENCHMARK_NOUNS + 1)

    def right(self, row: int, noun: int) -> float:
        """Return the share of an object's pixels that get its noun, of 20."""
        return float((self.noun[row][self.truth[row] == noun + 1] == noun + 1).mean())


def compare(judge: Judge, recipe: str, offset: float, value: int) -> dict[str, Any]:
    """Scenes with pairs of one hash against their twins: `COLUMNS` by kind, and by class IoU of pairs minus twins."""
    rng = np.random.default_rng([judge.seed, value])
    contents = draw(judge.count, value, rng)
    maker, sets = judge.maker(Set(("twemoji",)), 20), []
    for some in (contents, twins(contents, {HELD_OUT, value}, rng)):
        truth, noun, lead = judge.read(drawn(maker, some, judge.seed), recipe, False)
        label = np.where(lead > offset, noun, 0)
        sets.append(Answers(some, *(part.reshape(len(some), -1) for part in (truth, label, noun))))
    pairs, seen = sets
    rows = {"all": list(range(judge.count))}
    rows |= {name: [i for i in rows["all"] if kind_of(i) == kind] for kind, name in enumerate(KINDS)}
    result: dict[str, Any] = {}
    for name, some in rows.items():
        both = mean_iou(pairs.counts(some)), mean_iou(seen.counts(some))
        result[name] = dict(zip(COLUMNS, (*both, both[1] - both[0], *_objects(pairs, seen, some, value)), strict=True))
    change = iou_of_classes(pairs.counts(rows["all"])) - iou_of_classes(seen.counts(rows["all"]))
    names = ("background", *benchmark_names())
    result["classes"] = {name: float(c) for name, c in zip(names, change, strict=True) if np.isfinite(c)}
    return result


def _objects(pairs: Answers, seen: Answers, rows: list[int], value: int) -> tuple[float, float, float]:
    """Pixels named right: of the objects of a pair, of the same nouns in the twins, of the other objects beside."""
    elsewhere: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        for noun in seen.contents[row].nouns:
            elsewhere[noun].append(seen.right(row, noun))
    inside, same, beside = [], [], []
    for row in rows:
        members = pairs.contents[row].members(value)
        inside += [pairs.right(row, noun) for noun in members]
        same += [float(np.mean(elsewhere[noun])) for noun in members]
        beside += [pairs.right(row, noun) for noun in pairs.contents[row].nouns if noun not in members]
    return tuple(100 * float(np.mean(values)) for values in (inside, same, beside))


def evaluate(weights: Path | None, *, scenes: int, seed: int, recipe: str) -> dict[str, Any]:
    """Compare every value of the hash; "held out" is that of the held-out pairs, "others" are the rest."""
    model = Mini(weights)
    judge = Judge(model, model.protocol.crop or 96, scenes, seed)
    offset = judge.offset(recipe)
    others = [value for value in range(HASHES) if value != HELD_OUT]
    return {
        "seed": seed,
        "scenes": scenes,
        "recipe": recipe,
        "offset": offset,
        "held out": compare(judge, recipe, offset, HELD_OUT),
        "others": [compare(judge, recipe, offset, value) for value in others],
    }


def markdown(results: list[dict[str, Any]]) -> str:
    """Format the results as tables: both gaps by kind of pair and seed, and the classes that lose or gain most."""
    first = results[0]
    lines = [f"{first['recipe']}, {first['scenes']} scenes a set, twemoji.", ""]
    lines += [f"| pair | seed | {' | '.join(COLUMNS)} | gap of the others: mean | least | most |"]
    lines += ["|---" * (len(COLUMNS) + 5) + "|"]
    for name in ("all", *KINDS):
        for result in results:
            gaps = [other[name]["gap"] for other in result["others"]]
            cells = [result["held out"][name][c] for c in COLUMNS] + [float(np.mean(gaps)), min(gaps), max(gaps)]
            lines.append(f"| {name} | {result['seed']} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    lines += ["", f"| class | {' | '.join('seed ' + str(r['seed']) for r in results)} |"]
    lines += ["|---" * (len(results) + 1) + "|"]
    changes = [result["held out"]["classes"] for result in results]
    known = [name for name in changes[0] if all(name in change for change in changes)]
    for name in sorted(known, key=lambda n: sum(change[n] for change in changes)):
        lines.append(f"| {name} | {' | '.join(f'{change[name]:+.1f}' for change in changes)} |")
    return "\n".join([*lines, ""])


def measure(
    description: str, evaluate: Callable[..., dict[str, Any]], markdown: Callable[[list[dict[str, Any]]], str]
) -> None:
    """Run the command line of a tool that measures mini on drawn scenes, once per seed, and print a table."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="a file of tools.mini.export; default: the shipped one")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1, help="repeat with so many seeds, to show the noise")
    parser.add_argument("--recipe", default="maskclip_value")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    results = [
        evaluate(given.weights, scenes=given.scenes, seed=SEED + 1000 * i, recipe=given.recipe)
        for i in range(given.seeds)
    ]
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = markdown(results)
    if given.markdown:
        given.markdown.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    measure(__doc__, evaluate, markdown)
