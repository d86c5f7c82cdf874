"""Analyses on predictors whose behaviour is known, and corruptions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from label_maps import written
from PIL import Image

from densevl.evaluation import EvaluationError, open_dataset
from densevl.evaluation.analyses import Analyses, Left
from densevl.evaluation.analyses.agreement import view_agreement
from densevl.evaluation.analyses.background import background_reliance
from densevl.evaluation.analyses.backgrounds import swapped_backgrounds
from densevl.evaluation.analyses.corruption import corruption_robustness
from densevl.evaluation.analyses.photos import open_photos
from densevl.evaluation.analyses.vocabulary import vocabulary_expansion
from densevl.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from densevl.evaluation.predictors import Prediction
from densevl.evaluation.report.analyses import write
from densevl.vocabulary import LabelSet
from densevl.vocabulary.background import Background


def squares(number: int, ground: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A red and a green square."""
    picture, labels = np.full((20, 20, 3), ground, np.uint8), np.zeros((20, 20), np.uint8)
    picture[2:9, 2:9] = (255, 0, 0)
    labels[2:9, 2:9] = 1
    picture[11:18, 10 + number // 2 : 18] = (0, 255, 0)
    labels[11:18, 10 + number // 2 : 18] = 2
    return picture, labels


@pytest.fixture
def dataset(tmp_path):
    """Red and green squares on black, each labelled."""
    return open_dataset("folder", written(tmp_path / "data", [squares(number) for number in range(4)]))


class Painter:
    """Sees pure colours; a third label, if there is one, takes the right half of what is green."""

    sure = 1.0
    policy = Background(("Sky", "moss green"))

    def __init__(self, labels: LabelSet) -> None:
        self.labels = labels

    def with_labels(self, labels: LabelSet) -> Painter:
        return Painter(labels)

    def __call__(self, rgb: np.ndarray) -> Prediction:
        red, green = (rgb[..., 0] > 190) & (rgb[..., 1] < 90), (rgb[..., 1] > 190) & (rgb[..., 0] < 90)
        found = np.where(red, 1, np.where(green, 2, 0)).astype(np.int16)
        if len(self.labels) > 2:
            found[:, 14:][found[:, 14:] == 2] = 3
        return Prediction(found, np.full(found.shape, self.sure, np.float32))


@pytest.fixture
def painter(dataset) -> Painter:
    return Painter(dataset.classes.labels())


def test_distractors_cost_what_they_take(dataset, painter) -> None:
    found = vocabulary_expansion(painter, dataset, ["lime", "red", "moss"], steps=(0, 1, 9))
    points = found.charts[0].series["folder"]
    assert [x for x, _ in points] == [0, 1, 2]  # "red" is a label already, and there are no nine
    assert points[0][1] == 1.0
    assert points[1][1] < 0.9
    taken = sum(np.count_nonzero(dataset[index].truth[:, 14:] == 2) for index in range(4)) / 1600
    assert found.rows[1]["taken by distractors"] == pytest.approx(taken)
    assert [row["distractor"] for row in found.tables["greediest distractors"]] == ["lime"]  # drawn first
    with pytest.raises(EvaluationError, match="every distractor"):
        vocabulary_expansion(painter, dataset, ["Red", "sky"])
    known = vocabulary_expansion(painter, dataset, ["sky", "lime", "moss green"])
    assert known.charts[0].series["folder"][-1][0] == 1  # words of the background are no distractors
    assert "sky" not in known.findings[0].advice


def test_who_sees_objects_only_does_not_rely_on_the_background(dataset, painter) -> None:
    found = background_reliance(painter, dataset)
    assert found.rows[0] == {"class": "mean", "as it is": 1.0, "background grey": 1.0, "object grey": 0.0}
    assert [row["class"] for row in found.rows] == ["mean", "red", "green"]
    assert [finding.advice for finding in found.findings] == [""]


def test_robustness_starts_at_the_clean_score_and_a_dark_photo_is_lost(dataset, painter) -> None:
    found = corruption_robustness(painter, dataset, ("dark", "noise"), (5,))
    series = found.charts[0].series
    assert series["dark"][0] == (0.0, 1.0)
    assert series["dark"][1][1] < 0.5
    assert "brightening" in found.findings[0].advice
    with pytest.raises(EvaluationError, match="severity 9"):
        corruption_robustness(painter, dataset, severities=(9,))


@pytest.mark.parametrize("sure", [0.25, 0.5, 1.0])
def test_of_constant_confidence_the_calibration_error_is_its_distance_from_accuracy(dataset, painter, sure) -> None:
    painter.sure = sure
    for row in corruption_robustness(painter, dataset, ("dark", "noise"), (3, 5)).rows:
        assert row["confidence"] == pytest.approx(sure)
        assert row["ECE"] == pytest.approx(abs(sure - row["accuracy"]))


def test_sure_of_what_is_wrong_is_told(dataset, painter) -> None:
    advice = corruption_robustness(painter, dataset, ("dark",), (5,)).findings[1].advice
    assert "as a sign of bad photos" in advice  # right on the photos as they are


class OfPlace(Painter):
    """Names all that is white by how dark the corner is."""

    def __call__(self, rgb: np.ndarray) -> Prediction:
        found = np.where(rgb[..., 2] > 250, 1 + (rgb[0, 0, 0] > 50), 0).astype(np.int16)
        return Prediction(found, np.ones(found.shape, np.float32))


def test_who_names_by_the_place_loses_objects_that_are_moved(tmp_path) -> None:
    photos = []
    for label, ground in ((1, 20), (2, 90)):
        picture, labels = np.full((20, 20, 3), ground, np.uint8), np.zeros((20, 20), np.uint8)
        picture[5:12, 5:12], labels[5:12, 5:12] = 255, label
        photos.append((picture, labels))
    dataset = open_dataset("folder", written(tmp_path / "data", photos))
    found = swapped_backgrounds(OfPlace(dataset.classes.labels()), dataset)
    assert [row["recall of objects"] for row in found.rows] == [1.0, 0.0]
    assert "by masks" in found.findings[0].advice


def test_who_sees_objects_only_keeps_them_on_any_background(dataset, painter) -> None:
    found = swapped_backgrounds(painter, dataset)
    expected = {"recall of objects": 1.0, "background named an object": 0.0, "of the place": 0.0}
    assert [{key: row[key] for key in expected} for row in found.rows] == [expected, expected]
    assert not any(finding.advice for finding in found.findings)


def test_who_sees_colours_agrees_in_all_views_and_who_sees_places_does_not(dataset, painter) -> None:
    found = {row["view"]: row for row in view_agreement(painter, dataset).rows}
    assert found["mirrored"]["same label"] == found["shifted"]["same label"] == 1.0

    class Left(Painter):
        def __call__(self, rgb: np.ndarray) -> Prediction:
            labels = np.zeros(rgb.shape[:2], np.int16)
            labels[:, : rgb.shape[1] // 2] = 1
            return Prediction(labels, np.ones(labels.shape, np.float32))

    found = view_agreement(Left(painter.labels), dataset)
    rows = {row["view"]: row["same label"] for row in found.rows}
    assert rows["mirrored"] == 0.0
    assert rows["three quarters of the size"] == pytest.approx(1, abs=0.06)
    assert "by hand" in found.findings[0].advice


def test_without_labels_answers_are_held_against_those_to_the_photo_itself(dataset, painter) -> None:
    photos = open_photos(dataset.root / "images", painter.labels)
    assert len(photos) == 4
    found = corruption_robustness(painter, photos, ("dark", "noise"), (5,))
    assert set(found.rows[0]) == {"corruption", "severity", "same answer", "confidence"}
    assert found.rows[0]["same answer"] == 1.0
    black = np.mean([(dataset[index].truth == 0).mean() for index in range(4)])
    assert found.rows[1]["same answer"] == pytest.approx(black)  # too dark, all is background
    words = vocabulary_expansion(painter, photos, ["lime"], (0, 1))
    assert words.rows[0]["same answer"] == 1.0
    assert words.rows[1]["same answer"] == pytest.approx(1 - words.rows[1]["taken by distractors"])
    assert view_agreement(painter, photos).rows[1].keys() == {"view", "same label"}


def test_an_analysis_becomes_a_page_that_needs_no_network(dataset, painter, tmp_path) -> None:
    done = (vocabulary_expansion(painter, dataset, ["lime"], (0, 1)), background_reliance(painter, dataset))
    files = write(Analyses("Analyses", "4 images", done, (Left("size", "no objects"),)), tmp_path / "out")
    assert [path.name for path in files][:2] == ["analyses.html", "analyses.json"]
    page = files[0].read_text()
    assert "http" not in page
    assert page.index("What to do") < page.index("Nothing to do") < page.index("no objects") < page.index("<svg")
    told = json.loads(files[1].read_text())
    assert told["analyses"][0]["name"] == "Vocabulary expansion"
    assert told["left out"] == [{"name": "size", "reason": "no objects"}]
    assert (tmp_path / "out/background_reliance.csv").read_text().startswith("class,as it is")
    assert (tmp_path / "out/vocabulary_expansion_greediest_distractors.csv").exists()


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
