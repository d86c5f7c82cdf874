"""CLIP's tokenizer: byte pair encoding (Sennrich et al., ACL 2016) of cleaned text in lower case."""

from __future__ import annotations

import gzip
import html
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import torch

from densevl.shipped import open_clip_file

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
"""The merged pairs, most frequent first, one per line after a title line; in open_clip's package."""
MERGES = 48_894
START, END, LAST = "<start_of_text>", "<end_of_text>", "</w>"
WORDS = rf"{START}|{END}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+"
KEPT = 100_000
"""Words whose tokens are cached."""


class ClipTokenizer:
    """Texts to tokens, equal to open_clip's `SimpleTokenizer`, without importing it."""

    def __init__(self, context_length: int = 77) -> None:
        """Read the vocabulary, once per process.

        Raises:
            ModelError: the installed open_clip has no such file.
        """
        import regex

        self.context_length = context_length
        self.encoder, self._ranks = vocabulary()
        self._known = {word: [self.encoder[word]] for word in (START, END)}
        self._words = regex.compile(WORDS, regex.IGNORECASE)

    def __call__(self, texts: str | Sequence[str]) -> torch.Tensor:
        """T texts to (T, N) int64: start, words, end, zeros; long texts are cut, but keep the end token."""
        texts = [texts] if isinstance(texts, str) else texts
        rows = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            tokens = [self.encoder[START], *self.encode(text)[: self.context_length - 2], self.encoder[END]]
            row[: len(tokens)] = torch.tensor(tokens)
        return rows

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without start and end."""
        clean = html.unescape(html.unescape(_fixed(text)))
        return [token for word in self._words.findall(" ".join(clean.split()).lower()) for token in self._tokens(word)]

    def _tokens(self, word: str) -> list[int]:
        found = self._known.get(word)
        if found is None:
            found = [self.encoder[part] for part in self._parts(word)]
            if len(self._known) < KEPT:
                self._known[word] = found
        return found

    def _parts(self, word: str) -> list[str]:
        """A word's bytes, with neighbours merged while a pair is in the vocabulary, the most frequent first."""
        parts = [byte_names()[byte] for byte in word.encode()]
        parts[-1] += LAST
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda pair: self._ranks.get(pair, MERGES))
            if best not in self._ranks:
                break
            merged: list[str] = []
            for part in parts:
                if merged and (merged[-1], part) == best:
                    merged[-1] += part
                else:
                    merged.append(part)
            parts = merged
        return parts


def _fixed(text: str) -> str:
    """Repair wrongly decoded text; ftfy, which is slow to import, has nothing to do for plain ASCII."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    import ftfy

    return str(ftfy.fix_text(text))


@cache
def byte_names() -> tuple[str, ...]:
    """A printable character for each of the 256 bytes: its own, or one from U+0100 on."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in own else next(others)) for byte in range(256))


@cache
def vocabulary() -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """Tokens by their text, and the merged pairs with their ranks.

    Raises:
        ModelError: the installed open_clip has no such file.
    """
    lines = gzip.decompress(open_clip_file(VOCABULARY).read_bytes()).decode().split("\n")[1 : MERGES + 1]
    ranks = {(first, second): rank for rank, (first, second) in enumerate(line.split() for line in lines)}
    single = sorted(byte_names())  # the bytes that are printable come first
    texts = [*single, *(name + LAST for name in single), *map("".join, ranks), START, END]
    return {text: token for token, text in enumerate(texts)}, ranks
