"""Recipes and settings that were read and not honoured, and results that were not the authors'."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from case import Case, cases, run

from conftest import random_clip, wrap
from densevl import AnomalyDetector, Segmenter
from densevl.backbones.proxies import DinoiserHeads
from densevl.recipes import SelfAttention, get
from densevl.recipes.features import DenseFeatures
from densevl.recipes.parts.readout import ScoredSources
from densevl.recipes.parts.stitch import JoinedFeatures
from densevl.vocabulary import TextOptions

SCENE = Path(__file__).parents[2] / "demo/scenes/wood.png"
DOUBLED = {"templates": ["a photo of a {}", "a photo of a {}", "a {}"]}
"""The list of templates that anomaly detectors share has one sentence twice."""


def _cliper_scores() -> tuple[np.ndarray, np.ndarray]:
    """Scores of two classes and a background word at one patch: densevl's, and the formula written out."""
    patch, texts = np.array([0.6, 0.5, 0.4]), np.eye(3)
    dense = DenseFeatures(
        torch.tensor(patch, dtype=torch.float32).view(1, 3, 1, 1), None, torch.zeros(1, 1, 1), (), lambda *_: None
    )
    found = ScoredSources()._compare(dense, torch.eye(3), torch.tensor([True, True, False]))
    rivals = np.vstack([texts, [[0.5**0.5, 0.5**0.5, 0]]])  # the mean of the classes, not of all words
    powers = np.exp(100 * rivals @ patch / np.linalg.norm(patch))
    return found.flatten().numpy(), (powers / powers.sum())[:3]


def _joined_is_the_window_where_there_is_one(name: str) -> bool:
    """One window: features joined over all windows are those of the window, with whatever else the recipe does."""
    clip = wrap(random_clip())
    protocol = {"short_side": 32, "crop": 32, "stride": 32}
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    plain, joined = (
        Segmenter(clip, recipe, templates="name", protocol=protocol)(image, ["cat", "dog"])
        for recipe in (get(name), replace(get(name), stitch=JoinedFeatures()))
    )
    return torch.allclose(torch.as_tensor(plain.scores), torch.as_tensor(joined.scores), atol=1e-4)


def _heads(width: int) -> DinoiserHeads:
    shapes = {"obj_proj.weight": (16, width, 3, 3), "obj_proj.bias": (16,)}
    shapes |= {"bkg_decoder.weight": (1, width, 1, 1), "bkg_decoder.bias": (1,)}
    return DinoiserHeads({name: torch.randn(*shape) for name, shape in shapes.items()})


TABLE = (
    Case(
        "background words that move CLIPer's scores of the classes",
        "words beside the classes",
        lambda folder: _cliper_scores(),
        right=lambda pair: np.allclose(*pair, atol=1e-5),
    ),
    Case(
        "a part on a recipe that leaves it unread",
        "two settings that cannot both be honoured",
        lambda folder: replace(get("falip"), stitch=JoinedFeatures()),
        refused="its box is for one image as a whole; leave stitch out",
    ),
    Case(
        "a stitched recipe in other features than its own",
        "settings that are combined for the first time",
        lambda folder: _joined_is_the_window_where_there_is_one("gem"),
        right=bool,
    ),
    Case(
        "a recipe that does nothing with its blocks",
        "a field without effect",
        lambda folder: replace(get("sclip"), attention=SelfAttention("kk"), blocks=0),
        refused="blocks is a number",
    ),
    Case(
        "a typing error in the name of a recipe",
        "a name that does not exist",
        lambda folder: run("segment", SCENE, "--labels", "penguin", "--model", "mini", "--recipe", "nacclip"),
        refused="closest: .*naclip",
    ),
    Case(
        "an empty report",
        "a choice of which none exists",
        lambda folder: run("eval", "analyse", "folder", "--root", folder, "--only", "nothing"),
        refused="no analysis 'nothing'; there are vocabulary",
    ),
    Case(
        "a mistyped choice dropped from a list",
        "a list of choices of which one does not exist",
        lambda folder: run("eval", "analyse", "folder", "--root", folder, "--only", "vocabulary,foo"),
        refused="no analysis 'foo'",
    ),
    Case(
        "a traceback for numbers that are none",
        "a list of numbers",
        lambda folder: run("bench", "--model", "mini", "--labels", "x"),
        refused="not numbers of labels",
    ),
    Case(
        "template weights that were announced and never built",
        "a value that the changelog names",
        lambda folder: TextOptions(template_weights="pixel").one_row,
        right=lambda one_row: not one_row,
    ),
    Case(
        "clusters asked of nobody",
        "a setting of another level of the library",
        lambda folder: Segmenter("mini", "cliptrase", regions="clusters"),
        refused="no setting 'regions'",
    ),
    Case(
        "a proxy class of the library refused by the pipeline",
        "a public object handed to a public argument",
        lambda folder: Segmenter("mini", "proxyclip", proxy=_heads(192)).proxy,
        right=lambda proxy: isinstance(proxy, DinoiserHeads),
    ),
    Case(
        "CLIPer on stuff with the settings of things",
        "settings that a paper has for each benchmark",
        lambda folder: get("cliper", benchmark="coco-stuff").readout,
        right=lambda readout: readout == ScoredSources(50.0, 0.2),
    ),
    Case(
        "ResCLIP with the shares of another benchmark",
        "settings that a paper has for each benchmark",
        lambda folder: [get("resclip", benchmark=name) for name in get("resclip").settings],
        right=lambda found: len(found) == 8 and len(set(map(repr, found))) > 1,
    ),
    Case(
        "the templates that everybody uses, refused",
        "a list in which one entry stands twice",
        lambda folder: AnomalyDetector("mini", states=DOUBLED).states.templates,
        right=lambda templates: len(templates) == 3,
    ),
    Case(
        "no way to give the vectors that one has",
        "embeddings in the place of words",
        lambda folder: AnomalyDetector("mini", states=torch.eye(2, 128)).prototypes,
        right=lambda rows: torch.equal(rows, torch.eye(2, 128)),
    ),
    Case(
        "vectors of another model",
        "embeddings in the place of words",
        lambda folder: AnomalyDetector("mini", states=torch.eye(2, 7)),
        refused="7 wide, the model's space is 128",
    ),
)


@cases(*TABLE)
def test_what_is_said_is_honoured_or_refused(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)
