"""Does the photo model warn about the words that it gets wrong? One folder of photos per word, as in Caltech-101.

    python -m tools.photo_warnings --photos CALTECH/101_ObjectCategories

A word works if its ranking of all photos has an average precision of at least a half. It is warned about if `reach`
does not trust it. Own words are those of the model's names and tables, which should get no warnings; all others are
read by a broader word, their last word or similarity, and each warning says which.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch

from densevl.backbones.photo import Photo
from tools.photo_words import average_precision, evidence, logits_of

WORKS = 0.5
OWN = ("name", "table", "kind")
# Folders of Caltech-101 whose names differ from those of their things.
CALLED = {
    **{"airplanes": "airplane", "Motorbikes": "motorbike", "Leopards": "leopard", "car_side": "car", "Faces": "face"},
    **{"Faces_easy": "face", "cougar_body": "cougar", "cougar_face": "cougar", "crocodile_head": "crocodile"},
    **{"flamingo_head": "flamingo", "water_lilly": "water lily", "BACKGROUND_Google": ""},
}


class Word(NamedTuple):
    """A word, how it is reached, whether it is warned about, and the average precision of its ranking."""

    name: str
    way: str
    warned: bool
    precision: float


def measure(folder: Path, each: int, seed: int) -> list[Word]:
    """Rank `count` photos of every folder by each word."""
    model, photos, owner = Photo("cpu"), [], []
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        own = sorted(path.glob("*.jp*g"))
        photos += Random(f"{seed} {path.name}").sample(own, min(each, len(own)))
        owner += [CALLED.get(path.name, path.name.replace("_", " "))] * (len(photos) - len(owner))
    names = sorted({name for name in owner if name})
    scores_NT = evidence(logits_of(model, photos), model.encode_text(names))
    found = []
    for index, reach in enumerate(model.reach(names)):
        right_N = torch.tensor([name == reach.word for name in owner])
        precision = 0.0 if reach.trust == "none" else average_precision(scores_NT[:, index], right_N)
        found.append(Word(reach.word, reach.way, reach.trust != "good", precision))
    return found


def rates(found: Iterable[Word]) -> str:
    """Count how many words work or fail, and how many of each are warned about."""
    lines = ["| words | work | of these warned | do not | of these warned |", "|---|---|---|---|---|"]
    words = list(found)
    parts = {"own": [w for w in words if w.way in OWN], "others": [w for w in words if w.way not in OWN], "all": words}
    for name, part in parts.items():
        cells: list[str] = []
        for works in (True, False):
            own = [word for word in part if (word.precision >= WORKS) is works]
            cells += [str(len(own)), f"{100 * sum(w.warned for w in own) / max(1, len(own)):.0f} %"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder with a folder of photos for each word")
    parser.add_argument("--each", type=int, default=10, help="photos of a word")
    parser.add_argument("--seed", type=int, default=17)
    given = parser.parse_args(arguments)
    found = measure(given.photos, given.each, given.seed)
    print(rates(found))
    for word in sorted(found, key=lambda word: -word.precision):
        print(f"{word.precision:.2f} {word.name}: {word.way}{', warned' * word.warned}")


if __name__ == "__main__":
    main()
