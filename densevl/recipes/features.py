"""`DenseFeatures`: the output of a recipe, and how words are compared with it.

Shape letters: B batch, D joint space, T texts, h/w patch grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from densevl.errors import LabelError
from densevl.lazy import F, torch


def cosines(features_BDhw: torch.Tensor, text_TD: torch.Tensor) -> torch.Tensor:
    """Cosines of patches with unit text rows: (B, h, w, T) float32."""
    return torch.einsum("bdhw,td->bhwt", F.normalize(features_BDhw.float(), dim=1), text_TD)


def by_cosine(dense: DenseFeatures, text_TD: torch.Tensor, foreground_T: torch.Tensor) -> torch.Tensor:
    """The default rule: the cosine of patch and text."""
    return cosines(dense.features, text_TD)


@dataclass(frozen=True)
class DenseFeatures:
    """Patch features of a batch of equally sized images.

    Attributes:
        features: (B, D, h, w) float, in the joint space of text and image, not L2-normalised.
        cls: (B, D) float, the image-level feature from the same pass, or None.
        affinity: (B, h*w, h*w) float, similarity of places, for scores that spread or clusters; or None.
        layers: features of further sources, each as `features`; only methods that score sources separately have any.
        compare: how a method compares words with its features, called by `score`.
    """

    features: torch.Tensor
    cls: torch.Tensor | None = None
    affinity: torch.Tensor | None = None
    layers: tuple[torch.Tensor, ...] = ()
    compare: Callable[[DenseFeatures, torch.Tensor, torch.Tensor], torch.Tensor] = by_cosine

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the patch grid."""
        return self.features.shape[-2], self.features.shape[-1]

    def part(self, rows: slice) -> DenseFeatures:
        """The features of some images of the batch."""

        def cut(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor[rows]

        layers = tuple(layer[rows] for layer in self.layers)
        return replace(
            self, features=self.features[rows], cls=cut(self.cls), affinity=cut(self.affinity), layers=layers
        )

    def score(self, text_TD: torch.Tensor, foreground_T: torch.Tensor | None = None) -> torch.Tensor:
        """Score T unit text rows at every patch by the method's own rule: (B, h, w, T) float32.

        Args:
            foreground_T: (T,) bool, which rows are classes rather than background words; None means all. Most methods
                ignore it. A row's score may depend on the other rows, so all rows go in one call.
        """
        text_TD = text_TD.to(self.features.device).float()
        if foreground_T is None:
            foreground_T = torch.ones(text_TD.shape[0], dtype=torch.bool)
        elif foreground_T.shape != text_TD.shape[:1] or not (torch.compiler.is_exporting() or foreground_T.any()):
            raise LabelError(
                f"foreground is {tuple(foreground_T.shape)} for {text_TD.shape[0]} texts, {int(foreground_T.sum())} of "
                "them classes; give one bool for each text, at least one of them true"
            )
        return self.compare(self, text_TD, foreground_T.to(text_TD.device))
