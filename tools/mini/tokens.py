"""The compact token table: only rows that training uses, plus one row for every other token.

open_clip's BPE has 49408 tokens; a few hundred are trained. Compact id 0 is the unknown token, ids 1..K are the trained
tokens in ascending order, so that end-of-text stays the largest id (open_clip pools the text where the id is largest).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer

UNKNOWN = 0
VOCAB_SIZE = 49408


class CompactTokenizer:
    """open_clip's tokenizer with its ids renumbered.

    Attributes:
        ids: (K,) ascending full ids of the trained tokens; start- and end-of-text are the last two.
        rows: K + 1, the rows of the compact embedding table.
    """

    def __init__(self, ids: Sequence[int], context: int) -> None:
        """Take the trained ids and the context length in tokens."""
        self.ids = np.asarray(sorted(ids), dtype=np.int32)
        self.rows = len(self.ids) + 1
        self._full = SimpleTokenizer(context_length=context)
        self._compact = torch.zeros(VOCAB_SIZE, dtype=torch.long)
        self._compact[torch.from_numpy(self.ids).long()] = torch.arange(1, self.rows)
        self._known: dict[str, torch.Tensor] = {}

    @classmethod
    def covering(cls, texts: Iterable[str], context: int) -> CompactTokenizer:
        """Build the table that holds every token of some texts."""
        full = SimpleTokenizer(context_length=context)
        used = {token for text in texts for token in full.encode(text)}
        return cls(sorted(used | {full.sot_token_id, full.eot_token_id}), context)

    @cached_property
    def first_special(self) -> int:
        """Compact id of start-of-text; it and the id after it (end-of-text) are never masked."""
        return self.rows - 2

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Return compact ids (T, L) int64, cut to the longest text (the causal mask makes that exact)."""
        for text in texts:
            if text not in self._known:
                self._known[text] = self._compact[self._full([text])[0]]
        tokens = torch.stack([self._known[text] for text in texts])
        return tokens[:, : int(tokens.argmax(dim=1).max()) + 1]

    def forget(self, tokens: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
        """Return ids (T, L) with a random share of the words replaced by the unknown token."""
        hit = torch.rand(tokens.shape, generator=generator) < share
        return torch.where(hit & (tokens < self.first_special), UNKNOWN, tokens)


def expand(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Expand a compact table (K + 1, D) to all rows (49408, D): untrained tokens get the unknown row."""
    full = table[UNKNOWN].expand(VOCAB_SIZE, -1).clone()
    full[ids.long()] = table[1:]
    return full
