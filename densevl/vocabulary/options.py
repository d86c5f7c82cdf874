"""`TextOptions`: what may be done with words beyond templates and background, all of it off by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from densevl.errors import OptionError, one_of, suggest
from densevl.vocabulary.descriptors import Descriptors

CHOICES = {"template_weights": ("equal", "image"), "parents": ("none", "pixel", "image")}


@dataclass(frozen=True)
class TextOptions:
    """How strings become embeddings.

    Attributes:
        descriptors: texts that say what a class looks like; labels they lack are embedded by the templates alone.
        template_weights: "equal", CLIP's ensemble; "image", weights fitted to each image (AutoCLIP, see
            `template_weights`), at the price of one embedding kept per template and string, and of a pass of the image.
        parents: what the name of a class says about its strings, where they are narrower words: "none", nothing: the
            best string decides; "pixel", the probability of a string is weighed by that of its class at the pixel;
            "image", by that of its class in the image as a whole (CHiLS), which suits photos of one thing.
    """

    descriptors: Descriptors | None = None
    template_weights: str = "equal"
    parents: str = "none"

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            one_of(getattr(self, name), allowed, name, OptionError)
        if self.descriptors is not None and self.template_weights == "image":
            raise OptionError(
                "template_weights='image' needs the same prompts for every label and descriptors differ by label: "
                "take one of the two"
            )

    @classmethod
    def parse(cls, spec: TextOptions | Mapping[str, Any] | None) -> TextOptions | None:
        """Read {option: value}, where descriptors may be a dict or a JSON file; None is none.

        Raises:
            OptionError: an option that does not exist, or an unusable value.
        """
        if spec is None or isinstance(spec, TextOptions):
            return spec
        known = [entry.name for entry in fields(cls)]
        for name in spec:
            if name not in known:
                raise OptionError(f"no text option '{name}'{suggest(str(name), known)}; there are {', '.join(known)}")
        looks = spec.get("descriptors")
        return cls(**{**spec, "descriptors": None if looks is None else Descriptors.parse(looks)})

    @property
    def needs_image(self) -> bool:
        """Whether embeddings depend on the image."""
        return self.template_weights == "image" or self.parents == "image"

    def facts(self) -> dict[str, object]:
        """What a result's meta says of them, ready for JSON."""
        texts = self.descriptors
        return {
            "descriptors": {"labels": len(texts.texts), "weight": texts.weight, "unit": texts.unit} if texts else None,
            "template_weights": self.template_weights,
            "parents": self.parents,
        }
