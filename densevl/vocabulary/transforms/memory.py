"""`Memory`: images with captions, in which words look up what they show (RECO; Iscen et al., ICLR 2024).

A word's nearest captions lead to images, which are mixed into its row; likewise an image's nearest images lead to
captions. Each side takes only from the other, because mixing in its own kind would only bring all rows closer. RECO
trains the fusion, and published no weights; here it is a mean of the nearest, softmax(sharpness * cosine), added with
the factor `beta`.
Shape letters: M pairs, T strings, N features, C classes, E joint space.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch.nn import functional as F

from densevl.errors import OptionError
from densevl.files import atomic_write_all
from densevl.vocabulary.transforms.base import TextTransform
from densevl.weights.reading import bad_file

BETAS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0)
IMAGES, TEXTS, SETTINGS = NAMES = ("memory.images", "memory.texts", "memory.settings")
ROWS_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Memory(TextTransform):
    """Rows t become normalise(t + beta sum_k w_k u_k), over the images u of the k captions most like t.

    Attributes:
        images: (M, E) float32 unit rows. texts: of their captions, likewise. beta: factor of the mean, 0 or more; 0
            changes nothing. neighbours: k. sharpness: of the weights, above 0.
    """

    images: torch.Tensor
    texts: torch.Tensor
    beta: float = 0.5
    neighbours: int = 10
    sharpness: float = 10.0

    def __post_init__(self) -> None:
        for rows in (self.images, self.texts):
            if rows.ndim != 2 or not len(rows) or rows.shape != self.images.shape or not rows.is_floating_point():
                shapes = f"{tuple(self.images.shape)} and {tuple(self.texts.shape)}"
                raise OptionError(f"a memory holds images and captions of {shapes}: give (M, E) of both, M above 0")
            if not (torch.isfinite(rows).all() and rows.any(dim=1).all()):
                raise OptionError("a memory holds rows of zeros, or NaN or infinite numbers")
        if not (0 <= self.beta < float("inf") and self.neighbours >= 1 and 0 < self.sharpness < float("inf")):
            raise OptionError(
                f"beta is {self.beta}, neighbours {self.neighbours}, sharpness {self.sharpness}: beta is 0 or more, "
                "neighbours at least 1, sharpness above 0"
            )
        for name in ("images", "texts"):
            rows = getattr(self, name).float()
            if not torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-6):  # rows of a file stay bit-equal
                object.__setattr__(self, name, F.normalize(rows, dim=1))

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Memory({len(self)} pairs, beta {self.beta:g}, neighbours {self.neighbours})"

    @property
    def width(self) -> int:
        """E."""
        return self.images.shape[1]

    def apply(self, rows_TE: torch.Tensor, dense_Ehw: torch.Tensor | None = None) -> torch.Tensor:
        """Unit rows (T, E) of words, mixed with the images of their captions."""
        return self._taken(rows_TE, self.texts, self.images)

    def enrich(self, features_NE: torch.Tensor, own_N: torch.Tensor | None = None) -> torch.Tensor:
        """Unit features (N, E) of images or regions, mixed with the captions of the nearest images.

        Args:
            features_NE: any length. own_N: each feature's own pair, which is left out; -1 for none.
        """
        return self._taken(F.normalize(features_NE, dim=1), self.images, self.texts, own_N)

    def choose(
        self,
        features_NE: torch.Tensor,
        labels_N: torch.Tensor,
        text_CE: torch.Tensor,
        scale: float = 100.0,
        own_N: torch.Tensor | None = None,
    ) -> Self:
        """The same memory with the beta that makes labelled features most probable under the changed words.

        Args:
            features_NE: any length. labels_N: int64, the class of each. text_CE: unit rows before the memory.
            scale: factor of cosines. own_N: each feature's own pair, which is left out when judging it; -1 for none.

        Raises:
            OptionError: rows do not fit.
        """
        if features_NE.shape[1:] != text_CE.shape[1:] or text_CE.shape[1] != self.width or not len(features_NE):
            raise OptionError(f"features {tuple(features_NE.shape)} and words {tuple(text_CE.shape)}: (N, E), (C, E)")
        features = F.normalize(features_NE, dim=1)
        own = torch.full_like(labels_N, -1) if own_N is None else own_N

        def likelihood(beta: float) -> float:
            memory, total = replace(self, beta=beta), 0.0
            whole = memory.apply(text_CE)
            for feature, label, place in zip(features, labels_N.tolist(), own.tolist(), strict=True):
                rows = whole if place < 0 else memory.without(place).apply(text_CE)
                total += float((scale * feature @ rows.mT).log_softmax(dim=0)[label])
            return total

        return replace(self, beta=max(BETAS, key=likelihood))

    def without(self, place: int) -> Self:
        """The memory without one pair, if another is left."""
        others = torch.arange(len(self)) != place
        return self if len(self) < 2 else replace(self, images=self.images[others], texts=self.texts[others])

    def _taken(
        self, rows_TE: torch.Tensor, asked_ME: torch.Tensor, given_ME: torch.Tensor, own_T: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Rows plus the mean of the other side of their nearest pairs."""
        if not self.beta or not len(rows_TE):
            return rows_TE
        asked, given = asked_ME.to(rows_TE), given_ME.to(rows_TE)
        owned = [None] * len(rows_TE) if own_T is None else own_T.split(ROWS_AT_ONCE)
        parts = []
        for rows, own in zip(rows_TE.split(ROWS_AT_ONCE), owned, strict=False):
            cosines_TM = rows @ asked.mT
            if own is not None:
                held = (own >= 0).nonzero().flatten()
                cosines_TM[held, own[held]] = -torch.inf
            best, place = cosines_TM.sort(dim=1, descending=True, stable=True)  # ties go to the first
            best, place = best[:, : self.neighbours], place[:, : self.neighbours]
            weights = torch.nan_to_num((self.sharpness * best).softmax(dim=1))  # zeros if there is only its own pair
            parts.append(F.normalize(rows + self.beta * (weights[..., None] * given[place]).sum(dim=1), dim=1))
        return torch.cat(parts)

    def state(self) -> dict[str, torch.Tensor]:
        """The rows, and three numbers."""
        settings = torch.tensor([self.beta, float(self.neighbours), self.sharpness], dtype=torch.float64)
        return {IMAGES: self.images, TEXTS: self.texts, SETTINGS: settings}

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor], path: Path) -> Self | None:
        """Read what `save` wrote."""
        if set(state) != set(NAMES):
            return None
        try:
            beta, neighbours, sharpness = state[SETTINGS].double().tolist()
            return cls(state[IMAGES], state[TEXTS], beta, int(neighbours), sharpness)
        except (OptionError, TypeError, ValueError) as error:
            raise bad_file(path, f"has an unusable memory: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a safetensors file, which `load_transform` and `--text-transform` read.

        Raises:
            OutputError: the disk refuses.
        """
        from safetensors.torch import save

        state = {key: value.detach().cpu().contiguous() for key, value in self.state().items()}
        return atomic_write_all({Path(path): save(state, {"format": "densevl text transform"})})[0]
