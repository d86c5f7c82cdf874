"""`Learner`: how a `FewShot` comes to know classes: by examples, more of them, or images without labels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch

from densevl.errors import ModelError, OptionError
from densevl.fewshot import HEADS, Head, build
from densevl.fewshot.calibration import Calibration
from densevl.fewshot.heads.exemplars import Exemplars
from densevl.fewshot.heads.tipx import TipX
from densevl.fewshot.prompts.fitting import Progress
from densevl.fewshot.pseudo import COUNT
from densevl.fewshot.settings import require_known
from densevl.images import read_image
from densevl.pipelines.anomaly.setup import each_image
from densevl.pipelines.fewshot.captions import caption_rows, of_images, read_captions
from densevl.pipelines.fewshot.examples import Examples, no_words, row_strings, text_rows
from densevl.pipelines.fewshot.features import ImageFeatures, picture
from densevl.pipelines.fewshot.state import Learned
from densevl.pipelines.segmentation.segmenter import Labels
from densevl.results import UNLABELLED
from densevl.vocabulary import LabelSet
from densevl.vocabulary.learned_templates import LearnedTemplate

Captions = Mapping[str, str] | str | os.PathLike[str]
Hooks = tuple[str | os.PathLike[str] | None, Progress | None]


class Learner(Learned):
    """The half of `FewShot` that learns."""

    _projection: torch.Tensor | None  # the model's own, where the head trains it; features are then those before it

    def fit(
        self,
        examples: Any,
        labels: Labels | None = None,
        *,
        captions: Captions | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from examples; what was learned before is forgotten.

        Args:
            examples: for images {name: images}, a folder, a path, a list of both, or arrays; an empty list is a class
                without examples. For regions a list of (image, masks or boxes, names), masks (R, H, W) bool or boxes
                (R, 4), a name each. For pixels a list of (image, label map, names), an integer map (H, W) of numbers of
                names, below 0 or 255 where it is not known (see `proposals.maps.class_map`). Regions and pixels named
                "nothing" are examples of what is no class: they stand in for the background words, whose mean they
                share.
            labels: all classes, with or without examples; see `LabelSet.parse`. None takes those of the examples. The
                words of a class ("car | truck") are averaged.
            captions: for head "tipx" on whole images, {image: caption} or a JSON file of it, with one for each example,
                found by its path or its file's name.
            checkpoint: a file that head "prompt" writes while it learns, and goes on from after it was killed, to the
                same result. progress: called by head "prompt" with the steps done and all of them.

        Raises:
            LabelError: no examples, of another form, without a caption, of a class that is not in `labels`, or for
                pixels a class none of whose pixels fill a token.
            ImageError: an unreadable image.
            ProposalError: regions or maps that do not fit their image.
            ModelError: settings that do not fit the head.
            OptionError: learned templates, which are for words alone.
        """
        self._require_plain_templates()
        names = self.features.named(examples)
        shown = self.level != "image" and UNLABELLED in names
        named = [name for name in names if not (shown and name == UNLABELLED)]
        told = None
        if captions is not None:
            self._require_captions()
            examples = {name: list(each_image(images)) for name, images in examples.items()}
            told = of_images([image for images in examples.values() for image in images], read_captions(captions))
        label_set = LabelSet.parse(named if labels is None else labels)
        self.see(learned=False)
        if self._asks_for_images:
            examples = {name: list(each_image(images)) for name, images in examples.items()}
        found = Examples.of(self.features, examples, (*label_set.names, *[UNLABELLED] * shown))
        if self.has_words:
            text = text_rows(self.segmenter, self.level, label_set, shown=shown)
        else:
            text = no_words(found, self.backbone.name)
        looks = None
        if self._asks_for_images:
            looks = self._looked([image for images in examples.values() for image in images])
        return self._learn(label_set, found, text, told, hooks=(checkpoint, progress), looks=looks)

    def fit_unlabelled(
        self,
        images: Any,
        labels: Labels,
        *,
        how: str = "top",
        count: int | None = COUNT,
        captions: Captions | None = None,
    ) -> Self:
        """Learn from images without labels: what words name most surely stands in for examples of each class.

        Classes are chosen from all images together, so what is learned from one depends on the others (transductive).

        Args:
            images: a folder, a path, a list of both, or arrays. For regions each is cut up by the proposals, for pixels
                each gives at most `tokens` of its tokens.
            labels: the classes; see `LabelSet.parse`. Descriptors of `text` say in sentences what is looked for.
            how: "top", "spread" or "retrieve"; see `fewshot.pseudo.pseudo_labels`. count: examples a class, at most;
                None takes all. captions: as `fit`, of those images that are taken.

        Raises:
            LabelError: nothing that words name as one of the classes, or no caption of what they name.
            OptionError: an impossible `how` or `count`.
            ModelError: a model without words. Else as `fit`.
        """
        self._require_plain_templates()
        label_set = LabelSet.parse(labels)
        if not self.has_words:
            raise ModelError(f"model '{self.backbone.name}' has no words to name images without labels; take a CLIP")
        if captions is not None:
            self._require_captions()
        self.see(learned=False)
        text, given = text_rows(self.segmenter, self.level, label_set, shown=False), list(each_image(images))
        found = Examples.guessed(
            self.features, given, label_set.names, text, how=how, count=count, projection=self._projection
        )
        told = None
        if captions is not None and found.places is not None:
            told = of_images([given[place] for place in found.places.tolist()], read_captions(captions))
        looks = None
        if self.level == "image" and found.places is not None:
            taken = [given[place] for place in found.places.tolist()]
            found = replace(found, pictures=frozenset(map(picture, map(read_image, taken))))
            looks = self._looked(taken) if self._asks_for_images else None
        return self._learn(label_set, found, text, told, how, looks=looks)

    def _learn(
        self,
        labels: LabelSet,
        found: Examples,
        text: torch.Tensor,
        captions: list[str] | None,
        guessed: str | None = None,
        hooks: Hooks = (None, None),
        looks: Mapping[str, torch.Tensor] | None = None,
    ) -> Self:
        own = dict(looks or {})
        words = self._strings(labels, shown=UNLABELLED in found.names)
        heads = {
            kind: self._build(hooks).fit(
                rows, found.owners, text, scale=self.features.scales[kind], weights=found.weights, strings=words, **own
            )
            for kind, rows in found.features.items()
        }
        if captions is not None:
            rows = caption_rows(self.backbone, captions)
            heads = {kind: head.caption(rows) for kind, head in heads.items() if isinstance(head, TipX)}
        self.heads, self.labels, self.counts, self.guessed = heads, labels, found.counts, guessed
        self.calibration = Calibration()
        self.pictures = found.pictures
        self.see()
        return self

    @property
    def _asks_for_images(self) -> bool:
        """Whether head "prompt" asks for other looks at each example, or for its pixels."""
        return self.head == "prompt" and bool(self.settings.get("views") or self.settings.get("vision"))

    def _looked(self, images: list[Any]) -> dict[str, torch.Tensor]:
        if not isinstance(self.features, ImageFeatures):
            raise OptionError(f"views and vision are for level 'image', not '{self.level}'; leave them out")
        if self.settings.get("vision"):
            return {"pixels": self.features.fed(images)}
        return {"views": self.features.views(images, int(self.settings["views"]), int(self.settings.get("seed", 0)))}

    def _require_plain_templates(self) -> None:
        if any(isinstance(template, LearnedTemplate) for template in self.segmenter.templates):
            raise OptionError("learned templates are for words alone; examples need templates of words")

    def _require_captions(self) -> None:
        if self.head != "tipx" or self.level != "image":
            raise OptionError(
                f"captions are for head 'tipx' on whole images, and this is head '{self.head}' on {self.level}s: leave "
                "them out"
            )

    def partial_fit(self, examples: Any, labels: Labels | None = None) -> Self:
        """Learn from more examples, of the same classes or of further ones; with heads that can.

        Args:
            examples: as `fit` takes them; none at all where `labels` names further classes by their words alone.
            labels: further classes, which come after those there are, with or without examples. What was learned of
                the others stays; alpha and its like are chosen on the new examples.

        Raises:
            ModelError: nothing fitted, or a head that learns from all at once.
            LabelError: a further class that is there already; else, as ImageError, as `fit`.
        """
        before, shown = self.fitted(), UNLABELLED in self.counts
        if not HEADS[self.head].adds:
            raise ModelError(f"head '{self.head}' learns from all examples at once: call fit with all of them")
        label_set = before if labels is None else before + LabelSet.parse(labels)
        names = (*label_set.names, *[UNLABELLED] * shown)
        found = Examples.of(self.features, examples, names, self.counts, some=labels is None)
        if len(label_set) > len(before):
            self._know(label_set, found, shown)
        for kind, rows in found.features.items():
            self.heads[kind].partial_fit(rows, found.owners, weights=found.weights)
        self.labels = label_set
        self.counts += found.counts
        self.pictures |= found.pictures
        if self.calibration != Calibration():
            warnings.warn(
                "what was calibrated no longer fits: confidence is as before calibrate; call it again",
                stacklevel=2,
            )
        self.calibration = Calibration()
        return self

    def _know(self, labels: LabelSet, found: Examples, shown: bool) -> None:
        """Give all heads the words of further classes."""
        if self.has_words:
            text = text_rows(self.segmenter, self.level, labels, shown=shown)
        else:
            text = no_words(found, self.backbone.name, self.counts)
        before = len(self.fitted())
        for head in self.heads.values():
            others = [len(labels) if shown else -1] * (len(head.text) - before)
            head.retext(text, [*range(before), *others], strings=self._strings(labels, shown=shown))

    def calibrate(self, examples: Mapping[str, Any] | None = None, *, alpha: float = 0.1) -> Self:
        """Fit confidence, and the sets of plausible classes, to images that the head has not learned from.

        Args:
            examples: {name: images} of classes that were fitted. None of the images may have been fitted, which a hash
                of their pixels tells, after `load` too. None judges every example by the others, which head
                "exemplars" can.
            alpha: the share of images whose true class may be missing from `plausible`. With n images nothing below
                1 / (n + 1) can be had: then all classes are plausible.

        Raises:
            ModelError: nothing fitted, or too few images.
            LabelError: a class that was not fitted.
            OptionError: an impossible alpha, another level, or a head that cannot do without examples.
        """
        labels = self.fitted()
        if (self.guided, self.segmenter.presence) != (None, None):
            raise OptionError("calibrate fits what whole images give; leave guided and presence out")
        if self.level != "image":
            raise OptionError(f"calibrate is for level 'image', and this was made with level '{self.level}'")
        head = self.heads["image"]
        if examples is not None:
            found = Examples.of(self.features, examples, labels.names)
            self._require_unseen(found.pictures, sum(found.counts.values()))
            logits, classes = head.logits(found.features["image"]), found.owners
        elif isinstance(head, Exemplars):
            logits, classes = head.left_out()
        else:
            raise OptionError(f"head '{self.head}' cannot judge its own examples: give others, or take 'exemplars'")
        self.calibration = Calibration.of(logits, classes, alpha)
        return self

    def _require_unseen(self, pictures: frozenset[str], count: int) -> None:
        """Refuse images that were learned from, whatever they are called."""
        if same := len(pictures & self.pictures):
            raise OptionError(
                f"{same} of {count} images to calibrate on were learned from, and a head is too sure of those: "
                "give others, or take head 'exemplars', which judges each example by the others"
            )

    def _strings(self, labels: LabelSet, *, shown: bool) -> list[list[str]] | None:
        return row_strings(self.segmenter, self.level, labels, shown=shown) if self.head == "prompt" else None

    def _build(self, hooks: Hooks = (None, None)) -> Head:
        """A head that has learned nothing yet. Args: hooks: checkpoint and progress, as `fit` takes them."""
        if self.head in HEADS:
            require_known(self.settings, self.head, HEADS[self.head].rules)
        own: dict[str, Any] = {} if self._projection is None else {"projection": self._projection}
        checkpoint, progress = hooks
        if self.head == "prompt":
            own = {"tower": self.tower(), "templates": self.segmenter.templates, "progress": progress}
            own["checkpoint"] = None if checkpoint is None else Path(checkpoint)
        elif checkpoint is not None:
            raise OptionError(f"head '{self.head}' is fitted at once and writes no checkpoint; leave it out")
        return build(self.head, **own, **self.settings)
