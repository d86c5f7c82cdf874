"""The words that the photo model reaches by WordNet (densevl/backbones/photo/wordnet.json), and their accuracy.

    apt-get install wordnet-base
    python -m tools.photo_words                                     # writes the file
    python -m tools.photo_words --photos CALTECH/101_ObjectCategories   # measures words on photos, a folder for each

The 1000 ImageNet classes are nouns of WordNet 3.0 (Princeton University; its licence is in NOTICE). Its files give

- kinds: nouns with classes below them, "furniture" and "motor vehicle", with these classes. Nouns that say too little
  of a thing's looks are cut: those with too many classes, or named in `CUT`.
- under: other nouns, by a known broader word: "emu" by "ratite", "nurse" by "person", "oak" by
  "tree", if the model does not know it. Rare words, which the sentence encoder splits into many pieces, are left out.

Words in the hand-made table or the class names stay there. A noun with several senses means the first.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from random import Random
from unittest import mock

import torch
from PIL import Image

from densevl.backbones.photo import Photo, minilm, scoring, words
from densevl.files import atomic_write

WORDNET = Path("/usr/share/wordnet")  # from Debian's package wordnet-base
TARGET = Path(words.__file__).with_name("wordnet.json")
MOST = 70  # classes of a kind: the vehicles
NEAR = 60  # most classes of a kind that may stand for a narrower word
FEW = 3  # least classes of a kind of things that may do so: one thing may look unlike all others
LENGTH = 2  # words of a narrower word
PIECES = 3  # of a narrower word in the sentence encoder; rarer words have more
# Senses that are seen and those that are eaten; many animals are both.
ROOTS = (("animal#1", "artifact#1", "fungus#1", "fruit#1", "flower#1", "geological formation#1"), ("food#1", "food#2"))
# Kinds that say too little about a thing's looks.
CUT = {
    *("appliance", "area", "article", "assembly", "barrier", "building complex", "commodity", "communication system"),
    *("connection", "consumer goods", "control", "covering", "creation", "decoration", "design", "device"),
    *("durables", "electrical device", "electronic device", "electronic equipment", "equipment", "establishment"),
    *("excavation", "flavorer", "foodstuff", "framework", "horizontal surface", "implement", "ingredient"),
    *("institution", "instrument", "mechanical device", "mechanism", "medium", "memory device", "movable barrier"),
    *("nutriment", "nutrient", "obstruction", "opening", "paraphernalia", "part", "place of business", "platform"),
    *("product", "production", "protective covering", "publication", "reinforcement", "restraint"),
    *("rotating mechanism", "sheet", "starches", "structural member", "structure", "support"),
    *("supporting structure", "surface", "system", "transducer", "ware", "work"),
}


class Nouns:
    """The nouns of WordNet.

    Attributes:
        names: spelling of each sense. above, below: senses. senses: of each name in lower case, most usual first.
        counted: how many of them occur in texts. classes: of each sense, those it is or has below it.
    """

    def __init__(self, folder: Path) -> None:
        """Read `data.noun` and `index.noun`."""
        self.names: dict[int, list[str]] = {}
        self.above: dict[int, list[int]] = {}
        self.below: dict[int, list[int]] = defaultdict(list)
        for fields in _lines(folder / "data.noun"):
            sense, count = int(fields[0]), int(fields[3], 16)
            self.names[sense] = [name.replace("_", " ") for name in fields[4 : 4 + 2 * count : 2]]
            pointers = fields[5 + 2 * count :]
            self.above[sense] = [int(to) for kind, to in zip(pointers[::4], pointers[1::4], strict=True) if kind == "@"]
            for up in self.above[sense]:
                self.below[up].append(sense)
        self.senses: dict[str, list[int]] = {}
        self.counted: dict[str, int] = {}
        for fields in _lines(folder / "index.noun"):
            name, count = fields[0].replace("_", " "), int(fields[2])
            self.senses[name] = [int(sense) for sense in fields[-count:]]
            self.counted[name] = int(fields[-count - 1])
        self.classes: dict[int, set[int]] = defaultdict(set)
        for index, own in enumerate(_class_senses()):
            for sense in self.closure([own], self.above):
                self.classes[sense].add(index)

    def sense(self, name: str) -> int:
        """Return the sense of "animal#1"."""
        word, _, number = name.partition("#")
        return self.senses[word][int(number) - 1]

    def closure(self, start: Iterable[int], step: dict[int, list[int]]) -> set[int]:
        """Return senses and all that `step` leads to."""
        found: set[int] = set()
        waiting = list(start)
        while waiting:
            sense = waiting.pop()
            if sense not in found:
                found.add(sense)
                waiting += step.get(sense, [])
        return found


def _lines(path: Path) -> Iterator[list[str]]:
    """Yield the fields of the lines after the licence."""
    for line in path.read_text(encoding="latin-1").splitlines():
        if not line.startswith("  "):
            yield line.partition("|")[0].split()


def _class_senses() -> list[int]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    return [int(info.index_to_label_name(index)[1:]) for index in range(words.CLASSES)]


class Reader:
    """Which classes, or which known word, each noun means."""

    def __init__(self, nouns: Nouns) -> None:
        """Prepare the senses that may answer."""
        self._nouns = nouns
        self._roots = [nouns.closure(map(nouns.sense, roots), nouns.below) for roots in ROOTS]
        self._things = nouns.closure([nouns.sense("artifact#1")], nouns.below)
        self._people = nouns.closure([nouns.sense("person#1")], nouns.below)
        self._cut = {sense for sense, names in nouns.names.items() if self._vague(names)}
        self._physical = nouns.closure([nouns.sense("physical entity#1")], nouns.below)
        self._refused: dict[int, str] = {}
        for word in (word for word, rows in words.aliases().items() if not rows and word in nouns.senses):
            first = nouns.senses[word][0]
            below = nouns.closure([first], nouns.below)
            if first in self._physical and not any(map(self._classes, below)):
                self._refused |= dict.fromkeys(below, word)

    def kinds(self) -> dict[str, list[int]]:
        """Return the classes of words with classes below them."""
        found: dict[str, list[int]] = {}
        for sense, names in self._nouns.names.items():
            classes = sorted(self._classes(sense))
            if 0 < len(classes) <= MOST and sense not in self._cut:
                for name in map(words.fold, names):
                    if self.meant(name) == sense and _told(name) is None:
                        found[name] = classes
        return found

    def under(self, kinds: Mapping[str, Sequence[int]], names: Iterable[str] | None = None) -> dict[str, str]:
        """Return the known broader word of a narrower word, for some nouns or for all."""
        pieces = _pieces()
        found: dict[str, str] = {}
        for name in self._nouns.senses if names is None else names:
            said = name.split()
            if len(said) > LENGTH or name in kinds or not self._spelled(name) or _told(name) is not None:
                continue
            if len(words.by_form(words.kinds(), name) or ()) > 1 and name not in words.weak():
                continue
            wider = self._wider(name, kinds)
            whole = len(said) > 1 or wider == "person"
            if wider not in (None, said[-1]) and all(pieces(word) <= (1 if whole else PIECES) for word in said):
                found[name] = wider
        # The last word of a phrase already says it.
        return {name: wider for name, wider in found.items() if found.get(name.split()[-1]) != wider or " " not in name}

    def meant(self, name: str) -> int | None:
        """Return the sense of a noun: the first, but the animal before its meat."""
        senses = self._spelled(name)
        seen, eaten = self._roots
        if not self._nouns.counted.get(name):  # it has no usual sense
            senses = [sense for sense in senses if sense in self._physical]
        first = next((sense for sense in senses if sense not in eaten), None)
        if first in seen:
            return first
        return senses[0] if senses and senses[0] in eaten else None

    def _wider(self, name: str, kinds: Mapping[str, Sequence[int]]) -> str | None:
        """Return the known broader word of a noun; None if there is none near."""
        senses, meant = self._spelled(name), self.meant(name)
        if not senses:
            return None
        if senses[0] in self._people:
            # "stroller" also has a person first, but no counted text supports it.
            return "person" if " " not in name and (meant is None or self._nouns.counted[name] == 1) else None
        if senses[0] in self._refused and (meant is None or meant not in self._roots[-1]):
            return self._refused[senses[0]]
        level = [meant] if meant is not None else []
        while level:
            for sense in sorted(level, key=lambda sense: len(self._classes(sense))):
                classes = self._classes(sense)
                if sense in self._cut or len(classes) > NEAR:
                    return None
                if sense != meant and sense in self._things and len(classes) < FEW:
                    continue
                for word in map(words.fold, self._nouns.names[sense]):
                    if classes.intersection(kinds.get(word) or _told(word) or ()):
                        return word
            level = [up for sense in level for up in self._nouns.above[sense]]
        return None

    def _spelled(self, name: str) -> list[int]:
        """Return the senses of a noun without those for which it is a proper name."""
        return [sense for sense in self._nouns.senses.get(name, []) if name in self._nouns.names[sense]]

    def _classes(self, sense: int) -> set[int]:
        return self._nouns.classes.get(sense, set())

    def _vague(self, names: Iterable[str]) -> bool:
        """Tell whether a sense says too little, or is refused by the hand-made table."""
        return any(name in CUT or words.alias_rows(name) == [] for name in names)


def _told(name: str) -> list[int] | None:
    """Return the classes of a word of the hand-made table or of a class name."""
    table = words.alias_rows(name)
    return table if table is not None else words.by_form(words.named(), name)


def _pieces() -> Callable[[str], int]:
    """Return into how many pieces the sentence encoder splits a word."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm.wheel_file("tokenizer.json")))
    tokenizer.no_padding()
    return lambda word: len(tokenizer.encode(word, add_special_tokens=False).ids)


def _spans(classes: Sequence[int]) -> str:
    """Format 0, 1, 2, 7 as "0-2, 7"."""
    runs = [[i for _, i in run] for _, run in groupby(enumerate(classes), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def table(wordnet: Path) -> str:
    """Return the text of wordnet.json."""
    reader = Reader(Nouns(wordnet))
    kinds = reader.kinds()
    parts = {
        "kinds": _inverted({name: _spans(classes) for name, classes in kinds.items()}),
        "under": _inverted(reader.under(kinds)),
    }
    texts = []
    for part, found in parts.items():
        lines = (f"{json.dumps(key)}: {json.dumps(names)}" for key, names in found.items())
        texts.append(f'"{part}": {{\n' + ",\n".join(lines) + "\n}")
    return "{" + ",\n".join(texts) + "}\n"


def _inverted(table: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, key in sorted(table.items()):
        found.setdefault(key, []).append(name)
    return dict(sorted(found.items()))


def logits_of(model: Photo, photos: Sequence[Path]) -> torch.Tensor:
    """Return class logits (N, 1000) of whole photos."""
    rows = []
    for photo in photos:
        with Image.open(photo) as image:
            pixels = model.preprocess(image)[None]
        rows.append(model.encode_dense(pixels).features.mean((2, 3)))
    return torch.cat(rows)


def evidence(logits_NK: torch.Tensor, rows_TK: torch.Tensor) -> torch.Tensor:
    """Return how much of each word each photo contains (N, T): the model's own measure, over the whole photo."""
    share_TK = rows_TK / rows_TK.sum(1, keepdim=True)
    breadth_T = scoring.BREADTH * -share_TK.square().sum(1).log()
    return torch.stack([(logits_NK + share_K.log()).logsumexp(1) for share_K in share_TK], 1) + breadth_T


def average_precision(scores_N: torch.Tensor, right_N: torch.Tensor) -> float:
    """Return the average precision of a ranking of photos."""
    hits = right_N[scores_N.argsort(descending=True)].double()
    return float((hits.cumsum(0) / torch.arange(1, len(hits) + 1) * hits).sum() / hits.sum())


def measure(folder: Path, nouns: Nouns, each: int, seed: int) -> str:
    """Return a table of words' accuracy with and without wordnet.json, on photos in a folder for each word."""
    held = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir()}
    model, photos, owner = Photo("cpu"), [], []
    for name, path in held.items():
        own = sorted(path.glob("*.jp*g"))
        photos += Random(f"{seed} {name}").sample(own, min(each, len(own)))
        owner += [words.fold(name)] * (len(photos) - len(owner))
    logits_NK = logits_of(model, photos)
    asked = {name: {name} for name in dict.fromkeys(owner)}
    reader = Reader(nouns)
    senses = {name: reader.meant(name) for name in asked}
    for kind in words.wider():
        below = nouns.closure([sense for sense in [reader.meant(kind)] if sense is not None], nouns.below)
        own = {name for name, sense in senses.items() if sense in below}
        if len(own) > 1 and kind not in asked:
            asked[kind] = own
    after = dict(zip(asked, model.reach(list(asked)), strict=True))
    changed = [word for word in asked if after[word].way == "broader" or word in words.wider()]
    now = evidence(logits_NK, model.encode_text(changed))
    for cached in (words.wider, words.narrower):
        cached.cache_clear()
    with mock.patch.object(words, "_wordnet", return_value={"kinds": {}, "under": {}}):
        plain = words.Lexicon()
        before, was = evidence(logits_NK, plain.rows(changed)), plain.meanings(changed)
    lines = ["| word | reached | AP before | AP now |", "|---|---|---|---|"]
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for index, word in enumerate(changed):
        right = torch.tensor([name in asked[word] for name in owner])
        pair = average_precision(before[:, index], right), average_precision(now[:, index], right)
        found[after[word].way].append(pair)
        way = after[word].way + ", warned" * (after[word].trust != "good")
        lines.append(f"| {word} | {was[index].way}, now {way} | {pair[0]:.2f} | {pair[1]:.2f} |")
    for way, pairs in found.items():
        first, second = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        lines.append(f"| mean of {len(pairs)} | {way} | {first:.3f} | {second:.3f} |")
    return "\n".join([f"{len(photos)} photos of {len(held)} folders, seed {seed}", *lines])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wordnet", type=Path, default=WORDNET)
    parser.add_argument("--photos", type=Path, help="a folder with a folder of photos for each word")
    parser.add_argument("--each", type=int, default=10, help="photos of a word")
    parser.add_argument("--seed", type=int, default=17)
    given = parser.parse_args(arguments)
    if given.photos:
        print(measure(given.photos, Nouns(given.wordnet), given.each, given.seed))
        return
    text = table(given.wordnet)
    atomic_write(TARGET, text.encode())
    print(f"wrote {TARGET.name}, {len(text)} bytes")


if __name__ == "__main__":
    main()
