"""Analyses on a predictor whose behaviour is known, and corruptions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densevl.evaluation import EvaluationError, open_dataset
from densevl.evaluation.analyses import background_reliance, corruption_robustness, vocabulary_expansion
from densevl.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from densevl.evaluation.predictors import Prediction
from densevl.evaluation.report.analyses import write
from densevl.vocabulary import LabelSet

NAMES = ("background", "red", "green")


@pytest.fixture
def dataset(tmp_path):
    """Red and green squares on black, each labelled."""
    root = tmp_path / "data"
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for number in range(4):
        picture, labels = np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), np.uint8)
        picture[2:9, 2:9, 0], labels[2:9, 2:9] = 255, 1
        picture[11:18, 10 + number // 2 : 18, 1], labels[11:18, 10 + number // 2 : 18] = 255, 2
        Image.fromarray(picture).save(root / f"images/{number}.png")
        Image.fromarray(labels).save(root / f"labels/{number}.png")
    (root / "names.txt").write_text("\n".join(NAMES))
    return open_dataset("folder", root)


class Painter:
    """Sees pure colours; a third label, if there is one, takes the right half of what is green."""

    def __init__(self, labels: LabelSet) -> None:
        self.labels = labels

    def with_labels(self, labels: LabelSet) -> Painter:
        return Painter(labels)

    def __call__(self, rgb: np.ndarray) -> Prediction:
        red, green = (rgb[..., 0] > 190) & (rgb[..., 1] < 90), (rgb[..., 1] > 190) & (rgb[..., 0] < 90)
        found = np.where(red, 1, np.where(green, 2, 0)).astype(np.int16)
        if len(self.labels) > 2:
            found[:, 14:][found[:, 14:] == 2] = 3
        return Prediction(found, np.ones(found.shape, np.float32))


@pytest.fixture
def painter(dataset) -> Painter:
    return Painter(dataset.classes.labels())


def test_distractors_cost_what_they_take(dataset, painter) -> None:
    found = vocabulary_expansion(painter, dataset, ["lime", "red", "moss"], steps=(0, 1, 9))
    points = found.series["folder"]
    assert [x for x, _ in points] == [0, 1, 2]  # "red" is a label already, and there are no nine
    assert points[0][1] == 1.0
    assert points[1][1] < 0.9
    with pytest.raises(EvaluationError, match="every distractor"):
        vocabulary_expansion(painter, dataset, ["Red"])


def test_who_sees_objects_only_does_not_rely_on_the_background(dataset, painter) -> None:
    rows = background_reliance(painter, dataset).rows
    assert rows[0] == {"class": "mean", "as it is": 1.0, "background grey": 1.0, "object grey": 0.0}
    assert [row["class"] for row in rows] == ["mean", "red", "green"]


def test_robustness_starts_at_the_clean_score_and_a_dark_photo_is_lost(dataset, painter) -> None:
    found = corruption_robustness(painter, dataset, ("dark", "noise"), (5,))
    assert found.series["dark"][0] == (0.0, 1.0)
    assert found.series["dark"][1][1] < 0.5
    with pytest.raises(EvaluationError, match="severity 9"):
        corruption_robustness(painter, dataset, severities=(9,))


def test_an_analysis_becomes_a_page_that_needs_no_network(dataset, painter, tmp_path) -> None:
    found = [vocabulary_expansion(painter, dataset, ["lime"], (0, 1)), background_reliance(painter, dataset)]
    files = write(found, tmp_path / "out", "Analyses")
    assert [path.name for path in files][:2] == ["analyses.html", "analyses.json"]
    assert "http" not in files[0].read_text()
    assert json.loads(files[1].read_text())["analyses"][0]["name"] == "Vocabulary expansion"
    assert (tmp_path / "out/background_reliance.csv").read_text().startswith("class,as it is")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_keeps_the_shape_repeats_and_grows(name) -> None:
    photo = np.array(Image.open(next((Path(__file__).parents[2] / "demo/images").glob("*.jpg"))).resize((70, 50)))
    changes = []
    for severity in SEVERITIES:
        one, two = corrupt(photo, name, severity, seed=1), corrupt(photo, name, severity, seed=1)
        assert one.shape == photo.shape
        assert one.dtype == np.uint8
        np.testing.assert_array_equal(one, two)
        changes.append(np.abs(one.astype(int) - photo).mean())
    assert changes == sorted(changes)
    with pytest.raises(EvaluationError, match="no corruption"):
        corrupt(photo, name + "x", 1)
