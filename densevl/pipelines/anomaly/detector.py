"""`AnomalyDetector`: from an image to an anomaly map, by words alone or against a few normal images."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densevl import __version__, digest
from densevl.anomaly import storage
from densevl.anomaly.fusing import Spread
from densevl.anomaly.maps import threshold
from densevl.anomaly.memory.foreground import shows_object
from densevl.anomaly.memory.nearest import NearestMemory
from densevl.anomaly.memory.remembering import remember
from densevl.anomaly.result import AnomalyResult, Thresholds
from densevl.anomaly.scorer import Looked, Scorer
from densevl.anomaly.scoring import Scoring, get_scoring
from densevl.anomaly.sizes import augmented, fit_size, shrink, varied
from densevl.anomaly.states import THING, States
from densevl.anomaly.trained.adapters import Adapters
from densevl.backbones import Backbone
from densevl.errors import ImageError, ModelError, OptionError, RecipeError
from densevl.files import target_of
from densevl.fitted import identity, require_same
from densevl.images import read_image
from densevl.images.depth import used_bits
from densevl.images.notes import collected
from densevl.pipelines.anomaly.setup import (
    as_proxy,
    dense_recipe,
    each_image,
    fed_side,
    fitting_adapters,
    tile_side,
)
from densevl.pipelines.many import OnError, batch_size, many, source, with_warnings
from densevl.pipelines.settings import checked, load
from densevl.recipes.tower import Tower
from densevl.weights import require_finite

LEFT_OUT = 32  # normal images scored against the others, to estimate the spread of normal scores
WINDOWS = 4  # work per image relative to a plain pass, with windows and comparison with a memory
Batch = tuple[list[str | None], list[np.ndarray], torch.Tensor]
"""Sources, uint8 RGB images, and the pixels (B, 3, H, W) fed to the model."""


class AnomalyDetector:
    """Anomaly detection with one model and one scoring. Call it with an image.

    Examples:
        >>> detect = AnomalyDetector("mini", item="tile")
        >>> detect("tile.png").map                      # by words alone
        >>> detect.fit("normal/").calibrate(fpr=0.01)   # against normal images, with a threshold
        >>> detect("tile.png").is_anomalous
    """

    @checked
    def __init__(
        self,
        model: str | Backbone = "auto",
        scoring: str | Scoring = "winclip",
        *,
        item: str = THING,
        options: Mapping[str, Any] | None = None,
        weights: str | Path | None = None,
        states: States | str | Path | Mapping[str, Any] | torch.Tensor | None = None,
        size: int | tuple[int, int] | None = None,
        tile: int | None = None,
        proxy: Any = None,
        adapters: Adapters | str | Path | None = None,
        device: str | None = None,
        precision: str | None = None,
    ) -> None:
        """Load the model.

        Args:
            model: a name for `load_backbone`, or a loaded `Backbone`.
            scoring: "winclip", "dense", "streams", "dino", "patchcore", "adaptclip", or a `Scoring`.
            item: what the images show, as a singular noun: "tile", "metal nut".
            options: fields of the scoring to change, such as {"windows": "shared", "scales": (2, 3, 4)}.
            weights: a checkpoint file, if `model` names an architecture or config.
            states: words for normal and damaged, or two vectors in their place (2, E); None takes the default words,
                see `States.parse`.
            size: the short side in pixels to resize to, keeping the aspect ratio; both sides are rounded to whole
                patches. None takes the training size of the model. A pair sets height and width.
            tile: images fed larger than this many pixels go through the model in overlapping squares of this side, to
                find small damage on large images; use the training size of the model. None takes images whole.
            proxy: a `Proxy`, or its name for `load_proxy`, whose features are remembered instead of the model's.
            adapters: adapters trained by `train_adapters` for this backbone, or their file, for scoring "adaptclip".
            device: "cpu" or "cuda"; None chooses.
            precision: of the image tower's linear layers, as for `Segmenter`.

        Raises:
            ModelError, WeightsError, MissingExtraError: If the model cannot be loaded, or cannot use words.
            RecipeError: If the scoring is unknown or impossible.
            OptionError: If a setting has a value it does not accept.
        """
        self.scoring = get_scoring(scoring, **(options or {}))
        self.states, self.item = States.parse(states), item
        self.states.expand(item)  # bad words fail before the model loads
        self.backbone = load(model, weights, device, precision)
        self.states.require_width(self.backbone.embed_dim)
        self.proxy = as_proxy(proxy, str(self.backbone.device))
        tower: Tower | None = getattr(self.backbone, "tower", None)
        if tower is None and (self.scoring.is_textual or "windows" in self.scoring.memory):
            raise ModelError(
                f"model '{self.backbone.name}' is not a CLIP, so it cannot score words or windows; take a CLIP model "
                "such as 'mini' or ViT-B-16-plus-240/laion400m_e32, or scoring='dino' with normal images"
            )
        if self.proxy is not None and self.scoring.text == "adapters":
            raise RecipeError("adapters were trained on the model's own patches; leave the proxy out")
        if self.proxy is not None and "patch" not in self.scoring.memory:
            raise RecipeError(f"scoring '{self.scoring.name}' remembers no patches, so it does not use a proxy")
        trained = fitting_adapters(adapters, self.backbone, self.scoring)
        if trained is not None:  # the query adapter reads the blocks it was trained on
            plain = {"stage": "block", "around": 1, "joined": False, "metric": "cosine"}
            self.scoring = get_scoring(self.scoring, layers=trained.layers, **plain)
        self.size = fed_side(size, self.backbone, tower)
        self.tile = tile_side(tile, self.backbone, self.proxy, self.scoring)
        short = self.size if isinstance(self.size, int) else min(self.size)
        recipe = dense_recipe(self.backbone, self.scoring.recipe)
        self.scorer = Scorer(self.backbone, tower, self.proxy, self.scoring, short, self._words, recipe)
        self.scorer.adapters, self.scorer.tile = trained, self.tile
        self.thresholds: Thresholds | None = None
        self.references: tuple[str, ...] = ()
        self.memories: dict[str, NearestMemory] = {}
        self._normal: tuple[torch.Tensor, torch.Tensor] | None = None
        self._prototypes: torch.Tensor | None = None

    @property
    def is_fitted(self) -> bool:
        """Whether there is a memory of normal images."""
        return bool(self.memories)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know about the word for the item, if words are used, one sentence each."""
        named = self.scoring.is_textual and self.item != THING and not self.states.directions
        return self.backbone.doubts([self.item]) if named else ()

    def _words(self) -> torch.Tensor:
        return self.prototypes

    @property
    def prototypes(self) -> torch.Tensor:
        """Embeddings of the words: (2, E) float32 unit rows, normal and anomalous."""
        if self._prototypes is None:
            self._prototypes = self.states.prototypes(self.backbone.encode_text, self.item)
        return self._prototypes

    def __call__(self, image: Any) -> AnomalyResult:
        """Score one image: a path, PIL image, uint8 RGB (H, W, 3), ...; see `densevl.images.read_image`.

        Raises:
            ImageError: If the image is unreadable.
            ModelError: If the scoring needs normal images and has none.
        """
        return next(self.many([image]))

    def many(
        self, images: Any, *, batch: int | None = None, on_error: OnError | None = None
    ) -> Iterator[AnomalyResult]:
        """Score many images, in order. Consecutive images of equal size share a pass; a thread reads them ahead.

        No result depends on the other images of its pass.

        Args:
            images: a folder, a path, or an iterable of paths and images.
            batch: maximum number of images per pass; None takes what the device runs fastest.
            on_error: called with an image that cannot be read and the error, in its place; None raises there.

        Raises:
            ImageError: From the iterator, in the place of an unreadable image.
            ModelError: If the scoring needs normal images and has none.
        """
        self._require_evidence()
        said: deque[list[str]] = deque()  # notes about each image read; a pass has no result to hold them

        def read(image: Any) -> np.ndarray:
            with collected() as heard:
                rgb = read_image(image)
            said.append(heard)
            return rgb

        results = self._judged(self._batches(images, batch, on_error, read))
        return (with_warnings(result, said.popleft()) for result in results)

    def _judged(self, batches: Iterator[Batch]) -> Iterator[AnomalyResult]:
        for sources, rgbs, pixels in batches:
            started = time.perf_counter()
            looked = self.scorer.look(pixels, with_memory=self.is_fitted)
            grids, scores, parts = self.scorer.judge(looked, self.memories)
            require_finite(grids, f"anomaly maps of model '{self.scorer.backbone.name}'")
            seconds = (time.perf_counter() - started) / len(rgbs)
            for index, (path, rgb) in enumerate(zip(sources, rgbs, strict=True)):
                yield AnomalyResult(
                    score=float(scores[index]),
                    grid=grids[index].cpu().numpy(),
                    parts={name: values[index].cpu().numpy() for name, values in parts.items()},
                    image=rgb,
                    thresholds=self.thresholds,
                    meta=self._meta(path, seconds),
                    warnings=self.warnings,
                )

    def fit(self, normal: Any, *, batch: int | None = None) -> AnomalyDetector:
        """Remember normal images, and how they score against each other. Earlier memories and thresholds are dropped.

        Args:
            normal: a folder, a path, or an iterable of paths and images; at least one image.

        Raises:
            ImageError: If there are no images, or one is unreadable.
            RecipeError: If the scoring has no memory.
        """
        if not self.scoring.memory:
            raise RecipeError(f"scoring '{self.scoring.name}' has no memory; give it memory=('patch', 'windows')")
        seen: list[list[Looked]] = []  # the views of each image
        names: list[str] = []
        last = torch.empty(0)
        for sources, _, last in self._batches(normal, batch):
            views = [self.scorer.look(view, with_memory=True) for view in augmented(last, self.scoring.augment)]
            for index, path in enumerate(sources):
                names.append(path or f"array {len(names)}")
                seen.append([view.one(index) for view in views])
        if not names:
            raise ImageError("no normal images to fit: give at least one")
        looks = [views[0] for views in seen[:LEFT_OUT]]
        masks = [views[0].object for views in seen if views[0].object is not None]
        self.scorer.masked = bool(masks) and all(bool(shows_object(mask)) for mask in masks)
        self.memories = remember(seen, self.scoring, self.scorer.masked)
        self.references, self.thresholds = tuple(names), None
        if len(names) == 1:  # a single reference is compared with varied copies of itself
            plain = remember([looks], self.scoring, self.scorer.masked)
            looks = [
                self.scorer.look(view, with_memory=True)
                for view in varied(last, self.backbone.mean, self.backbone.std, self.backbone.patch_size)
            ]
            self._learn_spread([(look, plain) for look in looks])
        else:
            kept = [{level: m.without(index) for level, m in self.memories.items()} for index in range(len(looks))]
            self._learn_spread([pair for pair in zip(looks, kept, strict=True) if all(map(len, pair[1].values()))])
        return self

    def calibrate(self, fpr: float = 0.01, images: Any = None, *, batch: int | None = None) -> AnomalyDetector:
        """Set thresholds that at most a share `fpr` of normal images, and of their pixels, is expected to exceed.

        Args:
            fpr: above 0, below 1. With n normal images the image threshold cannot be finer than 1 / (n + 1); below
                that it is their largest score.
            images: normal images that were not fitted, as for `fit`. None scores each fitted image (up to 32) by the
                others. A single one is scored by copies of itself (mirrored, shifted and relit), which is optimistic.

        Raises:
            OptionError: If `fpr` is impossible.
            ModelError: If there are no normal images.
        """
        if not 0 < fpr < 1:
            raise OptionError(f"fpr is {fpr}: it must be a share between 0 and 1, such as 0.01")
        if images is not None:
            results = list(self.many(images, batch=batch))
            if not results:
                raise ModelError("no normal images to calibrate on: give at least one")
            scores = torch.tensor([result.score for result in results])
            pixels = torch.cat([torch.from_numpy(result.grid).flatten() for result in results])
        elif self._normal is None:
            raise ModelError("no normal images to calibrate on: call fit(...) first, or give calibrate(images=...)")
        else:
            scores, pixels = self._normal
        self.thresholds = Thresholds(threshold(scores, fpr), threshold(pixels, fpr), fpr, len(scores))
        return self

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
        """Write the fitted detector as PATH.safetensors and PATH.json.

        Args:
            overwrite: allow replacing files that densevl did not write.

        Raises:
            ModelError: If nothing was fitted or calibrated.
            OutputError: If a file was not written by densevl, or the files cannot be written.
        """
        if not self.is_fitted and self.thresholds is None:
            raise ModelError("nothing to save yet: call fit(...) or calibrate(images=...) first")
        facts = {
            "densevl": __version__,
            "model": self.backbone.name,
            "fingerprint": storage.fingerprint(self.backbone),
            "precision": self.backbone.precision,
            "proxy": self.proxy.name if self.proxy is not None else None,
            "proxy_fingerprint": storage.fingerprint(self.proxy) if self.proxy is not None else None,
            "item": self.item,
            "states": asdict(self.states),
            "size": self.size,
            "tile": self.tile,
            "masked": self.scorer.masked,
            "scoring": storage.scoring_facts(self.scoring),
            "spread": asdict(self.scorer.spread) if self.scorer.spread is not None else None,
            "thresholds": asdict(self.thresholds) if self.thresholds is not None else None,
            "references": list(self.references),
        }
        words = self.prototypes if self.scoring.text in ("windows", "dense") else None
        return storage.save(target_of(path), self.memories, words, facts, overwrite=overwrite)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: str | Backbone | None = None, *, proxy: Any = None, **options: Any
    ) -> AnomalyDetector:
        """Read a saved detector.

        Args:
            path: with or without an extension. model: None loads the one it was saved with, by name. proxy: the same.
            options: `weights`, `device`, `precision` and `adapters`, as for the constructor.

        Raises:
            WeightsError: If files are damaged, or the backbone or proxy has other weights than when it was fitted.
            ModelError: If the model cannot be loaded.
        """
        memories, prototypes, facts = storage.read(path)
        with storage.SAVED.sense(path):
            scoring = storage.scoring_of(facts, path)
            size = facts["size"] if isinstance(facts["size"], int) else tuple(facts["size"])
            given = {"states": States.parse(facts["states"]), "size": size, "proxy": proxy or facts["proxy"]}
            given |= {"tile": facts["tile"], "precision": facts["precision"]}
            given |= {name: value for name, value in options.items() if value is not None}
            detector = cls(model or facts["model"], scoring, item=facts["item"], **given)
            require_same(detector.backbone, facts["fingerprint"], facts["model"], f"detector {path}")
            if detector.proxy is not None:
                require_same(detector.proxy, facts["proxy_fingerprint"], facts["proxy"], f"detector {path}")
            device = detector.backbone.device
            detector.memories = {level: memory.to(device) for level, memory in memories.items()}
            detector._prototypes = prototypes
            detector.scorer.masked = bool(facts.get("masked"))
            detector.references = tuple(facts["references"])
            if facts["spread"] is not None:
                detector.scorer.spread = Spread(*(tuple(facts["spread"][part]) for part in ("text", "memory")))
            if facts["thresholds"] is not None:
                detector.thresholds = Thresholds(**facts["thresholds"])
        return detector

    def facts(self) -> dict[str, Any]:
        """Return everything that affects a result besides the image, including fitted state, ready for JSON."""
        tensors = (
            (f"{level}.{name}", rows)
            for level, memory in sorted(self.memories.items())
            for name, rows in (("rows", memory.rows), ("owner", memory.owner), ("place", memory.place))
            if rows is not None
        )
        return {
            "densevl": __version__,
            "bits": used_bits(),
            "model": self.backbone.name,
            "reading": dict(self.backbone.reading),
            "weights": storage.fingerprint(self.backbone),
            "text_side": self.backbone.text_fingerprint,
            "precision": self.backbone.precision,
            "proxy": identity(self.proxy),
            "item": self.item,
            "states": asdict(self.states),
            "scoring": storage.scoring_facts(self.scoring),
            "adapters": identity(self.scorer.adapters),
            "size": self.size,
            "tile": self.tile,
            "masked": self.scorer.masked,
            "memory": digest.of_tensors(tensors) if self.memories else None,
            "spread": asdict(self.scorer.spread) if self.scorer.spread is not None else None,
            "thresholds": asdict(self.thresholds) if self.thresholds is not None else None,
        }

    def _learn_spread(self, normal: list[tuple[Looked, dict[str, NearestMemory]]]) -> None:
        """Score normal images, each against memories that do not contain it."""
        apart = [self.scorer.distance(look, memories) for look, memories in normal]
        texts = [look.text for look, _ in normal if look.text is not None]
        self.scorer.spread = Spread.of(texts, apart)
        found = [self.scorer.judge(*pair, distance) for pair, distance in zip(normal, apart, strict=True)]
        self._normal = None
        if found:
            self._normal = torch.cat([s.cpu() for _, s, _ in found]), torch.cat([g.flatten().cpu() for g, *_ in found])

    def _batches(
        self,
        images: Any,
        batch: int | None = None,
        on_error: OnError | None = None,
        read: Callable[[Any], np.ndarray] = read_image,
    ) -> Iterator[Batch]:
        """Yield sources, uint8 images and normalised pixels (B, 3, H, W), batching consecutive images of equal size."""

        def size(rgb: np.ndarray) -> tuple[int, int]:
            if isinstance(self.size, int):
                return fit_size(rgb.shape[0], rgb.shape[1], self.size, self.backbone.patch_size)
            return self.size

        def run(together: list[tuple[Any, np.ndarray]]) -> Iterator[Batch]:
            for fed, group in groupby(together, key=lambda one: size(one[1])):
                few = list(group)
                pixels = torch.stack([self.backbone.normalize(shrink(rgb, fed)) for _, rgb in few])
                yield [source(image) for image, _ in few], [rgb for _, rgb in few], pixels

        def share(rgb: np.ndarray) -> float:
            return 1 / batch_size(batch, self.backbone.device, WINDOWS * math.prod(size(rgb)))

        batch_size(batch, self.backbone.device, 1)  # a bad value fails at once
        return many(each_image(images), read, run, share=share, on_error=on_error)

    def _require_evidence(self) -> None:
        if not (self.is_fitted or self.scoring.is_textual):
            raise ModelError(
                f"scoring '{self.scoring.name}' compares with normal images, but none are fitted: call fit(...) first"
            )

    def _meta(self, source: str | None, seconds: float) -> dict[str, Any]:
        return {
            "densevl": __version__,
            "image": source,
            "model": self.backbone.name,
            "reading": dict(self.backbone.reading),
            "proxy": self.proxy.name if self.proxy is not None else None,
            "item": self.item if self.scoring.is_textual else None,
            "states": self.states.digest() if self.scoring.is_textual else None,
            "scoring": storage.scoring_facts(self.scoring),
            "size": self.size,
            "tile": self.tile,
            "references": len(self.references),
            "seconds": round(seconds, 4),
        }
