"""Words to ImageNet: which of the 1000 classes a word means, by alias table or by sentence similarity.

A row (1000,) holds how much of a word's meaning lies on each class; it sums to 1. Two ways lead to it:

- the alias table `aliases.json` lists everyday words with their classes; mass is spread evenly over them. Words under
  "" (stuff, materials, body parts, rooms) are known to mean no class: their row is zero and never wins;
- any other word attends over the classes: softmax(cosine / 0.1) between the word and 1000 keys, sentence embeddings
  of the class names and WordNet definitions that timm ships. No photo and no training is involved.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from importlib.resources import files

import numpy as np
import torch
from torch.nn import functional as F

from densevl import digest
from densevl.backbones.photo import minilm
from densevl.cache import cache_dir
from densevl.errors import ModelError, OutputError
from densevl.files import atomic_write

CLASSES = 1000
PROMPTS = ("{}", "a photo of a {}", "a {} in a picture")
TAU = 0.1
# A word is covered if its TOP best classes hold the share COVERED of its attention. On 63 object names and 50 others
# ("sky", "democracy"), written down without looking at the table, the area under the curve is 0.976. At 0.30 the
# statistic alone reports 4 objects (chimp 0.22, jetliner 0.27) and misses 5 others, mostly parts of compounds (water
# 0.51, sand 0.49: water bottle, sandbar); behind the table and the class names it is 2 and 1.
# For orientation: tree 0.13, sky 0.14, dog 0.28, cup 0.81, airliner 0.84.
TOP = 10
COVERED = 0.30


def fold(word: str) -> str:
    """A word as the table spells it: lower case, single blanks, no hyphens, no leading article."""
    return re.sub(r"^(a|an|the) ", "", " ".join(re.sub(r"[-_]", " ", word.lower()).split()))


def parse_rows(spec: str) -> list[int]:
    """Class indices of "151-268, 275", in order; none of "".

    Raises:
        ModelError: not numbers, or outside 0..999.
    """
    rows: list[int] = []
    for part in spec.split(",") if spec else ():
        first, _, last = part.strip().partition("-")
        try:
            span = range(int(first), int(last or first) + 1)
        except ValueError:
            raise ModelError(f"alias rows {spec!r}: {part.strip()!r} is not a number or a range") from None
        if not span or span[0] < 0 or span[-1] >= CLASSES:
            raise ModelError(f"alias rows {spec!r}: {part.strip()!r} is outside 0..{CLASSES - 1}")
        rows.extend(span)
    return rows


def parse_aliases(text: str) -> dict[str, list[int]]:
    """Read the alias table: a JSON object from class rows to the words that mean them.

    Raises:
        ModelError: a row outside 0..999, or a word listed twice.
    """
    table: dict[str, list[int]] = {}
    for spec, words in json.loads(text).items():
        rows = parse_rows(spec)
        for word in words:
            if word in table:
                raise ModelError(f"the alias table lists '{word}' twice")
            table[word] = rows
    return table


@lru_cache(maxsize=1)
def aliases() -> dict[str, list[int]]:
    """The table that densevl ships: word to ImageNet class indices."""
    return parse_aliases(_alias_text())


def alias_rows(word: str) -> list[int] | None:
    """Class indices of a word of the table, or of its singular; empty if it means no class, None if it is not there."""
    table, word = aliases(), fold(word)
    singulars = (word, word.removesuffix("s"), word.removesuffix("es"), re.sub("ies$", "y", word))
    return next((table[form] for form in singulars if form in table), None)


@lru_cache(maxsize=1)
def class_names() -> tuple[tuple[str, ...], ...]:
    """Names (lemmas) of each of the 1000 classes, most usual first, as timm ships them."""
    return tuple(tuple(info.split(", ")) for info, _ in _descriptions())


@lru_cache(maxsize=1)
def lemmas() -> frozenset[str]:
    """Every name of every class, folded."""
    return frozenset(fold(name) for names in class_names() for name in names)


def fingerprint() -> str:
    """A hash of everything that shapes a row, apart from the code."""
    return digest.of_text(_alias_text(), *_key_recipe(), str(TAU))


class Lexicon:
    """Turns words into rows over the 1000 classes; loads the sentence encoder when a word needs it."""

    @cached_property
    def _encoder(self) -> minilm.MiniLM:
        return minilm.MiniLM()

    def rows(self, words: Sequence[str]) -> torch.Tensor:
        """(T, 1000) float32, rows sum to 1 or are zero: the table's where it knows the word, else text attention."""
        known = [alias_rows(word) for word in words]
        result = torch.zeros(len(words), CLASSES)
        for row, classes in zip(result, known, strict=True):
            if classes:
                row[classes] = 1 / len(classes)
        other = [i for i, classes in enumerate(known) if classes is None]
        if other:
            result[other] = self.attention([words[i] for i in other])
        return result

    def attention(self, words: Sequence[str]) -> torch.Tensor:
        """Text attention alone, (T, 1000), rows sum to 1: softmax of the cosine to each class's key over 0.1."""
        keys, mean = self._key_table
        texts = [prompt.format(word) for word in words for prompt in PROMPTS]
        query = self._encoder.encode(texts).view(len(words), len(PROMPTS), -1).mean(1)
        return (F.normalize(query - mean, dim=-1) @ keys.T / TAU).softmax(-1)

    def uncovered(self, words: Sequence[str]) -> list[str]:
        """The words that mean no class, in the order given: listed so in the table, or with flat attention.

        A word that is neither in the table nor a class name is covered if its ten best classes hold at least COVERED of
        its attention.
        """
        known = {word: alias_rows(word) for word in words}
        unsure = [word for word, rows in known.items() if rows is None and fold(word) not in lemmas()]
        flat = set()
        if unsure:
            top = self.attention(unsure).topk(TOP, dim=-1).values.sum(-1)
            flat = {word for word, share in zip(unsure, top.tolist(), strict=True) if share < COVERED}
        return [word for word in words if known[word] == [] or word in flat]

    @cached_property
    def _key_table(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit centred keys (1000, 384) and the mean key (384,)."""
        raw = self._cached_keys()
        mean = raw.mean(0)
        return F.normalize(raw - mean, dim=-1), mean

    def _cached_keys(self) -> torch.Tensor:
        """Raw keys (1000, 384) from the cache, or made now and put there."""
        try:
            path = cache_dir() / f"photo-keys-{digest.of_text(*_key_recipe())[:16]}.npy"
        except OSError:
            return self._make_keys()  # no cache folder: it only saves time
        try:
            keys = np.load(path, allow_pickle=False)
            if keys.shape == (CLASSES, minilm.DIM) and np.isfinite(keys).all():
                return torch.from_numpy(keys)
        except (OSError, ValueError, EOFError):
            pass  # absent or cut short: made again below
        made = self._make_keys()
        buffer = io.BytesIO()
        np.save(buffer, made.numpy(), allow_pickle=False)
        with contextlib.suppress(OutputError):  # a full disk, a folder that cannot be written: it only saves time
            atomic_write(path, buffer.getvalue())
        return made

    def _make_keys(self) -> torch.Tensor:
        """L2(mean over lemmas x prompts + embedding of "names: definition"), one a class."""
        names = class_names()
        prompted = [prompt.format(name) for lemmas in names for name in lemmas for prompt in PROMPTS]
        texts = list(dict.fromkeys(prompted))  # lemmas shared between classes are encoded once
        place = {text: i for i, text in enumerate(texts)}
        embedded = self._encoder.encode([*texts, *(f"{names}: {definition}" for names, definition in _descriptions())])
        owner = torch.tensor([c for c, lemmas in enumerate(names) for _ in range(len(lemmas) * len(PROMPTS))])
        rows = embedded[torch.tensor([place[text] for text in prompted])]
        sums = torch.zeros(CLASSES, minilm.DIM).index_add_(0, owner, rows)
        means = sums / owner.bincount(minlength=CLASSES)[:, None]
        return F.normalize(means + embedded[len(texts) :], dim=-1)


def _alias_text() -> str:
    return files("densevl.backbones.photo").joinpath("aliases.json").read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _descriptions() -> tuple[tuple[str, str], ...]:
    """("tench, Tinca tinca", "freshwater dace-like game fish ...") of each class, from timm (WordNet)."""
    from timm.data import ImageNetInfo  # slow to import

    info = ImageNetInfo()
    names = [info.index_to_description(i) for i in range(CLASSES)]
    detailed = [info.index_to_description(i, detailed=True) for i in range(CLASSES)]
    return tuple((name, full.removeprefix(f"{name}: ")) for name, full in zip(names, detailed, strict=True))


def _key_recipe() -> tuple[str, ...]:
    """What the keys depend on."""
    return (minilm.WEIGHTS_SHA256, minilm.TOKENIZER_SHA256, *PROMPTS, *("\t".join(pair) for pair in _descriptions()))
