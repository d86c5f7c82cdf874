"""`Concepts`: from a photo and words to a label map, with a model that judges each word independently.

Each string has its own probability at each place (`concepts.Judged.strength`), and a class has that of its best string.
There is no softmax: words do not compete, and adding one does not change the others. A pixel gets the class with the
highest probability (the first if equal), or nothing if that is below a threshold or a background word has more.
Shape letters: C classes, h/w the model's map, H/W the photo.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from densevl import __version__, fitted
from densevl.backbones import Backbone
from densevl.backbones.precision import AUTO
from densevl.concepts import ConceptModel, concept_kind, load_concepts
from densevl.errors import LabelError, OptionError
from densevl.images import read_image
from densevl.images.depth import used_bits
from densevl.pipelines import remarks
from densevl.pipelines.feeding import embed_images
from densevl.pipelines.many import OnError, hearing, one_by_one, source
from densevl.pipelines.segmentation.segmenter import BackgroundSpec, Labels
from densevl.pipelines.settings import load
from densevl.results import SegmentationResult
from densevl.vocabulary import NOTHING, Background, LabelSet
from densevl.vocabulary.background import FOREGROUND, SCENES, UNKNOWN
from densevl.vocabulary.parsing import short
from densevl.vocabulary.text_classifier import TextClassifier
from densevl.weights import require_finite

THRESHOLD = 0.5
"""The threshold of background "auto": a pixel below it gets no label."""
LEAST = 0.5
UPSAMPLED = 2**26  # elements of full-size maps held at once


@dataclass(frozen=True, eq=False)
class _Maps:
    """Probabilities (C, h, w) of a photo's classes and (1, h, w) of the background words; the photo's size (H, W)."""

    classes: torch.Tensor
    background: torch.Tensor
    size: tuple[int, int]

    def full(self, maps: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the maps at the photo's size, a few classes at a time."""
        step = max(1, UPSAMPLED // (self.size[0] * self.size[1]))
        for part in maps.split(step):
            yield F.interpolate(part[None].float(), size=self.size, mode="bilinear", align_corners=False)[0].clamp_(
                0, 1
            )

    def scores(self) -> np.ndarray:
        """Return the classes' probabilities (C, H, W)."""
        return torch.cat([part.cpu() for part in self.full(self.classes)]).numpy()

    def chances(self, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        """Return (C + 1, h, w) at some rows and columns. The last row is for background words or no class."""
        y, x = torch.from_numpy(rows)[:, None], torch.from_numpy(cols)
        found = torch.cat([part[:, y, x].cpu() for part in self.full(self.classes)])
        other = torch.cat([part[:, y, x].cpu() for part in self.full(self.background)])
        return torch.cat([found, torch.maximum(other, 1 - found.amax(dim=0, keepdim=True))]).numpy()


class Concepts:
    """Segmentation by SAM 3 or CLIPSeg, called like a `Segmenter`.

    Examples:
        >>> segment = Concepts("local-dir:sam3", background=0.4)
        >>> segment("cat.jpg", ["cat", "dog | puppy"]).save("out/cat.png")
    """

    def __init__(
        self,
        model: str | Path | ConceptModel,
        *,
        instance_threshold: float = LEAST,
        background: BackgroundSpec = "auto",
        prefilter: int | None = None,
        prefilter_model: str | Backbone = "auto",
        compat: bool = False,
        device: str | None = None,
    ) -> None:
        """Load the model.

        Args:
            model: a name or path for `concepts.load_concepts`, or a loaded model.
            instance_threshold: drop instances less likely than this. SegEarth-OV3 uses 0.2 to 0.5, by benchmark.
            background: a probability below which a pixel gets no label ("auto" is 0.5), words that compete, "1-max",
                or "none".
            prefilter: judge only this many classes per photo: those whose words are nearest to the whole picture in
                `prefilter_model`, a CLIP. The others are listed in `meta["unasked"]` and get no pixel. It is meant for
                large vocabularies, since the decoder runs for each word. None judges all.
            compat: count presence twice for instances, as SegEarth-OV3's code does.

        Raises:
            ModelError, WeightsError, MissingExtraError: If the model cannot be loaded.
            OptionError: If a value is impossible.
        """
        number = isinstance(instance_threshold, int | float) and not isinstance(instance_threshold, bool)
        if not number or not 0 <= instance_threshold < 1:
            raise OptionError(f"instance_threshold is {instance_threshold!r}; it must be a probability from 0, below 1")
        if prefilter is not None and (type(prefilter) is not int or prefilter < 1):
            raise OptionError(f"prefilter is {prefilter!r}; it must be a number of classes, at least 1")
        if prefilter is None and prefilter_model != "auto":
            raise OptionError("prefilter_model chooses the classes of a prefilter; give prefilter too, such as 20")
        if not isinstance(compat, bool):
            raise OptionError(f"compat is {compat!r}; it must be True or False")
        self.background = self._policy(background)
        if not isinstance(model, str | Path | ConceptModel):
            raise OptionError(f"model is a {type(model).__name__}; it must be a name or folder, or a ConceptModel")
        self.backbone = model if isinstance(model, ConceptModel) else load_concepts(model, device)
        self.instance_threshold, self.compat, self.prefilter = float(instance_threshold), compat, prefilter
        self._filter = None if prefilter is None else load(prefilter_model, None, device)
        self._texts = None if self._filter is None else TextClassifier(self._filter)

    @hearing
    def __call__(self, image: Any, labels: Labels, *, background: BackgroundSpec = "auto") -> SegmentationResult:
        """Segment one image; see `Segmenter.__call__`.

        Returns:
            Labels (H, W) int16, -1 for nothing. The confidence is the probability of the label; for nothing it is that
            of the background word, or what the best class leaves. Scores are independent probabilities per class.

        Raises:
            LabelError: If the labels are unusable, or contain images or vectors.
            ImageError: If the image is unreadable.
            OptionError: If the background is unusable.
        """
        label_set, policy = LabelSet.parse(labels), self.policy(background)
        return self._run(image, read_image(image), label_set, policy)

    def many(
        self,
        images: Iterable[Any],
        labels: Labels,
        *,
        background: BackgroundSpec = "auto",
        on_error: OnError | None = None,
    ) -> Iterator[SegmentationResult]:
        """Segment many images, in order; see `Segmenter.many`."""
        label_set, policy = LabelSet.parse(labels), self.policy(background)
        return one_by_one(
            images, read_image, lambda image, rgb: self._run(image, rgb, label_set, policy), on_error=on_error
        )

    def policy(self, background: BackgroundSpec = "auto") -> Background:
        """Return the background policy of a call: the segmenter's own for "auto"."""
        same = isinstance(background, str) and background == "auto"
        return self.background if same else self._policy(background)

    def warnings(self, labels: LabelSet) -> tuple[str, ...]:
        """Return what the user should know about these words, one sentence each."""
        cut = self.backbone.cut([*labels.words, *labels.negatives])
        notes = tuple(
            f"'{short(word)}' is longer than the {self.backbone.most_tokens} tokens that model '{self.backbone.name}' "
            "reads: the end is ignored"
            for word in cut
        )
        return (*labels.warnings, *self.backbone.guesses, *notes)

    def facts(self) -> dict[str, Any]:
        """Return everything that affects a result besides the photo and the labels, ready for JSON."""
        model = self.backbone
        return {
            "densevl": __version__,
            "model": model.name,
            "kind": model.kind,
            "weights": fitted.fingerprint(model),
            "pixels": [model.side, *model.mean, *model.std],
            "instance_threshold": self.instance_threshold,
            "compat": self.compat,
            "precision": "float32",
            "prefilter": self.prefilter,
            "prefilter_model": None if self._filter is None else fitted.fingerprint(self._filter),
            "background": asdict(self.background),
            "recipe": None,
            "proposals": None,
            "bits": used_bits(),
        }

    def _policy(self, background: BackgroundSpec) -> Background:
        if isinstance(background, str) and background == "auto":
            return Background(threshold=THRESHOLD)
        found = Background.parse(background)
        others = {UNKNOWN: found.unknown, FOREGROUND: found.foreground, SCENES: found.scenes}
        if odd := next((name for name, asked in others.items() if asked), None):
            raise OptionError(
                f"a concept model has no notion of '{odd}'; give a probability, such as background=0.4, or words"
            )
        return replace(found, threshold=max(found.threshold, 0.5), rest=False) if found.rest else found

    @torch.no_grad()
    def maps(self, rgb: np.ndarray, labels: LabelSet, policy: Background) -> _Maps:
        """Compute the probability of each class: the maximum over its strings, updated as each is judged.

        Raises:
            LabelError: If labels are not words.
        """
        if len(labels.words) < len(labels.queries):
            raise LabelError("a concept model takes only words; leave images and vectors out of the labels")
        known = {word.casefold() for word in labels.words}
        others = [word for word in (*labels.negatives, *policy.words) if word.casefold() not in known]
        likely = self.likely(rgb, labels)
        queries = [pair for pair in zip(labels.words, labels.query_classes, strict=True) if pair[1] in likely]
        owner = [*(index for _, index in queries), *[NOTHING] * len(others)]
        best: torch.Tensor | None = None
        at = 0
        for judged in self.backbone.judgements(rgb, [*(word for word, _ in queries), *others]):
            strength = judged.strength(self.instance_threshold, compat=self.compat)
            if best is None:
                best = strength.new_zeros(len(labels) + 1, *strength.shape[1:])
            for row in strength:
                torch.maximum(best[owner[at]], row, out=best[owner[at]])  # NOTHING is -1, the last
                at += 1
        if best is None:
            raise LabelError("no labels to judge")
        require_finite(best, f"probabilities of model '{self.backbone.name}'")
        return _Maps(best[:-1], best[-1:], (rgb.shape[0], rgb.shape[1]))

    def likely(self, rgb: np.ndarray, labels: LabelSet) -> set[int]:
        """Return the classes to judge on a photo: all, or the `prefilter` ones nearest to the whole picture."""
        if self.prefilter is None or self._filter is None or self._texts is None or len(labels) <= self.prefilter:
            return set(range(len(labels)))
        text = self._texts.encode(labels, Background())
        picture = F.normalize(embed_images(self._filter, [rgb])[0], dim=0)
        near = (text.vectors @ picture.to(text.vectors)).tolist()
        best = [max(n for n, c in zip(near, text.classes.tolist(), strict=True) if c == k) for k in range(len(labels))]
        return set(sorted(range(len(labels)), key=lambda index: -best[index])[: self.prefilter])

    def decide(self, maps: _Maps, policy: Background) -> tuple[np.ndarray, np.ndarray]:
        """Return labels int16 (H, W) and confidence float32 (H, W)."""
        best = torch.full(maps.size, -1.0, device=maps.classes.device)
        labels = torch.zeros(maps.size, dtype=torch.int16, device=maps.classes.device)
        first = 0
        for part in maps.full(maps.classes):
            top, which = part.max(dim=0)
            labels = torch.where(top > best, (which + first).to(torch.int16), labels)  # the first stays if equal
            best, first = torch.maximum(best, top), first + len(part)
        other = torch.cat(list(maps.full(maps.background)))[0]
        beaten, weak = other > best, best < policy.threshold
        confidence = torch.where(weak, torch.maximum(other, 1 - best), best)
        confidence = torch.where(beaten, torch.maximum(other, confidence), confidence)
        return labels.masked_fill(beaten | weak, NOTHING).cpu().numpy(), confidence.cpu().numpy()

    def _run(self, image: Any, rgb: np.ndarray, labels: LabelSet, policy: Background) -> SegmentationResult:
        started = time.perf_counter()
        maps = self.maps(rgb, labels, policy)
        silent = (maps.classes == 0).flatten(1).all(dim=1).tolist() if self.prefilter else []
        unasked = [name for name, quiet in zip(labels.names, silent, strict=False) if quiet]
        found, confidence = self.decide(maps, policy)
        return SegmentationResult(
            labels=found,
            names=labels.names,
            confidence=confidence,
            image=rgb,
            meta={
                "versions": {"densevl": __version__, **{name: version(name) for name in ("torch", "transformers")}},
                "image": source(image),
                "model": self.backbone.name,
                "kind": self.backbone.kind,
                "instance_threshold": self.instance_threshold,
                "compat": self.compat,
                "precision": "float32",
                "unasked": unasked,
                "background": str(policy),
                "device": str(self.backbone.device),
                "seconds": round(time.perf_counter() - started, 3),
            },
            warnings=(*self.warnings(labels), *remarks.of_labels(found)),
            scores_fn=maps.scores,
            chances_fn=maps.chances,
        )


UNFIT = (
    *("weights", "recipe", "templates", "text", "presence", "protocol", "views", "proxy", "sam", "proposals"),
    *("refine", "upsampler", "bank", "decoder"),
)
"""Settings of `Segmenter` that do not apply to concept models."""
OWN = ("instance_threshold", "prefilter", "prefilter_model")
"""Settings of `Concepts` that do not apply to other models."""


def for_concepts(options: Mapping[str, Any]) -> bool:
    """Return whether settings are for `Concepts`: one of its own is set, or the model is a concept model."""
    return any(options.get(name) is not None for name in OWN) or bool(concept_kind(options.get("model")))


def concept_settings(options: dict[str, Any], unset: Sequence[Any] = (None, {}, (), "", "none")) -> dict[str, Any]:
    """Select the settings of `Concepts` from settings of `Segmenter`, as a command or an experiment has them.

    Raises:
        OptionError: If a setting is only for other models.
    """
    given = next((name for name in UNFIT if options.get(name) not in unset and not _is_plain(options[name])), None)
    odd = "precision" if options.get("precision") not in (None, "float32", AUTO) else given
    if odd is not None:
        raise OptionError(
            f"{odd} is for models that compare features with words, and a concept model judges each word on its own: "
            f"leave it out (--{odd.replace('_', '-')})"
        )
    model, own = options.get("model"), next((name for name in OWN if options.get(name) is not None), None)
    if own is not None and not concept_kind(model) and (model is None or "/" not in str(model)):
        raise OptionError(
            f"{own} is for concept models, such as facebook/sam3, and '{model}' is not one: leave it out "
            f"(--{own.replace('_', '-')})"
        )
    taken = {name: options[name] for name in ("model", "background", "compat", "device") if name in options}
    return taken | {name: options[name] for name in OWN if options.get(name) is not None}


def _is_plain(value: Any) -> bool:
    """Return whether text options have their defaults."""
    return type(value).__name__ == "TextOptions" and value == type(value)()
