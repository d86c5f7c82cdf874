"""A quick measure: value-only mIoU and image top-1 of the averaged weights in training styles and a held-out one."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F

from tools.mini.data import normalized
from tools.mini.metrics import confusion, mean_iou
from tools.mini.model import PATCH, Learner
from tools.mini.prompts import benchmark_names
from tools.render.art import TRAIN_STYLES
from tools.render.nouns import BENCHMARK_NOUNS, with_article
from tools.render.scenes import Scene, SceneMaker
from tools.render.textures import all_textures

if TYPE_CHECKING:
    from tools.mini.run import Run

SCENES = 60
SINGLES = 100
SEED = 777
STYLES = {"train": TRAIN_STYLES, "held": ("twemoji",)}


class Probe:
    """Measures a `Run`; the scenes are made at the first call."""

    def __init__(self, nouns: int) -> None:
        self.classes = min(nouns, BENCHMARK_NOUNS)

    @torch.no_grad()
    def __call__(self, run: Run) -> dict[str, float]:
        """Return mIoU (with background, no threshold) and top-1 in per cent, for each kind of style."""
        learner = Learner(run.config, run.tokenizer.rows)
        learner.load_state_dict(run.ema)
        names = benchmark_names()[: self.classes]
        prompts = [*names, *(f"a photo of {with_article(name)}" for name in names)]
        nouns_CE = _texts(learner, run, prompts).unflatten(0, (2, -1)).mean(0)
        places_CE = _texts(learner, run, [texture.name for texture in all_textures()])
        result = {}
        for kind, styles in STYLES.items():
            scenes, singles = _scenes(run.config.image, self.classes, styles)
            result[f"{kind}_miou"] = self._miou(learner, scenes, nouns_CE, places_CE)
            cls = F.normalize(learner.encode_images(_pixels(singles))[0], dim=-1)
            truth = torch.tensor([scene.nouns[0] for scene in singles])
            result[f"{kind}_top1"] = float(100 * ((cls @ nouns_CE.T).argmax(1) == truth).float().mean())
        return {key: round(value, 1) for key, value in result.items()}

    def _miou(self, learner: Learner, scenes: list[Scene], nouns_CE: torch.Tensor, places_CE: torch.Tensor) -> float:
        side = learner.clip.visual.image_size[0] // PATCH
        patches = F.normalize(learner.encode_images(_pixels(scenes))[1], dim=-1)
        scores = torch.cat([(patches @ places_CE.T).amax(-1, keepdim=True), patches @ nouns_CE.T], dim=-1)
        maps = scores.transpose(1, 2).unflatten(2, (side, side))
        found = F.interpolate(maps, scale_factor=PATCH, mode="bilinear", align_corners=False).argmax(1).numpy()
        truth = np.stack([scene.objects for scene in scenes]) + 1
        return mean_iou(confusion(truth, found, self.classes + 1))


def _texts(learner: Learner, run: Run, texts: list[str]) -> torch.Tensor:
    return learner.encode_tokens(run.tokenizer(texts))


def _pixels(scenes: list[Scene]) -> torch.Tensor:
    return normalized(np.stack([scene.image for scene in scenes]))


@cache
def _scenes(size: int, nouns: int, styles: tuple[str, ...]) -> tuple[list[Scene], list[Scene]]:
    maker = SceneMaker(size, styles=styles, nouns=range(nouns), seed=SEED, held_out=None, objects=(2, 3), augment=False)
    return [maker.scene() for _ in range(SCENES)], [maker.single(i % nouns) for i in range(SINGLES)]
