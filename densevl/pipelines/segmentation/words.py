"""`Words`: the text side of a `Segmenter`, shared with regions. It embeds vocabularies and writes their warnings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from densevl.backbones import Backbone
from densevl.backbones.reach import listed as quoted
from densevl.errors import OptionError
from densevl.pipelines import remarks
from densevl.vocabulary import Background, LabelSet
from densevl.vocabulary.parsing import short
from densevl.vocabulary.prompts import Prompt
from densevl.vocabulary.templates import prompted
from densevl.vocabulary.text_classifier import TextClassifier, TextEmbeddings

KEPT_VOCABULARIES = 16


class Words:
    """A backbone's text classifier, those of banks, and the last few vocabularies that they encoded.

    Attributes:
        classifier: fills the templates. of_banks: classifiers for the values of banks, in order.
    """

    def __init__(
        self,
        backbone: Backbone,
        classifier: TextClassifier,
        whole: Callable[[np.ndarray], torch.Tensor],
        of_banks: Sequence[TextClassifier] = (),
    ) -> None:
        """Store the classifiers.

        Args:
            whole: returns dense features (D, h, w) of a uint8 RGB photo, for text options that read them.
        """
        self._backbone, self.classifier, self._whole = backbone, classifier, whole
        self.of_banks = tuple(of_banks)
        self._kept: dict[tuple[TextClassifier, LabelSet, Background], TextEmbeddings] = {}

    def embed(self, labels: LabelSet, policy: Background) -> TextEmbeddings:
        """Embed labels and background words as unit vectors."""
        return self.embedded(self.classifier, labels, policy)

    def embedded(self, classifier: TextClassifier, labels: LabelSet, policy: Background) -> TextEmbeddings:
        """Embed a vocabulary with a classifier. The result is cached for the next photos."""
        key = (classifier, labels, policy)
        if key not in self._kept:
            if len(self._kept) >= KEPT_VOCABULARIES:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = classifier.encode(labels, policy)
        return self._kept[key]

    def for_photo(self, rgb: np.ndarray, labels: LabelSet, policy: Background) -> TextEmbeddings:
        """Return the embeddings for one uint8 RGB photo: the vocabulary's, unless text options read the photo."""
        options = self.classifier.options
        if not (options.needs_image or policy.scenes):
            return self.embed(labels, policy)
        pixels = self._backbone.preprocess(Image.fromarray(rgb))[None].to(self._backbone.device)
        image_D = self._backbone.encode_image(pixels)[0].float()
        text = self.embed(labels, self._with_places(policy, labels, image_D))
        if not options.needs_image:
            return text
        return self.classifier.for_image(text, image_D, self._whole(rgb) if options.needs_features else None)

    def _with_places(self, policy: Background, labels: LabelSet, image_D: torch.Tensor) -> Background:
        """Return a policy with the places that an image chooses among its words."""
        if not policy.scenes:
            return policy
        if self._backbone.default_recipe is None:
            raise OptionError(
                f"model '{self._backbone.name}' does not compare whole images with words, as background 'scenes' needs"
            )
        free = policy.free_places([*labels.words, *labels.negatives, *labels.names])
        rows = self.embed(LabelSet(free, tuple((place,) for place in free)), Background()).vectors
        best = (rows @ image_D).topk(min(policy.scenes, len(free))).indices
        return replace(policy, words=(*policy.words, *(free[at] for at in best.tolist())), scenes=0)

    def require_alone(self) -> None:
        """Refuse text options that read each photo, for code that compares words with many photos at once.

        Raises:
            OptionError: If there are such options.
        """
        if not self.classifier.options.one_row:
            raise OptionError(
                "these text options read each photo, and here words are compared with many photos; leave them out"
            )

    def warnings(
        self, labels: LabelSet, policy: Background, rgb: np.ndarray | None = None, taught: Collection[str] = ()
    ) -> tuple[str, ...]:
        """Return what the user should know about these words and a uint8 RGB photo, one sentence each.

        Guesses made when the words were read come first, then words that the model does not know well.
        """
        named = zip(labels.names, labels.synonyms, strict=True)
        words = [word for name, own in named if name not in taught for word in own if not isinstance(word, Prompt)]
        asked = [*words, *labels.negatives, *policy.words]
        found = [*labels.warnings, *self._backbone.doubts(asked)]
        owner = {word: name for name, own in zip(labels.names, labels.synonyms, strict=True) for word in own}
        for group in self._backbone.alike(list(dict.fromkeys(words))):
            if len(classes := list(dict.fromkeys(owner[word] for word in group))) > 1:
                found.append(
                    f"model '{self._backbone.name}' cannot tell {quoted(classes)} apart: it calls all of them "
                    f"'{short(classes[0])}'"
                )
        if warning := prompted(words, self.classifier.templates):
            found.append(warning)
        if len(labels.queries) + len(labels.negatives) + len(policy.words) + policy.scenes == 1 and not (
            policy.unknown or policy.rest
        ):
            found.append(
                f"'{short(labels.names[0])}' is the only word, so everything gets that label; name what else may be "
                "there, as labels or as background"
            )
        if doubled := policy.given & {query.casefold() for query in labels.words}:
            found.append(
                f"{quoted(sorted(map(short, doubled)))} {'is' if len(doubled) == 1 else 'are'} both label and "
                "background: only the label counts"
            )
        bare = self.classifier.undescribed(labels)
        if bare:
            listed = ", ".join(short(name) for name in bare[:5]) + ", ..." * (len(bare) > 5)
            found.append(f"no descriptors for {listed}: embedded with the templates only")
        return (*found, *(remarks.of_picture(self._backbone, rgb) if rgb is not None else ()))
