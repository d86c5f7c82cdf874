"""Measure `densevl explain`: python -m tools.bench_explain where --benchmark DIR, or time.

`where` reads the rendered benchmark (python -m tools.render benchmark --out DIR --style twemoji). For every object of a
scene it finds the largest value of the map, and reports the per cent of objects that contain it (the pointing game,
Zhang et al., IJCV 2018), beside the share of the picture that they cover. Pairs take a caption that names the objects,
and fewer scenes, as they take longer. `time` times each explanation of one picture in one thread, without loading; runs
are interleaved, figures are medians.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from densevl import FeatureExtractor
from densevl.benchmarking.clock import medians
from densevl.benchmarking.random_model import load
from densevl.images import read_image
from densevl.pipelines.explanation.explainer import Explainer

DEMO = Path(__file__).parents[1] / "demo" / "scenes"
CAPTION = "a penguin and a pizza on wood"


def scenes(folder: Path, most: int) -> Iterator[tuple[np.ndarray, np.ndarray, list[str]]]:
    """Return pictures, label maps, and the names of the labels."""
    names = json.loads((folder / "names.json").read_text())["nouns"]
    for row in json.loads((folder / "scenes" / "instances.json").read_text())["images"][:most]:
        labels = np.array(Image.open(folder / "scenes" / "labels" / row["file_name"]))
        yield read_image(folder / "scenes" / "images" / row["file_name"]), labels, names


def points_at(map_hw: np.ndarray, mask: np.ndarray) -> bool:
    """Tell whether the largest value of a map, at its cell's centre, lies in a mask."""
    row, column = np.unravel_index(int(np.argmax(map_hw)), map_hw.shape)
    height, width = mask.shape
    return bool(mask[int((row + 0.5) * height / map_hw.shape[0]), int((column + 0.5) * width / map_hw.shape[1])])


def where(folder: Path, most: int, paired: int) -> dict[str, float]:
    """Return the per cent of objects that each map points at."""
    explain, features = Explainer("mini"), FeatureExtractor("mini")
    hits, cover = defaultdict[str, list[bool]](list), []
    for number, (rgb, labels, names) in enumerate(scenes(folder, most)):
        caption = "a " + " and a ".join(names[own] for own in np.unique(labels[labels > 0]))
        blocks = (1, 2, 3) if number < paired else ()
        found = {f"pairs, text block {block}": explain.pairs(rgb, caption, text_block=block) for block in blocks}
        dense = features(rgb)
        for own in np.unique(labels[labels > 0]):
            name, mask = names[own], labels == own
            others = [other for other in names[1:] if other != name]
            maps = {
                "patches": explain(rgb, name).map,
                "patches, against the other nouns": explain(rgb, name, against=others).map,
                "last block's heads, against the other nouns": explain.heads(
                    rgb, name, against=others, blocks=-1
                ).maps.sum((0, 1)),
                "dense features, against the other nouns": np.subtract(
                    *(dense.score(words).mean(0) for words in ([name], others))
                ),
            }
            maps |= {key: pairs.span(name) for key, pairs in found.items()}
            for key, map_hw in maps.items():
                hits[key].append(points_at(map_hw, mask))
            cover.append(float(mask.mean()))
    figures = {f"{key}, of {len(own)}": 100 * float(np.mean(own)) for key, own in hits.items()}
    return {"share of the picture": 100 * float(np.mean(cover)), **figures}


def times(model: str, rounds: int) -> dict[str, float]:
    """Time each explanation of one picture in seconds."""
    explain = Explainer(load(model), templates="simple")  # otherwise the words take longer than the explanation
    rgb = read_image(DEMO / "wood.png")
    calls: dict[str, Any] = {
        "patches": lambda: explain(rgb, "penguin"),
        "heads": lambda: explain.heads(rgb, "penguin"),
        "pairs": lambda: explain.pairs(rgb, CAPTION),
        "words of a head, 3 pictures, 20 words": lambda: explain.head_texts(
            DEMO, [f"noun{number}" for number in range(20)], block=explain.depth, head=1
        ),
    }
    return medians(calls, rounds, torch.device("cpu"))


def main() -> None:
    """Print one figure per line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    one = commands.add_parser("where")
    one.add_argument("--benchmark", type=Path, required=True)
    one.add_argument("--scenes", type=int, default=100)
    one.add_argument("--pairs", type=int, default=10, help="of which pairs are made, too")
    two = commands.add_parser("time")
    two.add_argument("--model", default="mini", help="as densevl bench takes it: random:ViT-B-16")
    two.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = (
        where(given.benchmark, given.scenes, given.pairs) if given.what == "where" else times(given.model, given.rounds)
    )
    for name, value in found.items():
        print(f"{name:60} {value:8.2f}")


if __name__ == "__main__":
    main()
