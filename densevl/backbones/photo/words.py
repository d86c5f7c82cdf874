"""From words to ImageNet: which of the 1000 classes a word means, how it is reached, and how far that can be trusted.

A row (1000,) holds the share of a word's meaning on each class; it sums to 1. The first rule that applies is used:

- the alias table `aliases.json` lists everyday words with their classes; mass is spread evenly over them. Words under
  "" (stuff, materials, body parts, rooms) are known to mean no class: their row is zero and never wins;
- the word names classes itself ("tripod");
- WordNet has classes below it ("furniture"), or it is the last word of class names ("racket" of "tennis racket");
- WordNet has it below a word that is reached ("emu" below "ratite": the ostrich) or known to mean no class ("oak").
  Of that word's classes, those with most of its attention are taken;
- its head is one of these: "red car" is read as "car", "cup of tea" as "cup", and "palm tree" means no class;
- it attends over the classes: softmax(cosine / 0.1) between the word and 1000 keys, sentence embeddings of the class
  names and WordNet definitions that timm ships. No photo and no training is involved.

Attention is trusted if it is not a mere guess and agrees with the head or with the end of a compound: it knows more of
"sailing boat" than "boat" does, and that "honeybee" is a bee and "frisbee" is not.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import TypeVar

import numpy as np
import torch
from torch.nn import functional as F

from densevl import digest
from densevl.backbones.photo import minilm
from densevl.backbones.photo.scoring import Tier
from densevl.backbones.photo.wheels import find_in_wheel
from densevl.backbones.reach import Reach, Trust, Way
from densevl.cache import cache_dir
from densevl.errors import ModelError, OutputError
from densevl.files import atomic_write

T = TypeVar("T")
CLASSES = 1000
PROMPTS = ("{}", "a photo of a {}", "a {} in a picture")
TAU = 0.1
# Attention is a guess if its TOP best classes hold less than COVERED of it. On 63 object names and 50 others ("sky",
# "democracy"), written down without looking at the table, the area under the curve is 0.976. A larger share means that
# the word is about these classes, not that it names them: coffee 0.77 (coffeepot, mug), fur 0.54, baseball bat 0.67.
TOP = 10
ATTENDED = 5  # classes that attention keeps: the tail of a softmax means "unknown", not "all of these"
WEAKER = {
    **dict.fromkeys(("chair", "sofa"), Tier(-2.0, 1.0)),
    **dict.fromkeys(("dining table", "building"), Tier(-1.5)),
    "potted plant": Tier(-1.0),
}
COVERED = 0.30
PREPOSITIONS = {"of", "with", "on", "in", "at", "by", "from", "for", "under", "near", "behind", "beside", "without"}
BREAKS = PREPOSITIONS | {"a", "an", "the"}
# Words for the look of a thing, not its kind: an orange cat is not another kind of cat.
_LOOKS = """
    red orange yellow green blue purple pink brown black white grey gray dark light bright colourful
    big large huge giant small little tiny tall short long thin fat old new young cute beautiful dirty clean wet
    one two three four five six seven eight nine ten many several few all other single empty full open closed broken
    sleeping sitting standing lying running walking flying blurry
"""
LOOKS = frozenset(_LOOKS.split())
SPELT = 0.85  # difflib's ratio from which a word counts as a misspelling of another
SHOWN = 3  # classes named in a warning
MEANT = 60  # characters of a definition quoted in a warning


_BEFORE = re.compile(
    r"^(?:(?:a |an |the )?(?:photo|picture|image|drawing) of )?"
    r"(?:(?:a|an|the|my|your|his|her|its|our|their|this|that|these|those|some) )?"
)
QUOTED = " .,;:!?\"'()[]\u201c\u201d\u2018\u2019"  # around a word
_SEVERAL = re.compile(r",? (?:and|or|&) ")
IRREGULAR = {"mice": "mouse", "oxen": "ox", "lice": "louse"}  # plurals that no rule forms


def fold(word: str) -> str:
    """A word in the table's spelling: lower case, single blanks; no hyphens, quotes, "a photo of" or articles."""
    plain = " ".join(re.sub(r"[-_]", " ", word.lower()).split()).strip(QUOTED)
    return _BEFORE.sub("", plain) or plain


def parse_rows(spec: str) -> list[int]:
    """Class indices of "151-268, 275", in order; none for "".

    Raises:
        ModelError: a part is not a number, or outside 0..999.
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
        ModelError: a row is outside 0..999, or a word is listed twice.
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
    return parse_aliases(_shipped("aliases.json"))


@lru_cache(maxsize=1024)
def forms(word: str) -> tuple[str, ...]:
    """A word in the tables' spelling, its possible singulars, and its plural."""
    word = re.sub("['\u2019]s?$", "", fold(word))  # "the dog's"
    before, _, last = word.rpartition(" ")
    one = f"{before} {IRREGULAR.get(last, last)}".strip()
    ends = (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"), ("ves", "fe"))
    singular = (word[: -len(many)] + single if word.endswith(many) else word for many, single in ends)
    first, of, rest = word.partition(" of ")
    heads = (f"{form} of {rest}" for form in forms(first)[1:-1]) if of else ()  # "birds of prey"
    return (word, one, *heads, *singular, f"{word}s")


def by_form(table: Mapping[str, T], word: str) -> T | None:
    """A table's entry for a word, its singular or its plural; None if there is none."""
    return next((table[form] for form in forms(word) if form in table), None)


def alias_rows(word: str) -> list[int] | None:
    """Class indices of a word in the table, or of its singular; empty if it means no class, None if it is missing."""
    table = aliases()
    return next((table[form] for form in forms(word)[:-1] if form in table), None)


@lru_cache(maxsize=1)
def class_names() -> tuple[tuple[str, ...], ...]:
    """Names (lemmas) of each of the 1000 classes, most usual first, as timm ships them."""
    return tuple(tuple(info.split(", ")) for info, _ in _descriptions())


@lru_cache(maxsize=1)
def named() -> dict[str, list[int]]:
    """Classes by their names, folded."""
    found: dict[str, list[int]] = {}
    for index, names in enumerate(class_names()):
        for name in dict.fromkeys(map(fold, names)):
            found.setdefault(name, []).append(index)
    return found


@lru_cache(maxsize=1)
def kinds() -> dict[str, list[int]]:
    """Classes by the last words of their names: "poodle" covers the toy, the miniature and the standard poodle."""
    found: dict[str, list[int]] = {}
    for index, names in enumerate(class_names()):
        parts = [name.split() for name in names]  # a hyphen joins: a four-poster is not a poster
        for last in dict.fromkeys(fold(" ".join(own[k:])) for own in parts for k in range(1, len(own))):
            found.setdefault(last, []).append(index)
    return found


@lru_cache(maxsize=1)
def wider() -> dict[str, list[int]]:
    """Classes by the nouns of WordNet above them: "furniture"."""
    return {word: parse_rows(spec) for spec, found in _wordnet()["kinds"].items() for word in found}


@lru_cache(maxsize=1)
def narrower() -> dict[str, str]:
    """Nouns of WordNet, and the broader word that is reached or known to mean no class: emu, a ratite."""
    return {word: kind for kind, found in _wordnet()["under"].items() for word in found}


def _wordnet() -> dict[str, dict[str, list[str]]]:
    return json.loads(_shipped("wordnet.json"))


@lru_cache(maxsize=1)
def weak() -> dict[str, str]:
    """Words that are reached but may give wrong results, with the reason; "" if the model means another thing."""
    return {word: why for why, words in json.loads(_shipped("weak.json")).items() for word in words}


def listed() -> tuple[str, ...]:
    """The words of the tables, including those known to mean no class, and names of classes and kinds."""
    return tuple(dict.fromkeys((*aliases(), *weak(), *named(), *wider())))


@lru_cache(maxsize=1)
def tiers() -> dict[frozenset[int], Tier]:
    """The words that are weak by nature, by their classes, and how much less evidence they need."""
    person = next(words for why, words in json.loads(_shipped("weak.json")).items() if "person" in words and why)
    listed = {**dict.fromkeys(person, Tier(-2.0, 1.0)), **WEAKER}
    return {frozenset(classes): tier for word, tier in listed.items() if (classes := alias_rows(word))}


@dataclass(frozen=True)
class Meaning:
    """The meaning of a word: the way to it, its classes if known without attention, and the doubts about it.

    Attributes:
        way, trust, why: as in `Reach`. classes: empty for attention, and for words that mean none.
        other: whether the classes are another sense of the word, or one kind of many.
        kind: the broader word, if the classes are that word's.
    """

    way: Way
    trust: Trust
    why: str = ""
    classes: tuple[int, ...] = ()
    other: bool = False
    kind: str = ""

    def reach(self, word: str) -> Reach:
        """The `Reach` of a word with this meaning."""
        return Reach(word, self.way, self.trust, self.why)


NO_CLASS = "it means no object that the model was trained on, so no pixel becomes one"


def look_up(word: str) -> Meaning | None:
    """The meaning of a word by the tables alone; None if only attention can tell."""
    ways: tuple[tuple[Way, list[int] | None], ...] = (
        ("table", alias_rows(word)),
        ("name", by_form(named(), word)),
        ("kind", by_form(wider(), word)),
        ("kind", by_form(kinds(), word)),
    )
    way, classes = next((found for found in ways if found[1] is not None), ("none", None))
    if classes is None:
        first, blank, rest = fold(word).partition(" ")
        joined = look_up(first + rest) if blank and " " not in rest and first not in LOOKS else None  # "land rover"
        return joined or _by_kind(word)
    if not classes:
        return Meaning("none", "none", NO_CLASS)
    why = next((weak()[form] for form in forms(word) if form in weak()), None)
    other = why == "" or (way == "kind" and len(classes) == 1)
    if other:
        name, (_, definition) = class_names()[classes[0]][0], _descriptions()[classes[0]]
        brief = definition if len(definition) <= MEANT else f"{definition[:MEANT].rsplit(' ', 1)[0]} ..."
        why = f"understood as '{name}' ({brief})"
    meaning = Meaning(way, "good" if why is None else "weak", why or "", tuple(classes), other)
    return (_by_kind(word) if other and way == "kind" else None) or meaning


def _by_kind(word: str) -> Meaning | None:
    """The meaning of a word by a broader word in WordNet; None if there is none."""
    kind = next((narrower()[form] for form in forms(word)[:-1] if form in narrower()), None)
    found = look_up(kind) if kind is not None else None
    if kind is None or found is None or found.trust == "none":
        return found
    if found.trust == "weak" and not found.other and found.way == "table":
        return replace(found, way="broader")
    return Meaning("broader", "weak", f"read as '{kind}' and no more", found.classes, kind=kind)


def _several(phrase: str) -> Meaning | None:
    """The meaning of "cats and dogs", any of the things; None if the tables lack one of them."""
    parts = _SEVERAL.split(fold(phrase))
    found = [look_up(part) for part in parts]
    if len(parts) < 2 or any(one is None or not one.classes for one in found):
        return None
    classes = dict.fromkeys(index for one in found if one is not None for index in one.classes)
    apart = ", ".join(parts)
    return Meaning("head", "weak", f"read as any of them; to tell them apart, write '{apart}'", tuple(classes))


def _says_more(phrase: str) -> bool:
    """Whether a phrase is more specific than its head: "sailing boat", not "orange cat" or "cat on a sofa"."""
    words = fold(phrase).split()
    apart = PREPOSITIONS - {"of"}
    return not (any(part in apart for part in words[1:]) or any(part in LOOKS or part.isdigit() for part in words[:-1]))


def by_head(phrase: str) -> Meaning | None:
    """The meaning of a phrase by its head, the last words before "of", "with" and the like; None if unknown."""
    words = phrase.lower().strip(QUOTED).split()
    after = [*words[1:], "of"]  # "dog lying on grass", "man riding a bike", but not "old sailing boat"
    ends = (k for k, part in enumerate(words) if part in PREPOSITIONS or (part.endswith("ing") and after[k] in BREAKS))
    end = next((k for k in ends if k), len(words))
    for start in range(0 if end < len(words) else 1, end):
        head = " ".join(words[start:end])
        found = look_up(head)
        if found is not None and not found.other:
            if found.trust == "none":
                return found
            return replace(found, way="head", trust="weak", why=found.why or f"read as '{fold(head)}' and no more")
    return None


def _stuff(phrase: str) -> Meaning | None:
    """The meaning of a phrase whose head means no class; then attention is not needed."""
    found = by_head(phrase)
    return found if found is not None and found.trust == "none" else None


def fingerprint() -> str:
    """A hash of everything that shapes a row, apart from the code."""
    return digest.of_text(
        "heads, kinds and looks",
        _shipped("aliases.json"),
        _shipped("wordnet.json"),
        *_key_recipe(),
        str(TAU),
        str(ATTENDED),
    )


class Lexicon:
    """Turns words into rows over the 1000 classes; loads the sentence encoder when a word needs it."""

    def __init__(self) -> None:
        self._guessed: dict[str, Meaning] = {}

    @cached_property
    def _encoder(self) -> minilm.MiniLM:
        return minilm.MiniLM()

    def rows(self, words: Sequence[str]) -> torch.Tensor:
        """(T, 1000) float32, rows sum to 1 or are zero: even over the classes of a word, otherwise text attention."""
        meanings = self.meanings(words)
        result = torch.zeros(len(words), CLASSES)
        for row, meaning in zip(result, meanings, strict=True):
            if meaning.classes:
                row[list(meaning.classes)] = 1 / len(meaning.classes)
        other = [i for i, meaning in enumerate(meanings) if not meaning.classes and meaning.trust != "none"]
        if other:
            share = self.attention([words[i] for i in other])
            best = share.topk(ATTENDED, dim=-1)
            result[other] = torch.zeros_like(share).scatter(1, best.indices, best.values / best.values.sum(1, True))
        return result

    def meanings(self, words: Sequence[str]) -> list[Meaning]:
        """The meaning of each word, by the tables or, for words not in them, by attention."""
        found = {word: look_up(word) or _several(word) or _stuff(word) for word in dict.fromkeys(words)}
        known = {word: meaning for word, meaning in found.items() if meaning is not None and not meaning.kind}
        unsure = [word for word in found if word not in known and word not in self._guessed]
        for word, share in zip(unsure, self.attention(unsure) if unsure else (), strict=True):
            wider, guessed = found[word], _guess(word, share)
            self._guessed[word] = guessed if wider is None or guessed.trust == "good" else _nearest(wider, share)
        return [known.get(word) or self._guessed[word] for word in words]

    def alike(self, words: Sequence[str]) -> list[list[str]]:
        """Groups of two or more words with the same classes, of which only one can be found."""
        groups: dict[tuple[int, ...], list[str]] = {}
        for word, meaning in zip(words, self.meanings(words), strict=True):
            if meaning.classes:
                groups.setdefault(meaning.classes, []).append(word)
        return [group for group in groups.values() if len(group) > 1]

    def attention(self, words: Sequence[str]) -> torch.Tensor:
        """Text attention alone, (T, 1000), rows sum to 1: softmax of the cosine to each class's key over 0.1."""
        keys, mean = self._key_table
        texts = [prompt.format(word) for word in words for prompt in PROMPTS]
        query = self._encoder.encode(texts).view(len(words), len(PROMPTS), -1).mean(1)
        return (F.normalize(query - mean, dim=-1) @ keys.T / TAU).softmax(-1)

    @cached_property
    def _key_table(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit centred keys (1000, 384) and the mean key (384,)."""
        raw = self._cached_keys()
        mean = raw.mean(0)
        return F.normalize(raw - mean, dim=-1), mean

    def _cached_keys(self) -> torch.Tensor:
        """Raw keys (1000, 384) from the cache, or computed now and stored there."""
        try:
            path = cache_dir() / f"photo-keys-{digest.of_text(*_key_recipe())[:16]}.npy"
        except OSError:
            return self._make_keys()  # no cache folder: the cache only saves time
        try:
            keys = np.load(path, allow_pickle=False)
            if keys.shape == (CLASSES, minilm.DIM) and np.isfinite(keys).all():
                return torch.from_numpy(keys)
        except (OSError, ValueError, EOFError):
            pass  # absent or truncated: computed again below
        made = self._make_keys()
        buffer = io.BytesIO()
        np.save(buffer, made.numpy(), allow_pickle=False)
        with contextlib.suppress(OutputError):  # a full or read-only disk: the cache only saves time
            atomic_write(path, buffer.getvalue())
        return made

    def _make_keys(self) -> torch.Tensor:
        """L2(mean over lemmas x prompts + embedding of "names: definition"), one per class."""
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


def _nearest(meaning: Meaning, share: torch.Tensor) -> Meaning:
    """The meaning of a narrower word: the few classes of its broader word with most of its attention (1000,)."""
    classes = torch.tensor(meaning.classes)
    best = classes[share[classes].topk(min(ATTENDED, len(classes))).indices].tolist()
    return replace(meaning, classes=tuple(best), why=f"a kind of '{meaning.kind}', found only through {_names(best)}")


def _names(classes: Sequence[int]) -> str:
    return ", ".join(f"'{class_names()[index][0]}'" for index in classes[:SHOWN])


def _guess(word: str, attention: torch.Tensor) -> Meaning:
    """The meaning of a word that no table has, by its attention (1000,)."""
    best = attention.topk(TOP)
    top = best.indices.tolist()
    head, folded = by_head(word), fold(word)
    if float(best.values.sum()) >= COVERED:
        ends = (look_up(folded[k:]) for k in range(3, len(folded) - 2) if " " not in folded)
        if any(end is not None and top[0] in end.classes for end in ends):
            return Meaning("similarity", "good")
        if head is not None and len(head.classes) > 1 and top[0] in head.classes and _says_more(word):
            narrow = Meaning("similarity", "good")
            return narrow if head.why.startswith("read as") else replace(narrow, trust="weak", why=head.why)
    if head is not None:
        return head
    meant = _misspelt(folded)
    return Meaning("similarity", "weak", f"reached only by what it has in common with {_names(top)}{meant}")


def _misspelt(word: str) -> str:
    """ "; did you mean 'bicycle'?" for a word close to one of the tables, otherwise ""."""
    if len(word) < 6:
        return ""
    plain = [noun for noun in (*aliases(), *narrower()) if len(noun) > len(word) - 2]
    swapped = [noun for noun in plain if noun[0] == word[0] and sorted(noun) == sorted(word)]
    near = swapped or difflib.get_close_matches(word, plain, n=1, cutoff=SPELT)
    return f"; did you mean '{near[0]}'?" if near else ""


@lru_cache(maxsize=3)
def _shipped(name: str) -> str:
    return files("densevl.backbones.photo").joinpath(name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _descriptions() -> tuple[tuple[str, str], ...]:
    """("tench, Tinca tinca", "freshwater dace-like game fish ...") of each class, from timm's tables (WordNet).

    The tables are read from timm's folder; timm is not imported, which takes longer than labelling a photo.
    """
    synsets = _timm_table("imagenet_synsets.txt")
    lemmas, definitions = (
        dict(csv.reader(_timm_table(f"imagenet_synset_to_{what}.txt"), delimiter="\t"))
        for what in ("lemma", "definition")
    )
    return tuple((lemmas[synset], definitions[synset]) for synset in synsets)


def _timm_table(name: str) -> list[str]:
    return find_in_wheel("timm", f"data/_info/{name}", package="timm").read_text(encoding="utf-8").splitlines()


def _key_recipe() -> tuple[str, ...]:
    """Everything that the keys depend on."""
    return (minilm.WEIGHTS_SHA256, minilm.TOKENIZER_SHA256, *PROMPTS, *("\t".join(pair) for pair in _descriptions()))
