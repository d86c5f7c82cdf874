"""Does mini know its nouns on textures of a kind that it never saw? python -m tools.mini.unseen [--seeds N].

Every scene is drawn twice from one seed, so with the same drawings at the same places: on a named texture that training
showed with its nouns, and on a pattern of `tools.unseen_materials`. All figures are per cent.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from densevl.backbones.mini import Mini
from tools.mini.evaluate import Judge, Set
from tools.mini.metrics import confusion, mean_iou
from tools.mini.pairs import Content, drawn, measure
from tools.render.nouns import BENCHMARK_NOUNS
from tools.render.textures import UNNAMED, TextureBook
from tools.unseen_materials import PATTERNS

COLUMNS = ("seen", "unseen", "gap", "objects seen", "objects unseen")
"""mIoU on seen and on unseen textures, its difference, and the share of object pixels that get the right noun of 20."""


def evaluate(weights: Path | None, *, scenes: int, seed: int, recipe: str) -> dict[str, Any]:
    """Compare on `scenes` scenes of two and three objects, one pattern after the other.

    Returns:
        "rows": `COLUMNS` for all scenes and for those of every pattern.
    """
    model = Mini(weights)
    judge = Judge(model, model.protocol.crop or 96, scenes, seed)
    offset = judge.offset(recipe)
    maker, answers = judge.maker(Set(("twemoji",), held_out=False), 30), []
    seen = [Content(tuple(nouns), ground) for nouns, ground in (maker.choose(2 + i % 2) for i in range(scenes))]
    named = drawn(maker, seen, seed)
    unseen = []
    for number, content in enumerate(seen):
        make = list(PATTERNS.values())[number % len(PATTERNS)]
        maker.textures = TextureBook(judge.size, seed + number, free=make)
        unseen += drawn(maker, [replace(content, texture=UNNAMED)], seed, number)
    for some in (named, unseen):
        answers.append([part.reshape(scenes, -1) for part in judge.read(some, recipe, False)])
    groups = {"all": list(range(scenes))}
    groups |= {name: list(range(i, scenes, len(PATTERNS))) for i, name in enumerate(PATTERNS)}
    rows = {name: _compared(answers, rows, offset) for name, rows in groups.items()}
    return {"seed": seed, "scenes": scenes, "recipe": recipe, "offset": offset, "rows": rows}


def _compared(answers: list[list[np.ndarray]], rows: list[int], offset: float) -> dict[str, float]:
    scores, objects = [], []
    for truth, noun, lead in ([part[rows] for part in answer] for answer in answers):
        scores.append(mean_iou(confusion(truth, np.where(lead > offset, noun, 0), BENCHMARK_NOUNS + 1)))
        objects.append(100 * float((noun == truth)[truth > 0].mean()))
    return dict(zip(COLUMNS, (*scores, scores[0] - scores[1], *objects), strict=True))


def markdown(results: list[dict[str, Any]]) -> str:
    """The results as a table."""
    lines = [f"{results[0]['recipe']}, {results[0]['scenes']} scenes a set, twemoji.", ""]
    lines += [f"| unseen texture | seed | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name in results[0]["rows"]:
        for result in results:
            cells = " | ".join(f"{result['rows'][name][column]:.1f}" for column in COLUMNS)
            lines.append(f"| {name} | {result['seed']} | {cells} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    measure(__doc__, evaluate, markdown)
