"""Measure few-shot heads on "mini" and rendered pictures: python -m tools.bench_fewshot [--seeds 3] [--json FILE].

Vocabularies: "known", the 20 nouns of the rendered benchmark, on which mini was trained; "new", 19 nouns that it never
saw, whose words mean nothing to it; both in Twemoji, a style outside the training; and "trained style", the known nouns
in a training style. Then real pictures for whole images, see `tools.fewshot_pictures`. Rendered examples and test
pictures differ in background, place, size, light and a slight turn, but a noun has one icon. A shot is one picture of
one object (image), one object in its true mask (region), or the tokens of a class in one scene (pixel). Image and
region: accuracy of names in per cent, without background. Pixel: mIoU of the nouns and the background, for which mini's
own words compete; "ground": the same, but the background has examples instead of words. In brackets: the spread over
choices of examples. "ms" is the CPU time of fitting the most shots on one thread. With `--without`, only every second
noun has examples (the most shots), and both halves are counted separately, with all nouns competing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from densevl.backbones import Backbone, load_backbone
from densevl.backbones.projected.projection import projection_of, with_projection
from densevl.devices import keep_memory
from densevl.evaluation.config import parse_change
from densevl.fewshot import HEADS, Head, build
from densevl.fewshot.prompts.head import PromptLearner
from densevl.fewshot.prompts.visual import Looking
from densevl.fewshot.pseudo import HOWS, pseudo_labels
from densevl.fewshot.words import as_text, class_rows
from densevl.pipelines.feeding import embed_images
from densevl.pipelines.fewshot.classifier import OWN
from densevl.pipelines.fewshot.examples import row_strings
from densevl.pipelines.fewshot.features import Features, ImageFeatures, PixelFeatures, RegionFeatures
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.segmentation.evidence import Evidence
from densevl.pipelines.segmentation.segmenter import Segmenter
from densevl.regions.fusion import ScoreSource, fuse
from densevl.results import UNLABELLED
from densevl.vocabulary import Background, LabelSet
from densevl.vocabulary.text_classifier import TextClassifier
from densevl.vocabulary.transforms.memory import Memory
from tools.fewshot_pictures import REAL
from tools.render.art import TRAIN_STYLES
from tools.render.nouns import all_nouns
from tools.render.scenes import Scene, SceneMaker

SIZE, SEED = 96, 280_000
VOCABULARIES = {
    "trained style": (range(20), TRAIN_STYLES[0]),
    "known": (range(20), "twemoji"),
    "new": (range(40, 59), "twemoji"),
}
SHOTS = (1, 2, 4, 8, 16)
SINGLES, SCENES, REAL_TESTS = 10, 40, 60  # test pictures: per noun, in all, per class
LEVELS = ("image", "region", "pixel", "ground")


@dataclass
class Pictures:
    """Pictures of one vocabulary: a pool of examples, and a test set."""

    names: list[str]
    single: tuple[list[Any], list[Any]]
    scenes: tuple[list[Scene], list[Scene]]
    first: int


def pictures_of(vocabulary: str, most: int) -> Pictures:
    """Return examples for up to `most` shots, and test pictures."""
    if vocabulary in REAL:
        names, *single = REAL[vocabulary](most, REAL_TESTS)
        return Pictures(names, tuple(single), ([], []), 0)  # type: ignore[arg-type]
    nouns, style = VOCABULARIES[vocabulary]
    names = [all_nouns()[noun].name for noun in nouns]
    maker = SceneMaker(
        SIZE, styles=(style,), nouns=list(nouns), seed=SEED, held_out=None, augment=False, objects=(2, 3)
    )
    single = tuple([maker.single(noun) for _ in range(count) for noun in nouns] for count in (most, SINGLES))
    pool: list[Scene] = []
    while min(sum(noun in scene.nouns for scene in pool) for noun in nouns) < most:
        pool.append(maker.scene())
    return Pictures(names, single, (pool, [maker.scene() for _ in range(SCENES)]), nouns[0])  # type: ignore[arg-type]


class Level:
    """One level on one vocabulary; all features are computed once."""

    def __init__(self, level: str, backbone: Backbone, encoder: Backbone, pictures: Pictures) -> None:
        self.level, self.names, self.first = level, pictures.names, pictures.first
        self.segmenter = Segmenter(backbone)
        self.dense, ground = level in ("pixel", "ground"), level == "ground"
        self.policy = self.segmenter.background if self.dense else Background()
        labels = LabelSet.parse(self.names)
        self.labels = labels
        self.text = class_rows(TextClassifier(backbone).encode(labels, self.policy), len(labels))
        self.classes = [*self.names, *[UNLABELLED] * ground]
        if ground:
            rest = F.normalize(self.text[len(labels) :].mean(dim=0, keepdim=True), dim=-1)
            self.text = torch.cat([self.text[: len(labels)], rest])
        self.features = self._features(backbone, encoder)
        pool, test = pictures.single if level == "image" else pictures.scenes
        examples = self._examples(pool)
        self.pictures = [image for images in examples.values() for image in images] if level == "image" else []
        shown = list(self.features.rows(examples))
        self.rows = {kind: torch.cat([one.features[kind] for one in shown]) for kind in self.features.scales}
        self.owner = torch.tensor([self.classes.index(name) for one in shown for name in one.owners])
        self.weights = torch.cat([one.weights for one in shown])
        image = torch.cat([torch.full((len(one.owners),), index) for index, one in enumerate(shown)])
        self.unit = image if self.dense else torch.arange(len(self.owner))
        if self.dense:
            self.test = [(scene, *self.features.embed(scene.image)) for scene in test]  # type: ignore[attr-defined]
        else:
            shown = self._examples(test)
            self.tests = [image for images in shown.values() for image in images] if level == "image" else []
            seen = list(self.features.rows(shown))
            self.queries = {kind: torch.cat([one.features[kind] for one in seen]) for kind in self.rows}
            self.truth = torch.tensor([self.names.index(name) for one in seen for name in one.owners])

    def _features(self, backbone: Backbone, encoder: Backbone) -> Features:
        if self.level == "image":
            return ImageFeatures(encoder)
        if self.dense:
            return PixelFeatures(self.segmenter, encoder)
        return RegionFeatures(RegionClassifier(encoder, None if encoder is backbone else "cls_mask", proposals=None))

    def _examples(self, scenes: Iterable[Scene]) -> Any:
        if self.level == "image":
            found: dict[str, list[np.ndarray]] = {}
            for scene in scenes:
                found.setdefault(self._name(scene.nouns[0]), []).append(scene.image)
            return found
        if self.level == "region":
            return [
                (
                    scene.image,
                    np.stack([scene.instances == index for index in range(len(scene.nouns))]),
                    [self._name(noun) for noun in scene.nouns],
                )
                for scene in scenes
            ]
        ground = len(self.names) if UNLABELLED in self.classes else -1
        maps = [(scene, self._map(scene)) for scene in scenes]
        return [(scene.image, np.where(found < 0, ground, found), self.classes) for scene, found in maps]

    def _name(self, noun: int) -> str:
        return self.names[noun - self.first]

    def _map(self, scene: Scene) -> np.ndarray:
        return np.where(scene.objects < 0, -1, scene.objects - self.first)

    def chosen(self, shots: int, seed: int, nouns: Iterable[int] | None = None) -> torch.Tensor:
        """Return the examples of `shots` shots of each noun."""
        order = torch.randperm(int(self.unit.max()) + 1, generator=torch.Generator().manual_seed(seed))
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        kept = []
        for noun in range(len(self.classes)) if nouns is None else nouns:
            own = (self.owner == noun).nonzero().flatten()
            first = place[self.unit[own]].unique()[:shots]
            kept.append(own[torch.isin(place[self.unit[own]], first)])
        return torch.cat(kept)

    def fit(self, head: str, projection: torch.Tensor, kept: torch.Tensor) -> dict[str, Callable[..., torch.Tensor]]:
        """Return logits by kind of feature."""
        head, *given = head.split()
        own: dict[str, Any] = {"projection": projection} if head == "prolip" else {}
        if head == "prompt":
            own = {"tower": self.segmenter.backbone, "templates": self.segmenter.templates}
        settings = {
            **own,
            **(OWN["pixel"].get(head, {}) if self.dense else {}),
            **{name: value for one in given for name, value in parse_change(one).items()},
        }
        level, shown = "pixel" if self.dense else "image", UNLABELLED in self.classes
        strings = row_strings(self.segmenter, level, self.labels, shown=shown) if head == "prompt" else None
        told: dict[str, Any] = {"weights": self.weights[kept], "strings": strings}
        if count := settings.get("views", 0):
            told["views"] = self.features.views([self.pictures[one] for one in kept.tolist()], count, 0)  # type: ignore[attr-defined]
        if settings.get("vision"):
            told["pixels"] = self.features.fed([self.pictures[one] for one in kept.tolist()])  # type: ignore[attr-defined]
        return {
            kind: self._judge(
                build(head, **settings).fit(
                    rows[kept], self.owner[kept], self.text, scale=self.features.scales[kind], **told
                )
            )
            for kind, rows in self.rows.items()
        }

    def _judge(self, head: Head) -> Callable[..., torch.Tensor]:
        """Return logits of features; a head with tokens in the image tower encodes the test pictures again."""
        if not isinstance(head, PromptLearner) or head.tokens is None:
            return head.logits
        look = Looking(self.segmenter.backbone, head.tokens)
        return lambda rows: head.logits(embed_images(look, self.tests))

    def words(self) -> dict[str, Callable[..., torch.Tensor]]:
        """Return logits of the words alone."""
        return {
            kind: lambda rows, scale=scale: scale * F.normalize(rows, dim=-1) @ self.text.mT
            for kind, scale in self.features.scales.items()
        }

    def right(self, heads: dict[str, Callable[..., torch.Tensor]]) -> torch.Tensor:
        """Return which test images or regions get the right name, bool."""
        found = [ScoreSource(heads[kind](rows).log_softmax(dim=1)) for kind, rows in self.queries.items()]
        logp = found[0].logp if len(found) == 1 else fuse(found)
        return logp.argmax(dim=1) == self.truth

    def miou(self, heads: dict[str, Callable[..., torch.Tensor]]) -> float:
        """Return the mean over the nouns and the background, in per cent."""
        count = len(self.names) + 1
        pairs = np.zeros((count, count), np.int64)
        scale = self.features.scales["pixel"]
        for scene, features, windows in self.test:
            evidence = Evidence(heads["pixel"](features)[None] / scale, windows, as_text(self.text, tuple(self.names)))
            labels = self.segmenter.decide(evidence, scene.image, self.labels, self.policy).labels
            index = (self._map(scene) + 1) * count + labels.astype(np.int64) + 1
            pairs += np.bincount(index.ravel(), minlength=count**2).reshape(count, count)
        both = pairs.diagonal()
        return 100 * float((both / np.maximum(1, pairs.sum(0) + pairs.sum(1) - both)).mean())

    def figure(self, heads: dict[str, Callable[..., torch.Tensor]]) -> float:
        """Return the level's own measure, in per cent."""
        return self.miou(heads) if self.dense else 100 * float(self.right(heads).float().mean())


def measure(level: Level, head: str, projection: torch.Tensor, seeds: int, counts: Sequence[int]) -> dict[str, float]:
    """Return the row of one head: the mean over seeds for each number of shots, and the time to fit."""
    row, times = {}, []
    for shots in counts:
        figures = []
        for seed in range(seeds):
            kept = level.chosen(shots, seed)
            started = time.process_time()
            heads = level.fit(head, projection, kept)
            if shots == counts[-1]:
                times.append(1000 * (time.process_time() - started))
            figures.append(level.figure(heads))
        row[str(shots)] = statistics.mean(figures)
        row[f"spread {shots}"] = max(figures) - min(figures)
    return row | {"ms": statistics.median(times)}


def without(level: Level, head: str, projection: torch.Tensor, seeds: int, counts: Sequence[int]) -> dict[str, float]:
    """Give every second noun examples; return the accuracy of those with and of those without."""
    given = range(0, len(level.names), 2)
    has = torch.isin(level.truth, torch.tensor(list(given)))
    rows = []
    for seed in range(seeds):
        right = level.right(level.fit(head, projection, level.chosen(counts[-1], seed, given))).float()
        rows.append([100 * float(right[has].mean()), 100 * float(right[~has].mean())])
    with_them, without_them = np.mean(rows, axis=0).tolist()
    return {"with": with_them, "without": without_them}


def guessed(level: Level, counts: Sequence[int]) -> dict[str, float]:
    """Without labels: accuracy of head "gda" on pseudo labels of each kind, and of words with a memory of the same
    pictures, captioned with their nouns. Whole images only."""
    (kind,), rows = level.rows, level.rows["image"]
    scale, found = level.features.scales[kind], {}
    for how in HOWS:
        labels = pseudo_labels(how, rows, level.text, scale=scale, count=counts[-1]).labels
        kept = labels >= 0
        head = build("gda").fit(rows[kept], labels[kept], level.text, scale=scale)
        found[f"{how}, then gda"] = level.figure({kind: head.logits})
    memory = Memory(rows, level.text[level.owner])
    for beta in (0.2, 0.5, 1.0):
        text = replace(memory, beta=beta).apply(level.text)
        found[f"memory of captions, beta {beta:g}"] = level.figure(
            {kind: lambda rows, text=text: scale * F.normalize(rows, dim=-1) @ text.mT}
        )
    return found


def _noise(row: dict[str, float], name: str) -> str:
    """Format a figure with the spread over the choices of examples."""
    return f" ({row[f'spread {name}']:.0f})" if f"spread {name}" in row else ""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="choices of examples")
    parser.add_argument("--heads", nargs="+", default=list(HEADS), help="such as gda, or with settings 'gda alpha=0.5'")
    parser.add_argument("--levels", nargs="+", default=list(LEVELS), choices=LEVELS)
    every = [*VOCABULARIES, *REAL]
    parser.add_argument("--vocabularies", nargs="+", default=every, choices=every)
    parser.add_argument("--shots", nargs="+", type=int, default=list(SHOTS), help="examples of each noun, ascending")
    parser.add_argument("--pool", type=int, help="of each noun to choose from; default the most shots")
    parser.add_argument("--without", action="store_true", help="examples of every second noun only")
    parser.add_argument("--unlabelled", action="store_true", help="pseudo labels and a memory, on images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if wrong := [head for head in given.heads if head.split()[0] not in HEADS]:
        parser.error(f"no head '{wrong[0]}'; known: {', '.join(HEADS)}")
    torch.set_num_threads(given.threads)
    keep_memory()
    backbone = load_backbone("mini")
    projection = projection_of(backbone)
    before = with_projection(backbone, torch.eye(len(projection)))
    result: dict[str, Any] = {}
    for vocabulary in given.vocabularies:
        pictures = pictures_of(vocabulary, given.pool or given.shots[-1])
        for level in given.levels:
            dense = level in ("pixel", "ground")
            if (given.without and dense) or ((given.unlabelled or vocabulary in REAL) and level != "image"):
                continue
            plain = Level(level, backbone, backbone, pictures)
            bare = Level(level, backbone, before, pictures) if "prolip" in given.heads else plain
            text = plain.figure(plain.words())
            if given.unlabelled:
                result[f"{vocabulary}, {level}"] = {"words alone": text, **guessed(plain, given.shots)}
                rows = result[f"{vocabulary}, {level}"].items()
                print(f"\n{vocabulary}, {level}\n\n| without labels | |\n|---|---|")
                print("\n".join(f"| {how} | {figure:.1f} |" for how, figure in rows), flush=True)
                continue
            columns = ["with", "without"] if given.without else [*map(str, given.shots), "ms"]
            if given.without:
                right, has = plain.right(plain.words()).float(), plain.truth % 2 == 0
                halves = [100 * float(right[part].mean()) for part in (has, ~has)]
                print(f"\n{vocabulary}, {level}\n\n| head | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
                print(f"| words alone | {halves[0]:.1f} | {halves[1]:.1f} |", flush=True)
                table: dict[str, Any] = {"words alone": dict(zip(columns, halves, strict=True))}
            else:
                print(f"\n{vocabulary}, {level}: words alone {text:.1f}\n")
                print(f"| head | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}", flush=True)
                table = {"words alone": text}
            for head in given.heads:
                judge = without if given.without else measure
                table[head] = judge(bare if head == "prolip" else plain, head, projection, given.seeds, given.shots)
                cells = [f"{table[head][name]:.1f}{_noise(table[head], name)}" for name in columns]
                print(f"| {head} | {' | '.join(cells)} |", flush=True)
            result[f"{vocabulary}, {level}"] = table
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
