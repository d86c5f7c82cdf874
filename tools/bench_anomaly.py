"""Measure anomaly scorings on rendered surfaces with "mini": python -m tools.bench_anomaly [--damaged 3] [--threads 1].

Two sets of materials that nothing was tuned on: "known" is half of the materials that mini was trained on (with
scratches, holes and stains, on other pictures), "unseen" is four that no shipped model ever saw. Cracks were never
trained. The adapters of "adaptclip" learn from the other half of the known materials. All pictures of a material show
parts of one surface; the first one or four flawless pictures are the references. Figures are means over materials of
metrics that pool all pixels of a material, in per cent.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from densevl import load_backbone
from densevl.backbones import Backbone
from densevl.devices import keep_memory
from densevl.drawing import contact_sheet
from densevl.evaluation.metrics.anomaly import AnomalyMetrics
from densevl.pipelines.anomaly.adaptation import Sample, train_adapters
from densevl.pipelines.anomaly.detector import AnomalyDetector
from tools.render.captions import DEFECTS
from tools.render.surfaces import TRAIN_DEFECTS, SurfaceMaker, solid_textures
from tools.render.textures import all_textures
from tools.unseen_materials import UNSEEN, unseen_surfaces

SIZE, SEED, REFERENCES = 96, 260_000, 4
SHOTS, FPR = (0, 1, 4), 0.05
SCORINGS: dict[str, dict[str, Any]] = {
    "winclip, exact windows": {"scoring": "winclip"},
    "winclip, shared windows": {"scoring": "winclip", "options": {"windows": "shared"}},
    "winclip, pooled windows": {"scoring": "winclip", "options": {"windows": "pooled"}},
    "winclip, exact, 2-3-4": {"scoring": "winclip", "options": {"scales": (2, 3, 4)}},
    "winclip, exact, sensitive": {"scoring": "winclip", "options": {"polarity": "sensitive"}},
    "winclip, exact, standard sum": {"scoring": "winclip", "options": {"fuse": "standard"}},
    "dense": {"scoring": "dense"},
    "streams": {"scoring": "streams"},
    "dino": {"scoring": "dino"},
    "dino on mini-sam": {"scoring": "dino", "proxy": "mini-sam"},
    "patchcore": {"scoring": "patchcore"},
    "adaptclip": {"scoring": "adaptclip"},
}
ALARMING = ("winclip, shared windows", "dense", "dino")
"""Of which false alarms are counted."""
COLUMNS = {"pixel AUROC": "pixel_auroc", "AUPRO": "aupro", "AP": "pixel_ap", "F1-max": "pixel_f1"}
COLUMNS |= {"image AUROC": "image_auroc"}
Picture = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Material:
    """A surface: its name, its flawless references, and test pictures with masks."""

    name: str
    references: list[np.ndarray]
    pictures: list[Picture]


def known(flawless: int, damaged: int) -> Iterator[Material]:
    """Return every second material of the renderer."""
    for texture in solid_textures()[1::2]:
        maker = SurfaceMaker(SIZE, seed=SEED + texture, textures=(texture,), variants=1)

        def picture(kind: str | None, maker: SurfaceMaker = maker, texture: int = texture) -> Picture:
            scene = maker.of(texture, kind)
            return scene.image, scene.defect

        yield _material(all_textures()[texture].surface, picture, flawless, damaged)


def unseen(flawless: int, damaged: int) -> Iterator[Material]:
    """Return the materials of `tools.unseen_materials`."""
    for index, name in enumerate(UNSEEN):
        yield _material(name, unseen_surfaces(name, SIZE, SEED + index), flawless, damaged)


def _material(name: str, picture: Any, flawless: int, damaged: int) -> Material:
    references = [picture(None)[0] for _ in range(REFERENCES)]
    pictures = [picture(None) for _ in range(flawless)] + [picture(kind) for kind in DEFECTS for _ in range(damaged)]
    return Material(name, references, pictures)


def base_set(sound: int = 8, damaged: int = 6) -> Iterator[Sample]:
    """Return the training data of adapters: the other known materials, without cracks."""
    for texture in solid_textures()[::2]:
        maker = SurfaceMaker(SIZE, seed=SEED - 500 + texture, textures=(texture,), variants=1)
        normal = maker.of(texture, None).image
        for kind in [None] * sound + list(TRAIN_DEFECTS) * damaged:
            scene = maker.of(texture, kind)
            yield Sample(scene.image, scene.defect, normal)


def judge(backbone: Backbone, materials: list[Material], shots: int, **settings: Any) -> dict[str, float] | None:
    """Return means over materials and the median CPU ms of an image; None where a scoring needs references."""
    found, times = [], []
    for material in materials:
        detector = AnomalyDetector(backbone, item=material.name, **settings)
        if not shots and not detector.scoring.is_textual:
            return None
        if shots:
            detector.fit(material.references[:shots])
        metrics = AnomalyMetrics()
        for image, mask in material.pictures:
            started = time.process_time()
            result = detector(image)
            times.append(time.process_time() - started)
            metrics.update(result.map, mask, result.score)
        found.append(metrics.compute())
    means = {key: 100 * statistics.mean(entry[key] for entry in found) for key in COLUMNS.values()}
    return {**means, "ms": 1000 * statistics.median(times), "worst": 100 * min(e["pixel_auroc"] for e in found)}


def alarms(backbone: Backbone, materials: list[Material], shots: int, **settings: Any) -> float:
    """The share of sound pictures, in per cent, over the threshold that `shots` references give for `FPR`."""
    judged = []
    for material in materials:
        detector = AnomalyDetector(backbone, item=material.name, **settings).fit(material.references[:shots])
        detector.calibrate(fpr=FPR)
        judged += [bool(detector(image).is_anomalous) for image, mask in material.pictures if not mask.any()]
    return 100 * statistics.mean(judged)


def picture(backbone: Backbone) -> np.ndarray:
    """Draw a row per material: sound part, damaged part, truth, map by words and map with one reference."""
    tiles, titles = [], []
    for number, material in enumerate((*known(0, 1), *unseen(0, 1))):
        image, mask = material.pictures[number % len(DEFECTS)]
        detector = AnomalyDetector(backbone, item=material.name, options={"windows": "shared"})
        words = detector(image)
        one = detector.fit(material.references[:1])(image)
        row = [
            material.references[0],
            image,
            np.repeat(mask[..., None], 3, 2) * np.uint8(255),
            words.overlay(),
            one.overlay(),
        ]
        tiles += [np.asarray(Image.fromarray(tile).resize((144, 144), Image.Resampling.BICUBIC)) for tile in row]
        titles += [material.name, DEFECTS[number % len(DEFECTS)], "truth", "words", "1-shot"]
    return contact_sheet(tiles, titles, columns=5, width=760)


def main() -> None:
    """Print a table per set of materials, as Markdown, or write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flawless", type=int, default=6, help="flawless test pictures per material")
    parser.add_argument("--damaged", type=int, default=3, help="damaged test pictures per material and kind")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="scorings whose name begins so")
    parser.add_argument("--alarms", action="store_true", help="count false alarms on the flawless pictures instead")
    parser.add_argument("--picture", type=Path, help="write a picture of some maps instead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()
    backbone = load_backbone("mini")
    if options.picture:
        Image.fromarray(picture(backbone)).save(options.picture, quality=80)
        return
    if options.alarms:
        materials = [*known(options.flawless, 0), *unseen(options.flawless, 0)]
        print(f"| references | {' | '.join(ALARMING)} |\n|---|" + "---|" * len(ALARMING))
        for shots in SHOTS[1:]:
            shares = [alarms(backbone, materials, shots, **SCORINGS[name]) for name in ALARMING]
            print(f"| {shots} | {' | '.join(f'{share:.0f} %' for share in shares)} |", flush=True)
        return
    if "adaptclip".startswith(options.only or ""):
        SCORINGS["adaptclip"]["adapters"] = train_adapters(backbone, base_set(), item="surface")
    for title, make in (("known", known), ("unseen", unseen)):
        materials = list(make(options.flawless, options.damaged))
        print(f"\n{title}: {', '.join(material.name for material in materials)}\n")
        print("| scoring | shots |", " | ".join(COLUMNS), "| worst material | ms |")
        print("|---|---|" + "---|" * (len(COLUMNS) + 2))
        for name, settings in SCORINGS.items():
            for shots in SHOTS if name.startswith(options.only or "") else ():
                row = judge(backbone, materials, shots, **settings)
                if row is not None:
                    figures = " | ".join(f"{row[key]:.1f}" for key in (*COLUMNS.values(), "worst"))
                    print(f"| {name} | {shots} | {figures} | {row['ms']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
