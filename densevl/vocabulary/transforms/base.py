"""`TextTransform`: the last step from words to rows. Shape letters: T strings, E joint space, h/w patch grid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from densevl import digest

if TYPE_CHECKING:
    import torch


class TextTransform(ABC):
    """A step on text embeddings after templates, synonyms and descriptors.

    Classes, negatives and background words all pass through it, because otherwise their scores would shift against each
    other. Images and vectors in place of words, and the model's own "unknown", do not.

    Attributes:
        needs_image: whether `apply` reads the dense features of the photo. It is then called once per photo.
    """

    needs_image: ClassVar[bool] = False

    @abstractmethod
    def apply(self, rows_TE: torch.Tensor, dense_Ehw: torch.Tensor | None = None) -> torch.Tensor:
        """New rows (T, E) float32 on the device of the old ones; unit rows, unless the method wants others.

        Args:
            rows_TE: unit rows of T strings. dense_Ehw: features of the whole photo from the recipe, not normalised, if
                `needs_image`.
        """

    @property
    @abstractmethod
    def width(self) -> int:
        """E of its input rows."""

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """Its tensors, by their names in its file."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, torch.Tensor], path: Path) -> Self | None:
        """The transform in a file's tensors, or None if they are something else.

        Raises:
            WeightsError: they are of this kind, but unusable.
        """

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of its kind and tensors."""
        return digest.of_text(type(self).__name__, digest.of_tensors(sorted(self.state().items())))
