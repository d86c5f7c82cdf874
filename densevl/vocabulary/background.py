"""`Background`: the rules by which a pixel gets no label, and the benchmarks' word lists for them.

The lists are versioned data, because mIoU changes by points with them: a change makes a new version and keeps the old
one. Their words compete with the classes; a word that is also a class, synonym or negative is left out.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from numbers import Real

from densevl.errors import OptionError, suggest
from densevl.vocabulary.nouns import nouns
from densevl.vocabulary.parsing import as_list, clean
from densevl.vocabulary.reading import words_in

MAX_WORDS = 5_000
NOTHING = -1  # the label of a pixel that belongs to no class
UNKNOWN = "unknown"
REST = "1-max"
FOREGROUND = "foreground"

_OUTDOORS = ("sky", "wall", "tree", "wood", "grass", "road", "sea", "river", "mountain", "sands")
_BUILT = ("desk", "bed", "building", "cloud")
_ROOM = ("lamp", "door", "window", "wardrobe", "ceiling", "shelf", "curtain", "stair")
WORD_LISTS: dict[str, tuple[str, ...]] = {
    # VOC21, in SCLIP and later papers: 26 strings.
    "voc@1": (*_OUTDOORS, *_BUILT, *_ROOM, "floor", "hill", "rail", "fence"),
    # COCO-Object, in ProxyCLIP, Trident and CorrCLIP: 17 strings.
    "coco-object@1": (*_OUTDOORS, *_BUILT, "floor", "hill", "rail"),
    # Context60: the word itself.
    "context@1": ("background",),
}
SCENES, CHOSEN = "scenes", 5
"""The policy in which each image chooses words from a list (BIRDet), and their default number."""
# scenes@1: surfaces, then places.
PLACES: tuple[str, ...] = (
    *("sky", "clouds", "night sky", "wall", "brick wall", "stone wall", "tiled wall", "wooden wall", "floor"),
    *("carpet", "wooden floor", "tiled floor", "ceiling", "window", "door", "curtain", "shelf", "table", "desk"),
    *("tablecloth", "counter", "bed", "sofa", "cushion", "blanket", "towel", "cloth", "paper", "cardboard", "plate"),
    *("road", "street", "pavement", "asphalt", "concrete", "gravel", "cobblestone", "crosswalk", "path", "track"),
    *("rail", "platform", "fence", "gate", "stairs", "railing", "pole", "roof", "bridge", "tunnel", "building"),
    *("house", "skyscraper", "grass", "lawn", "soil", "mud", "sand", "rock", "stone", "snow", "ice", "water", "sea"),
    *("river", "lake", "pond", "swimming pool", "puddle", "beach", "shore", "harbour", "pier", "mountain", "hill"),
    *("valley", "cliff", "desert", "forest", "tree", "bush", "leaves", "flower bed", "field", "meadow", "crop"),
    *("garden", "park", "playground", "stadium", "sports court", "ski slope", "runway", "car park", "petrol station"),
    *("market", "shop", "warehouse", "factory", "office", "classroom", "library", "kitchen", "bathroom", "bedroom"),
    *("living room", "restaurant", "stage", "museum", "church", "hospital", "corridor", "metal", "wood", "plastic"),
    *("glass", "leather", "fog", "smoke", "shadow"),
)
ALONE = ("auto", "none")
"""Policies that make up a whole string."""
NEWEST = {name.split("@")[0]: name for name in WORD_LISTS}
NAMES = (*ALONE, UNKNOWN, REST, FOREGROUND, SCENES, *NEWEST, *WORD_LISTS)


@dataclass(frozen=True)
class Background:
    """Rules by which a pixel gets no label. They add up: a pixel that meets any of them is labelled nothing.

    Attributes:
        words: strings that compete with the classes; a pixel they win is labelled nothing.
        threshold: a pixel whose best probability is under this (0..1) is labelled nothing.
        unknown: let the model's own "none of these" compete, if it has one.
        rest: give background the probability 1 - max p that the best string leaves (the rule of FreeCP, there on
            refined maps). Where that is larger, so where max p < 0.5, a pixel is labelled nothing, with confidence
            1 - max p.
        foreground: label a pixel nothing where no string has 0.99 at the scale of 100 and CLIP-DINOiser's second head
            finds no object; for segmenters with its heads as their proxy.
        scenes: number of further words, chosen for each image: those of `PLACES` most similar to the whole image,
            without those that name the same thing as a label (after BIRDet, Zeng et al., 2024, where a trained network
            ranks them).
    """

    words: tuple[str, ...] = ()
    threshold: float = 0.0
    unknown: bool = False
    rest: bool = False
    foreground: bool = False
    scenes: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold < 1.0:
            raise OptionError(f"background threshold {self.threshold} is outside 0..1; it is a probability")

    @classmethod
    def parse(cls, spec: str | float | Sequence[str] | Background | None) -> Background:
        """Read a policy.

        Args:
            spec: None or "none"; a probability; words as a list, or as a file that `LabelSet.parse` reads; or a string
                of comma-separated parts, each a word, a probability, "unknown", "1-max", "foreground", "scenes" or
                "scenes:8", or a list of `WORD_LISTS` ("voc", or "voc@1" for that version): "voc, 0.1" is 26 words and a
                threshold.

        Raises:
            OptionError: a threshold is outside 0..1, a version is unknown, a name is mistyped, words are not strings or
                not separated by commas, or a file is unreadable.
        """
        if isinstance(spec, Background):
            return spec
        if spec is None or (isinstance(spec, str) and spec.strip() == "none"):
            return cls()
        if isinstance(spec, Real):
            return cls(threshold=float(spec))
        policy = cls()
        if isinstance(spec, (str, os.PathLike)):
            parts = words_in(spec, "background", OptionError)
            if len(parts) > MAX_WORDS:
                raise OptionError(f"{len(parts)} background words; the limit is {MAX_WORDS}")
            for part in parts:
                policy = policy._with(clean(part, "background", error=OptionError))
            return policy
        for word in as_list(spec, "background", error=OptionError):
            policy = policy._with_words(clean(word, "background", error=OptionError))
        return policy

    @property
    def given(self) -> set[str]:
        """The words, in lower case, that come from no list; words of lists may repeat labels, which are dropped."""
        whole = [set(words) for words in WORD_LISTS.values() if set(words) <= set(self.words)]
        return {word.casefold() for word in set(self.words).difference(*whole)}

    def _with(self, part: str) -> Background:
        name = NEWEST.get(part, part)
        if part == UNKNOWN:
            return replace(self, unknown=True)
        if part == REST:
            return replace(self, rest=True)
        if part == FOREGROUND:
            return replace(self, foreground=True)
        if part.split(":")[0] == SCENES:
            return replace(self, scenes=_count(part))
        if name in WORD_LISTS:
            return replace(self, words=(*self.words, *WORD_LISTS[name]))
        if part.split("@")[0] in NEWEST:
            raise OptionError(f"no background list '{part}'{suggest(part, WORD_LISTS)}; it is {', '.join(WORD_LISTS)}")
        try:
            return replace(self, threshold=float(part))
        except ValueError:
            if part.endswith("%"):
                raise OptionError(
                    f"background '{part}' is not a word; a threshold is a probability, such as 0.3"
                ) from None
            _no_mistyped_name(part)
            return self._with_words(part)

    def _with_words(self, text: str) -> Background:
        return replace(
            self, words=(*self.words, *(clean(word, "background", error=OptionError) for word in text.split("|")))
        )

    def free_places(self, texts: Sequence[str]) -> tuple[str, ...]:
        """The words that an image may choose: those that do not end in the noun of a text or of one of `words`."""
        taken = {_noun(text) for text in (*texts, *self.words)}
        return tuple(place for place in PLACES if _noun(place) not in taken)

    def __str__(self) -> str:
        parts = [", ".join(self.words)] * bool(self.words) + [UNKNOWN] * self.unknown + [REST] * self.rest
        parts += ["no object by the heads of CLIP-DINOiser"] * self.foreground
        parts += [f"{self.scenes} of {len(PLACES)} places, by the image"] * bool(self.scenes)
        parts += [f"probability under {self.threshold:g}"] * (self.threshold > 0)
        return "; ".join(parts) or "none"


def _count(part: str) -> int:
    """The number in "scenes:8"."""
    _, colon, number = part.partition(":")
    if not colon:
        return CHOSEN
    if not number.strip().isdecimal() or not 1 <= int(number) <= len(PLACES):
        raise OptionError(f"background '{part}': give how many places an image chooses, scenes:1 to {len(PLACES)}")
    return int(number)


def _noun(text: str) -> str:
    """The last word, in lower case and in the singular as far as removing an s gives it."""
    last = (text.casefold().split() or [""])[-1]
    return last[:-1] if len(last) > 3 and last.endswith("s") and not last.endswith("ss") else last


def _no_mistyped_name(word: str) -> None:
    """Refuse a word that is nearly one of the names, unless it is a common noun."""
    text = word.casefold()
    if text in NAMES and word != text:
        raise OptionError(f"no background '{word}' (closest: {text})")
    if text in ALONE:
        raise OptionError(f"background '{text}' stands alone; leave it out beside other words")
    near = [name for name in NAMES if len(text) > 2 and (name.startswith(text) or text.startswith(name))]
    near += [name for name in NAMES if _one_slip(text, name)]
    if near and " " not in text and text not in (noun.casefold() for noun in nouns().queries):
        raise OptionError(f"no background '{word}' (closest: {near[0]}); a word of this name goes in a list of words")


def _one_slip(word: str, name: str) -> bool:
    """Whether one letter is missing, added or changed, or two are swapped."""
    before = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(word, name, strict=False)))
    word, name = word[before:][::-1], name[before:][::-1]
    behind = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(word, name, strict=False)))
    word, name = word[behind:], name[behind:]
    return max(len(word), len(name)) <= 1 or (len(word) == 2 and word == name[::-1])
