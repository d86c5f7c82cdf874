"""`Learner`: the methods of `FewShot` that learn classes, from examples or from images without labels."""

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
    """The methods of `FewShot` that learn."""

    _projection: torch.Tensor | None  # the model's own, if the head trains it; features are then taken before it

    def fit(
        self,
        examples: Any,
        labels: Labels | None = None,
        *,
        captions: Captions | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> Self:
        """Learn from examples. What was learned before is forgotten.

        Args:
            examples: for images {name: images}, each a folder, a path, a list of both, or arrays; an empty list is a
                class without examples. For regions a list of (image, masks or boxes, names), with masks (R, H, W) bool
                or boxes (R, 4) and a name for each. For pixels a list of (image, label map, names), where the integer
                map (H, W) holds indices of names, below 0 or 255 where unknown (see `proposals.maps.class_map`).
                Regions and pixels named "nothing" are examples of no class. They replace the background words, and
                share their mean.
            labels: all classes, with or without examples; see `LabelSet.parse`. None takes those of the examples. The
                words of a class ("car | truck") are averaged.
            captions: for head "tipx" on whole images, {image: caption} or a JSON file of it, with one caption for each
                example, found by its path or file name.
            checkpoint: a file that head "prompt" writes during training. After a kill it resumes from the file and
                reaches the same result. progress: called by head "prompt" with the steps done and their total.

        Raises:
            LabelError: If there are no examples, they have another form, lack a caption or belong to a class that is
                not in `labels`, or none of a class's pixels fill a token.
            ImageError: If an image is unreadable.
            ProposalError: If regions or maps do not fit their image.
            ModelError: If settings do not fit the head.
            OptionError: If there are learned templates, which are for words alone.
        """
        self._require_plain_templates()
        names = self.features.named(examples)
        shown = self.level != "image" and UNLABELLED in names
        named = [name for name in names if not (shown and name == UNLABELLED)]
        sentences = None
        if captions is not None:
            self._require_captions()
            examples = {name: list(each_image(images)) for name, images in examples.items()}
            sentences = of_images([image for images in examples.values() for image in images], read_captions(captions))
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
        return self._learn(label_set, found, text, sentences, hooks=(checkpoint, progress), looks=looks)

    def fit_unlabelled(
        self,
        images: Any,
        labels: Labels,
        *,
        how: str = "top",
        count: int | None = COUNT,
        captions: Captions | None = None,
    ) -> Self:
        """Learn from images without labels, with the images that words name most confidently as examples of each class.

        Classes are chosen from all images together, so the result for one depends on the others (transductive).

        Args:
            images: a folder, a path, a list of both, or arrays. For regions each is split by the proposals; for pixels
                each contributes at most `tokens` tokens.
            labels: the classes; see `LabelSet.parse`. Descriptors in `text` can describe them in sentences.
            how: "top", "spread" or "retrieve"; see `fewshot.pseudo.pseudo_labels`. count: maximum number of examples
                per class; None takes all. captions: as for `fit`, at least of the images that are used.

        Raises:
            LabelError: If words name nothing as one of the classes, or a named image has no caption.
            OptionError: If `how` or `count` is impossible.
            ModelError: If the model has no words. Other errors as for `fit`.
        """
        self._require_plain_templates()
        label_set = LabelSet.parse(labels)
        if not self.has_words:
            raise ModelError(
                f"model '{self.backbone.name}' cannot name images by words, as unlabelled images need; take a CLIP"
            )
        if captions is not None:
            self._require_captions()
        self.see(learned=False)
        text, given = text_rows(self.segmenter, self.level, label_set, shown=False), list(each_image(images))
        found = Examples.guessed(
            self.features, given, label_set.names, text, how=how, count=count, projection=self._projection
        )
        sentences = None
        if captions is not None and found.places is not None:
            sentences = of_images([given[place] for place in found.places.tolist()], read_captions(captions))
        looks = None
        if self.level == "image" and found.places is not None:
            taken = [given[place] for place in found.places.tolist()]
            found = replace(found, pictures=frozenset(map(picture, map(read_image, taken))))
            looks = self._looked(taken) if self._asks_for_images else None
        return self._learn(label_set, found, text, sentences, how, looks=looks)

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
        """Whether head "prompt" needs random views of each example, or its pixels."""
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
                f"captions are for head 'tipx' on whole images, but this is head '{self.head}' on {self.level}s: leave "
                "them out"
            )

    def partial_fit(self, examples: Any, labels: Labels | None = None) -> Self:
        """Learn from more examples, of the same or further classes, if the head supports it.

        Args:
            examples: as for `fit`, or empty if `labels` names further classes by their words alone.
            labels: further classes, added after the present ones, with or without examples. What was learned of the
                others stays. Settings such as alpha are chosen on the new examples.

        Raises:
            ModelError: If nothing was fitted, or the head learns only from all examples at once.
            LabelError: If a further class already exists. Other errors, including ImageError, as for `fit`.
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
                "the calibration no longer fits and was dropped: call calibrate again",
                stacklevel=2,
            )
        self.calibration = Calibration()
        return self

    def _know(self, labels: LabelSet, found: Examples, shown: bool) -> None:
        """Add the words of further classes to all heads."""
        if self.has_words:
            text = text_rows(self.segmenter, self.level, labels, shown=shown)
        else:
            text = no_words(found, self.backbone.name, self.counts)
        before = len(self.fitted())
        for head in self.heads.values():
            others = [len(labels) if shown else -1] * (len(head.text) - before)
            head.retext(text, [*range(before), *others], strings=self._strings(labels, shown=shown))

    def calibrate(self, examples: Mapping[str, Any] | None = None, *, alpha: float = 0.1) -> Self:
        """Calibrate confidence and the sets of plausible classes on images that the head has not learned from.

        Args:
            examples: {name: images} of fitted classes. None of the images may have been fitted, which a hash of their
                pixels tells even after `load`. None judges every example by the others, which only head "exemplars"
                can do.
            alpha: the share of images whose true class may be missing from `plausible`. With n images it cannot be
                below 1 / (n + 1): then all classes are plausible.

        Raises:
            ModelError: If nothing was fitted, or there are too few images.
            LabelError: If a class was not fitted.
            OptionError: If alpha or the level is impossible, or the head needs examples.
        """
        labels = self.fitted()
        if (self.guided, self.segmenter.presence) != (None, None):
            raise OptionError("calibrate fits the scores of whole images; leave guided and presence out")
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
        """Refuse images that were learned from, whatever their names."""
        if same := len(pictures & self.pictures):
            raise OptionError(
                f"{same} of {count} images to calibrate on were learned from, where heads are too confident: "
                "give others, or take head 'exemplars', which judges each example by the others"
            )

    def _strings(self, labels: LabelSet, *, shown: bool) -> list[list[str]] | None:
        return row_strings(self.segmenter, self.level, labels, shown=shown) if self.head == "prompt" else None

    def _build(self, hooks: Hooks = (None, None)) -> Head:
        """Create an untrained head. `hooks`: checkpoint and progress, as for `fit`."""
        if self.head in HEADS:
            require_known(self.settings, self.head, HEADS[self.head].rules)
        own: dict[str, Any] = {} if self._projection is None else {"projection": self._projection}
        checkpoint, progress = hooks
        if self.head == "prompt":
            own = {"tower": self.tower(), "templates": self.segmenter.templates, "progress": progress}
            own["checkpoint"] = None if checkpoint is None else Path(checkpoint)
        elif checkpoint is not None:
            raise OptionError(f"head '{self.head}' is fitted in one step and writes no checkpoint; leave it out")
        return build(self.head, **own, **self.settings)
