"""Boxes and points as other tools write them: normalised, with a width in place of a corner, of another size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from case import Case, cases, run
from torchvision import tv_tensors

from conftest import PHOTOS
from densevl import FewShot
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.regions.prompting import prompted
from densevl.proposals import Proposals
from densevl.proposals.simple import GridProposer
from densevl.recipes import Hints

SIZE = (48, 64)
SCENE = PHOTOS.parent / "scenes" / "water.png"
HOUSE = [12, 130, 60, 182]


def boxes(given: Any, size: tuple[int, int] = SIZE) -> Any:
    return lambda folder: Proposals.from_boxes(given, size).boxes.tolist()


def named(**regions: Any) -> Any:
    return lambda folder: RegionClassifier("mini", proposals=None)(SCENE, ["house", "fish"], **regions)


def clicked(points: Any) -> Any:
    """Points go through the checks before a model is asked."""
    return lambda folder: prompted(np.zeros((*SIZE, 3), np.uint8), points=points, proposer=GridProposer())


TABLE = (
    Case("boxes in 0-1 get no verdict", "normalised boxes", boxes([[0.1, 0.2, 0.5, 0.6]]), r"normalised.*\[64, 48, 64"),
    Case(
        "normalised boxes a little over the edge are no pixels",
        "a detector's normalised boxes",
        boxes([[-0.01, 0.2, 1.02, 0.9], [0.3, 0.3, 0.4, 0.5]]),
        "look normalised",
    ),
    Case(
        "normalised centres are not corners",
        "YOLO's label files: centre, width, height in 0-1",
        boxes([[0.5, 0.5, 0.2, 0.3]]),
        "converting them if they are centre",
    ),
    Case("whole image in 0-1", "normalised integers", boxes([[0, 0, 1, 1]]), "look normalised"),
    Case("a command takes no normalised box", "the same, typed", lambda f: run(
        "regions", SCENE, "--model", "mini", "--labels", "cat", "--box", "0.1,0.1,0.4,0.6", "--out", f, "--proposals",
        "grid"), "look normalised"),
    Case("x, y, width, height", "COCO's bbox", boxes([[1, 2, 9, 9], [40, 30, 20, 10]]), r"box 1 .*'xywh', 'xyxy'"),
    Case("no area", "a padded row of zeros", boxes([[2, 2, 9, 9], [0, 0, 0, 0]]), "box 1 .* no area; leave it out"),
    Case("a line", "x1 taken as the last pixel", boxes([[5, 5, 5, 9]]), "they are exclusive"),
    Case("outside", "boxes of a larger image", boxes([[2, 2, 9, 9], [300, 20, 400, 40]]), "box 1 .* outside .* 64x48"),
    Case("padded with -1", "a batch's padding", boxes([[2, 2, 9, 9], [-1, -1, -1, -1]]), "box 1 .* no area"),
    Case("y first", "boxes of TensorFlow", boxes([[50, 4, 60, 9], [2, 2, 62, 9]], (64, 48)), "x and y swapped all"),
    Case("one thing to the right is not y first", "a tracker's box that left the image",
         boxes([[70, 4, 80, 9]], (200, 64)), "leave it out, or scale those of another size$"),
    Case("a row of zeros alone", "padding", boxes([[0, 0, 0, 0]]), "no area"),
    Case("thinner than float32 at the right edge", "float64 corners",
         boxes([[63.9999999, 3, 64, 9], [np.nextafter(64, 0), 3, 70, 9]]),
         right=lambda got: got == [[63, 3, 64, 9]] * 2),
    Case("thin boxes at the right edge keep a pixel", "the same as masks", lambda folder: Proposals.from_boxes(
        [[np.nextafter(64, 0), 3, 70, 9]], SIZE).areas.tolist(), right=lambda areas: areas == [6]),
    Case("more boxes than memory", "a detector without NMS, a large photo",
         boxes(np.tile([[5, 5, 50, 50]], (9000, 1)), (4000, 6000)), "9,000 masks of 4000x6000 .* 4 GiB"),
    Case("boxes are the pixels they were", "masks of boxes against a slow reading", lambda folder: Proposals.from_boxes(
        [[3, 5, 9, 40], [0, 0, 64, 48], [61.2, 46.9, 64, 48]], SIZE).masks().sum((1, 2)).tolist(),
         right=lambda areas: areas == [6 * 35, 64 * 48, 3]),
    Case("partly outside is cut", "a thing at the rim", boxes([[-5, -5, 9, 9]]),
         right=lambda got: got == [[0, 0, 9, 9]]),
    Case("NaN", "a detector that overflowed", boxes([[1, 1, float("nan"), 4]]), "box 0 .* finite"),
    Case("infinity", "half precision above 65504", boxes(torch.full((1, 4), float("inf")).half()), "box 0 .* finite"),
    Case("bfloat16", "boxes of an autocast pass", boxes(torch.tensor([[1, 2, 9, 9]]).bfloat16()),
         right=lambda got: got == [[1, 2, 9, 9]]),
    Case("boxes that need a gradient", "tensors out of a model", boxes(torch.tensor([[1.0, 2, 9, 9]]).requires_grad_()),
         right=lambda got: got == [[1, 2, 9, 9]]),
    Case("one box", "(4,) for one", boxes([1, 2, 9, 9]), right=lambda got: got == [[1, 2, 9, 9]]),
    Case("no boxes", "(0, 4)", boxes(np.zeros((0, 4))), right=lambda got: got == []),
    Case("scores behind", "(N, 5)", boxes(np.ones((2, 5))), r"boxes\[:, :4\]"),
    Case("scores and classes behind", "YOLO's (N, 6)", boxes(np.ones((2, 6))), r"boxes\[:, :4\]"),
    Case("rotated", "corners (N, 8)", boxes(np.ones((2, 8))), "of four corners"),
    Case("columns for rows", "(4, N)", boxes(np.ones((4, 30))), r"boxes\.T"),
    Case("pairs of corners", "(N, 2, 2)", boxes(np.ones((3, 2, 2))), "reshape"),
    Case("a batch", "(B, N, 4)", boxes(np.ones((2, 3, 4))), "those of one image"),
    Case("text", "boxes read from a CSV file", boxes([["1", "2", "9", "9"]]), "hold text, not numbers"),
    Case("a path", "a file of boxes", boxes("boxes.txt"), "boxes are a str"),
    Case("None", "a variable forgotten", boxes(None), "boxes are a NoneType"),
    Case("a list of dicts", "annotations", boxes([{"x": 1}]), "hold objects"),
    Case("rows of unequal length", "a slip", boxes([[1, 2, 3, 4], [1, 2, 3]]), "cannot be read as one array"),
    Case("truth values", "a mask for boxes", boxes(np.ones((2, 4), bool)), "are bool"),
    Case("torchvision's boxes know their format", "tv_tensors of x, y, w, h",
         boxes(tv_tensors.BoundingBoxes([[10, 5, 20, 10]], format="XYWH", canvas_size=SIZE)),
         right=lambda got: got == [[10, 5, 30, 15]]),
    Case("torchvision's centres", "tv_tensors of cx, cy, w, h",
         boxes(tv_tensors.BoundingBoxes([[20, 10, 20, 10]], format="CXCYWH", canvas_size=SIZE)),
         right=lambda got: got == [[10, 5, 30, 15]]),
    Case("boxes of uint8 do not wrap", "small integers", boxes(np.array([[1, 2, 60, 40]], np.uint8)),
         right=lambda got: got == [[1, 2, 60, 40]]),
    Case("one thin box keeps a pixel", "less than a pixel", boxes([[1, 1, 9, 9], [3.6, 2.1, 3.9, 6]]),
         right=lambda got: len(got) == 2),
    Case("regions= takes boxes", "boxes under the other name", named(regions=np.array([HOUSE])),
         right=lambda result: result.boxes.tolist() == [HOUSE]),
    Case("regions in 0-1", "a call with normalised boxes", named(boxes=[[0.1, 0.6, 0.3, 0.9]]), "look normalised"),
    Case("examples in 0-1", "normalised boxes of few-shot examples", lambda folder: FewShot(
        "mini", "nearest", level="region").fit([(SCENE, np.array([[0.1, 0.6, 0.3, 0.9]]), ["house"])]), "normalised"),
    Case("crops in 0-1", "normalised boxes of whole-image classes", lambda folder: FewShot("mini", "nearest").fit(
        {"house": [SCENE], "fish": [SCENE]})(SCENE, boxes=[[0.1, 0.6, 0.3, 0.9]]), "normalised"),
    Case("an example to search with, outside", "a box of another photo", lambda folder: run(
        "search", PHOTOS.parent / "scenes", "--model", "mini", "--like", f"{SCENE}:500,1,600,9", "--out", folder,
        "--proposals", "grid", "--quiet"), "box 0 .* outside"),
    Case(
        "boxes of a recipe in 0-1",
        "a hint of falip",
        lambda folder: Hints(pixels=torch.zeros(1, 3, *SIZE), boxes=torch.rand(1, 4)).check(8),
        "look normalised",
    ),
    Case("points in 0-1", "normalised clicks", clicked([(0.5, 0.4)]), r"normalised.*\[64, 48\]"),
    Case("points outside", "clicks on a larger view", clicked([(5, 5), (70, 9)]), r"\(70, 9\) of prompt 1 is outside"),
    Case("points y first", "rows and columns", clicked([(9, 60)]), "x and y swapped"),
    Case("points of three numbers", "x, y, label", clicked([(9, 6, 1)]), "points of shape"),
)  # fmt: skip


@cases(*TABLE)
def test_boxes_are_of_the_image_or_refused(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)
