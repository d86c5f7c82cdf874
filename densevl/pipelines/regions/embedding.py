"""`RegionEmbedder`: from a photo and its masks or boxes, given or proposed, to a vector for each region."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from densevl import __version__, digest, fitted
from densevl.backbones import Backbone, InferenceProtocol
from densevl.errors import OptionError
from densevl.images import read_image
from densevl.pipelines.many import source
from densevl.pipelines.regions.prompting import prompted
from densevl.pipelines.regions.scores import RegionScorer
from densevl.pipelines.segmentation.segmenter import BackgroundSpec, Labels, Segmenter
from densevl.proposals import ProposalError, Proposals, given, load_proposer
from densevl.proposals.load import form_of
from densevl.recipes import Recipe
from densevl.regions.embedded import RegionEmbeddings
from densevl.regions.operators.names import OPERATORS
from densevl.vocabulary import Background, LabelSet
from densevl.vocabulary.text_classifier import TextEmbeddings
from densevl.weights import require_finite


class RegionEmbedder:
    """The part of `RegionClassifier` that finds the regions of a photo and embeds them, without naming them.

    Attributes: settings of `RegionClassifier`, loaded and resolved; see its constructor. scorer: embeds regions
        and compares them with words.
    """

    backbone: Backbone
    recipe: Recipe | None
    protocol: InferenceProtocol
    operators: Mapping[str, float]
    order: str
    margin: float
    clip_share: tuple[float, float]
    scorer: RegionScorer
    _segment: Segmenter
    _named: Any
    _proposals: Any

    def embed(
        self,
        image: Any,
        *,
        regions: Any = None,
        boxes: Any = None,
        rle: Any = None,
        points: Any = None,
    ) -> RegionEmbeddings:
        """Embed the regions of one photo, for any number of calls of `name`. Arguments as for a call."""
        rgb = read_image(image)
        started = time.perf_counter()
        given = self.regions(rgb, regions=regions, boxes=boxes, rle=rle, points=points)
        vectors, tokens = self.scorer.vectors(rgb, given)
        for operator, rows in vectors.items():
            require_finite(rows, f"vectors of regions, by '{operator}', of model '{self.backbone.name}'")
        seconds = round(time.perf_counter() - started, 3)
        return RegionEmbeddings(rgb, given, vectors, tokens, source=source(image), seconds=seconds)

    def regions(self, rgb: np.ndarray, **forms: Any) -> Proposals:
        """Return the regions of a uint8 RGB photo: those given in one of a call's forms, else proposed ones.

        Raises:
            ProposalError: If several forms are given, none and there is no proposer, or regions do not fit the photo.
        """
        forms = {name: value for name, value in forms.items() if value is not None}
        if not forms:
            found = _read(rgb, self._proposer()(rgb))
            return found.select(found.areas > 0)
        if len(forms) > 1:
            raise ProposalError(f"give one of regions=, boxes=, rle= and points=, not {' and '.join(forms)}")
        if "points" in forms:
            return prompted(rgb, points=forms["points"], proposer=self._proposer())
        return given(rgb, **forms)

    def _proposer(self) -> Any:
        """Return the proposer, loading it when first needed."""
        if self._proposals is None:
            raise ProposalError(
                "no regions: give regions=, boxes= or rle= in the call, or name a proposer for the classifier"
            )
        if isinstance(self._proposals, str):
            encoder = self.backbone if self._proposals == "clusters" else None
            self._proposals = load_proposer(self._proposals, encoder=encoder, device=str(self.backbone.device))
        return self._proposals

    def policy(self, background: BackgroundSpec = "auto") -> Background:
        """Return the background policy of a call: the classifier's own for "auto".

        Raises:
            LabelError: If it is unusable.
        """
        policy = self._segment.policy(background)
        if policy.foreground:
            raise OptionError("background 'foreground' is for pixels, and regions are named here; take another")
        return policy

    def embed_text(self, labels: LabelSet, policy: Background) -> TextEmbeddings:
        """Embed labels and background words as unit vectors, for any photo; see `Segmenter.embed_text`.

        Raises:
            OptionError: If text options read the features of each photo.
        """
        self._segment.words.require_alone()
        return self._segment.embed_text(labels, policy)

    def warnings(
        self, labels: Labels, background: BackgroundSpec = "auto", rgb: np.ndarray | None = None
    ) -> tuple[str, ...]:
        """Return what the user should know about these words and a uint8 RGB photo, one sentence each."""
        return self._segment.words.warnings(LabelSet.parse(labels), self.policy(background), rgb)

    def facts(self) -> dict[str, Any]:
        """Return everything that affects a result besides the photo, its regions and the labels, ready for JSON."""
        scorer = self.scorer
        second = {"operator": scorer.second_look, "share": scorer.second_share, "top": scorer.second_top}
        return {
            **self._segment.facts(),
            **self.embedding_facts(),
            "options": {
                name: {key: digest.of_file(Path(value)) if key == "weights" else value for key, value in own.items()}
                for name, own in scorer.options.items()
            },
            "proposals": fitted.identity(self._named),
            "second_look": second if scorer.second_look is not None else None,
            "margin": self.margin,
            "clip_share": list(self.clip_share),
        }

    def embedding_facts(self) -> dict[str, Any]:
        """Return the part of `facts` about how regions are embedded, for the metadata of results."""
        dense = any(OPERATORS[name].dense for name in self.operators)
        return {
            "model": self.backbone.name,
            "reading": dict(self.backbone.reading),
            "operators": dict(self.operators),
            "options": self.scorer.options,
            "order": self.order,
            "recipe": repr(self.recipe) if dense and self.recipe is not None else None,
            "protocol": asdict(self.protocol),
        }

    def _meta(self, found: RegionEmbeddings, policy: Background) -> dict[str, Any]:
        return {
            "densevl": __version__,
            "image": found.source,
            **self.embedding_facts(),
            "templates": list(self._segment.templates),
            "background": str(policy),
            "second_look": self.scorer.second_look,
            "regions": len(found),
            "seconds": found.seconds,
        }


def _read(rgb: np.ndarray, proposed: Any) -> Proposals:
    """Convert a proposer's output: `Proposals`, masks, or an integer map."""
    size = (rgb.shape[0], rgb.shape[1])
    if isinstance(proposed, Proposals):
        return given(rgb, regions=proposed.select(proposed.areas > 0))
    if form_of(proposed, size) == "masks":
        return Proposals.from_masks(proposed, size)
    return given(rgb, regions=proposed)
