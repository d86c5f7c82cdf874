"""The contract of concept models, and how strong a text is at each place.

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
"""Texts that are judged together."""


@dataclass(frozen=True, eq=False)
class Judged:
    """What a model says of T texts on a photo.

    Attributes:
        places: (T, h, w) logits that the text is there. presence: (T,), 0..1, that it is in the photo; 1 where a model
            has no opinion.
        masks: (T, Q, h, w) logits of instances. sure: (T, Q), 0..1, that each is of the text. Q is 0 where a model
            finds no instances.
    """

    places: torch.Tensor
    presence: torch.Tensor
    masks: torch.Tensor
    sure: torch.Tensor

    @property
    def likely(self) -> torch.Tensor:
        """(T, Q), 0..1: that an instance is of the text, and the text in the photo."""
        return self.presence[:, None] * self.sure

    def strength(self, least: float, *, compat: bool = False) -> torch.Tensor:
        """How sure a text is at each place: (T, h, w), 0..1.

        With presence p, instances q likelier than `least`, and places s: max(max_q likely_q sigma(m_q), p sigma(s)).
        SegEarth-OV3 (`compat`) multiplies by p once more what holds it already: p max(max_q likely_q sigma(m_q),
        sigma(s)).
        """
        likely = torch.where(self.likely > least, self.likely, 0)
        there = self.places.sigmoid()
        presence = self.presence[:, None, None]
        if not self.masks.shape[1]:
            return presence * there
        things = (likely[..., None, None] * self.masks.sigmoid()).amax(dim=1)
        return presence * torch.maximum(things, there) if compat else torch.maximum(things, presence * there)


class ConceptModel(ABC):
    """A loaded model.

    Attributes:
        name: for messages. kind: "sam3" or "clipseg". module: of transformers.
        side: photos are squashed to this many pixels a side, as the model's own processor does. mean, std: RGB, 0..1.
        most_tokens: of a text, start and end among them; what is more is cut off. guesses: what its files do not say, a
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
        """What it is."""
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
        """See a photo once, and judge texts on it, a few at a time, in order."""
        words, seen = self.words(texts), self.see(self.pixels(rgb))
        size = AT_ONCE.get(self.device.type, AT_ONCE["cpu"])
        for first in range(0, len(words), size):
            yield self.judge(seen, words[first : first + size])

    @torch.no_grad()
    def words(self, texts: Sequence[str]) -> list[Any]:
        """Each text as `judge` takes it; encoded when it is first asked for."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        if fresh:
            self._known.update(zip(fresh, self.encode(fresh), strict=True))
        return [self._known[text] for text in texts]

    def cut(self, texts: Sequence[str]) -> list[str]:
        """Those of the texts that have more tokens than the model reads."""
        return [text for text in dict.fromkeys(texts) if len(self._tokenizer(text).input_ids) > self.most_tokens]

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[Any]:
        """Texts as `judge` takes them."""

    @abstractmethod
    def see(self, pixels: torch.Tensor) -> Any:
        """What of a photo is shared by all texts."""

    @abstractmethod
    def judge(self, seen: Any, words: Sequence[Any]) -> Judged:
        """Judge a few texts."""
