"""The interface of concept models, and the strength of a text at each place.

Shape letters: T texts, Q instances that a model proposes for a text, h/w the model's map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

AT_ONCE = {"cpu": 4, "cuda": 16}
"""Number of texts judged together."""


@dataclass(frozen=True, eq=False)
class Judged:
    """A model's judgement of T texts on a photo.

    Attributes:
        places: (T, h, w) logits that the text is there. presence: (T,), 0..1, that it is in the photo; 1 if the model
            does not judge that.
        masks: (T, Q, h, w) logits of instances. sure: (T, Q), 0..1, that each belongs to the text. Q is 0 if the model
            finds no instances.
    """

    places: torch.Tensor
    presence: torch.Tensor
    masks: torch.Tensor
    sure: torch.Tensor

    @property
    def likely(self) -> torch.Tensor:
        """Probability, (T, Q), that an instance belongs to the text and the text is in the photo."""
        return self.presence[:, None] * self.sure

    def strength(self, least: float, *, compat: bool = False) -> torch.Tensor:
        """The strength of a text at each place: (T, h, w), 0..1.

        With presence p, instances q more probable than `least`, and places s, it is
        max(max_q likely_q sigma(m_q), p sigma(s)). SegEarth-OV3 (`compat`) multiplies by p again, although it is
        included already: p max(max_q likely_q sigma(m_q), sigma(s)).
        """
        likely = torch.where(self.likely > least, self.likely, 0)
        places = self.places.sigmoid()
        presence = self.presence[:, None, None]
        if not self.masks.shape[1]:
            return presence * places
        things = (likely[..., None, None] * self.masks.sigmoid()).amax(dim=1)
        return presence * torch.maximum(things, places) if compat else torch.maximum(things, presence * places)


class ConceptModel(ABC):
    """A loaded model.

    Attributes:
        name: for messages. kind: "sam3" or "clipseg". module: of transformers.
        side: photos are squashed to this many pixels per side, as in the model's own processor. mean, std: RGB, 0..1.
        most_tokens: of a text, including start and end; longer texts are cut. guesses: facts that its files lack, a
            sentence each.
    """

    kind: str
    most_tokens: int
    guesses: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        module: torch.nn.Module,
        tokenizer: Any,
        side: int,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        self.name, self.module, self.side = name, module, side
        self.mean, self.std = tuple(mean), tuple(std)
        self._tokenizer = tokenizer
        self._known: dict[str, Any] = {}

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def about(self) -> str:
        """A description of the model."""
        return f"a concept model ({self.kind}): each text is judged for itself"

    def pixels(self, rgb: np.ndarray) -> torch.Tensor:
        """A uint8 RGB photo (H, W, 3) squashed to a square and normalised: (1, 3, side, side)."""
        first = next(self.module.parameters())
        chw = torch.from_numpy(np.array(rgb)).to(first.device, first.dtype).permute(2, 0, 1)[None] / 255
        square = F.interpolate(chw, size=(self.side, self.side), mode="bilinear", antialias=True)
        mean, std = (square.new_tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (square - mean) / std

    @torch.no_grad()
    def judgements(self, rgb: np.ndarray, texts: Sequence[str]) -> Iterator[Judged]:
        """Encode a photo once, and judge texts on it, a few at a time, in order."""
        words, seen = self.words(texts), self.see(self.pixels(rgb))
        size = AT_ONCE.get(self.device.type, AT_ONCE["cpu"])
        for first in range(0, len(words), size):
            yield self.judge(seen, words[first : first + size])

    @torch.no_grad()
    def words(self, texts: Sequence[str]) -> list[Any]:
        """Each text in the form that `judge` takes, encoded on first use."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        if fresh:
            self._known.update(zip(fresh, self.encode(fresh), strict=True))
        return [self._known[text] for text in texts]

    def cut(self, texts: Sequence[str]) -> list[str]:
        """The texts that have more tokens than the model reads."""
        return [text for text in dict.fromkeys(texts) if len(self._tokenizer(text).input_ids) > self.most_tokens]

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[Any]:
        """Encode texts for `judge`."""

    @abstractmethod
    def see(self, pixels: torch.Tensor) -> Any:
        """Encode a photo into the features that all texts share."""

    @abstractmethod
    def judge(self, seen: Any, words: Sequence[Any]) -> Judged:
        """Judge a few texts."""
