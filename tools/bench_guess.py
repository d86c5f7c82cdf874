"""How well can settings be judged without labels? Agreement with most methods and with oneself, beside mIoU.

    python -m tools.bench_guess --root data/benchmark/scenes --images 16

Every recipe that the model runs labels the pictures. For each, this prints its mIoU, its agreement (mIoU too) with the
most frequent label of all of them, each with six backgrounds, which `densevl tune` uses without ground truth, and its
agreement with itself on the mirrored pictures. At the end: how each of the two ranks the recipes (Spearman's
correlation with mIoU), and the mIoU of the recipe that it ranks first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from densevl.backbones import load_backbone
from densevl.tuning.candidates import Candidate
from densevl.tuning.guessing import AgreementCounter, majority
from densevl.tuning.pictures import open_pictures
from densevl.tuning.scores import mean_iou


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a folder with label maps")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--images", type=int, default=16)
    given = parser.parse_args()
    counter = AgreementCounter(load_backbone(given.model), open_pictures(given.root, limit=given.images))
    plain = [juror for juror in counter.jury if juror["background"] == "auto"]
    total = {juror: np.zeros((3, 3, counter.classes), np.int64) for juror in plain}
    for index in range(len(counter.pictures)):
        rgb, truth = counter.pictures.read(index)
        found = counter.verdicts(rgb)
        most = majority(list(found.values()))
        for juror in plain:
            labels, mirrored = (
                found[juror],
                counter.maps(np.ascontiguousarray(rgb[:, ::-1]), [juror])[juror][0][:, ::-1],
            )
            total[juror] += np.stack([counter.against(own, labels) for own in (truth, most, mirrored)])
    report({juror: mean_iou(counts) for juror, counts in total.items()})


def report(values: dict[Candidate, np.ndarray]) -> None:
    """Print mIoU, agreement with most and with oneself by recipe, best first."""
    print("| recipe | mIoU | agreement with most | with itself, mirrored |", "|---|---|---|---|", sep="\n")
    for juror, row in sorted(values.items(), key=lambda pair: -pair[1][0]):
        cells = " | ".join(f"{100 * value:.1f}" for value in row)
        print(f"| {juror['recipe'] or 'the default'} | {cells} |")
    table = np.array(list(values.values()))
    for name, column in (("most", 1), ("itself", 2)):
        rho = spearmanr(table[:, column], table[:, 0])[0]
        first = table[table[:, column].argmax(), 0]
        print(f"agreement with {name}: rank correlation {rho:.2f}, first by it has mIoU {100 * first:.1f}")


if __name__ == "__main__":
    main()
