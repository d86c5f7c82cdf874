"""`TextOptions`: treatments of words beyond templates and background, all off by default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from densevl.errors import OptionError, one_of, suggest
from densevl.vocabulary.descriptors import Descriptors
from densevl.vocabulary.transforms import TextTransform

CHOICES = {"template_weights": ("equal", "image", "region", "pixel"), "parents": ("none", "pixel", "image")}


@dataclass(frozen=True)
class TextOptions:
    """How strings become embeddings.

    Attributes:
        descriptors: texts about the look of classes; labels without any are embedded by the templates alone.
        template_weights: "equal", CLIP's ensemble; "image", weights fitted to each image (AutoCLIP, see
            `template_weights`), which keeps one embedding per template and string and takes a pass of the image;
            "region" and "pixel", fitted to each region of a `RegionClassifier` and each patch, which computes three
            times as many scores as there are templates.
        parents: how the name of a class affects its strings, if they are narrower words: "none", not at all: the
            best string decides; "pixel", the probability of a string is weighted by that of its class at the pixel;
            "image", by that of its class in the whole image (CHiLS), which suits photos of one thing.
        transform: the last step on the embeddings, such as `transforms.linear.LinearText` (LABCLIP).
    """

    descriptors: Descriptors | None = None
    template_weights: str = "equal"
    parents: str = "none"
    transform: TextTransform | None = None

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            one_of(getattr(self, name), allowed, name, OptionError)
        if not isinstance(self.transform, TextTransform | None):
            raise OptionError(
                f"transform is a {type(self.transform).__name__}; give a TextTransform, see load_transform"
            )
        weights = self.template_weights
        if self.descriptors is not None and weights != "equal":
            raise OptionError(
                f"template_weights='{weights}' needs the same prompts for every label and descriptors differ by label: "
                "take one of the two"
            )
        if weights in ("region", "pixel") and (self.transform is not None or self.parents == "pixel"):
            other = "a transform" if self.transform is not None else "parents='pixel'"
            raise OptionError(
                f"template_weights='{weights}' has no one row per string that {other} could change: take one of the two"
            )

    @classmethod
    def parse(cls, spec: TextOptions | Mapping[str, Any] | None) -> TextOptions | None:
        """Read {option: value}, where descriptors may be a dict or a JSON file, and transform a file; None gives None.

        Raises:
            OptionError: an option does not exist, or a value is unusable.
            WeightsError: a file is unusable.
        """
        if spec is None or isinstance(spec, TextOptions):
            return spec
        known = [entry.name for entry in fields(cls)]
        for name in spec:
            if name not in known:
                raise OptionError(f"no text option '{name}'{suggest(str(name), known)}; there are {', '.join(known)}")
        read: dict[str, Callable[[Any], Any]] = {"descriptors": Descriptors.parse, "transform": _load}
        return cls(
            **{name: read[name](value) if name in read and value is not None else value for name, value in spec.items()}
        )

    @property
    def needs_image(self) -> bool:
        """Whether embeddings depend on the image."""
        return self.template_weights == "image" or self.parents == "image" or self.needs_features

    @property
    def one_row(self) -> bool:
        """Whether a string has the same row for all images and places."""
        return self.template_weights == "equal" and not self.needs_image

    @property
    def needs_features(self) -> bool:
        """Whether they depend on its dense features."""
        return self.transform is not None and self.transform.needs_image

    @property
    def words_alone(self) -> TextOptions:
        """The same without the transform, for models other than the one it was made for."""
        return replace(self, transform=None)

    def facts(self) -> dict[str, object]:
        """The entries of a result's meta, ready for JSON."""
        texts = self.descriptors
        return {
            "descriptors": {"labels": len(texts.texts), "weight": texts.weight, "unit": texts.unit} if texts else None,
            "template_weights": self.template_weights,
            "parents": self.parents,
            "transform": self._transform(),
        }

    def identity(self) -> dict[str, object]:
        """All options, ready for JSON."""
        return {**asdict(self.words_alone), "transform": self._transform()}

    def _transform(self) -> dict[str, str] | None:
        own = self.transform
        return None if own is None else {"name": type(own).__name__, "weights": own.fingerprint}


def _load(spec: Any) -> TextTransform:
    from densevl.vocabulary.transforms.load import load_transform  # loads torch

    return load_transform(spec)
