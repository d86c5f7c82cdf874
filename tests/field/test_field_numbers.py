"""Numbers that are none: damaged weights, half precision that overflows, one class only, nothing to divide by."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from case import Case, cases, run
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.metrics import average_precision_score, roc_auc_score

import densevl
from densevl import AnomalyDetector, FewShot, RegionClassifier, Segmenter
from densevl.anomaly.memory.nearest import NearestMemory
from densevl.anomaly.scoring import get_scoring
from densevl.backbones.open_clip_model import OpenClipBackbone
from densevl.backbones.protocol import InferenceProtocol
from densevl.evaluation import Experiment, evaluate
from densevl.evaluation.metrics import anomaly
from densevl.evaluation.metrics.average_precision import average_precision
from densevl.evaluation.metrics.calibration import calibration, calibration_counts
from densevl.evaluation.metrics.confusion import confusion, measures
from densevl.evaluation.metrics.panoptic import panoptic_counts, panoptic_quality
from densevl.fewshot.calibration import Calibration
from densevl.files import json_text
from densevl.vocabulary.template_weights import template_weights
from tests.conftest import random_clip, wrap
from tests.evaluation.region_miniatures import make_instances, make_panoptic

PHOTO = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)
NAN, INF = float("nan"), float("inf")
WORDS = ["cat", "dog"]


def _spoilt(part: str, value: float) -> OpenClipBackbone:
    """A model of which some weights hold a value."""
    model = random_clip()
    for name, parameter in model.named_parameters():
        if name.startswith(part):
            parameter.fill_(value)
    return wrap(model, "spoilt")


def _mini_file(folder: Path, value: float) -> Path:
    """The shipped model as a file, one number of it replaced."""
    with safe_open(Path(densevl.__file__).parent / "weights/mini.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        header = file.metadata()
    first = next(key for key, tensor in tensors.items() if tensor.is_floating_point() and tensor.ndim > 1)
    tensors[first] = tensors[first].clone()
    tensors[first].view(-1)[3] = value
    save_file(tensors, folder / "mini.safetensors", header)
    return folder / "mini.safetensors"


def _fit(model: OpenClipBackbone, scoring: str) -> Any:
    return AnomalyDetector(model, scoring).fit([PHOTO, PHOTO[::-1].copy()])


IMAGE, TEXT = "visual.transformer.resblocks.6", "token_embedding"
FIRST = "visual.transformer.resblocks.0"
MODELS = (
    Case(
        "a weights file with NaN",
        "training diverged",
        lambda folder: Segmenter("mini", weights=_mini_file(folder, NAN)),
        refused=r"mini.safetensors'? .*holds NaN or infinite numbers in 1 of \d+ tensors",
    ),
    Case(
        "a weights file with infinity",
        "a file saved in half precision that overflowed",
        lambda folder: Segmenter("mini", weights=_mini_file(folder, INF)),
        refused="holds NaN or infinite numbers",
    ),
    Case(
        "a text tower of NaN",
        "a model of one's own",
        lambda folder: Segmenter(_spoilt(TEXT, NAN))(PHOTO, WORDS),
        refused="text embeddings of model 'spoilt' are NaN or infinite",
    ),
    Case(
        "a text tower of zeros",
        "weights that were never loaded",
        lambda folder: Segmenter(_spoilt("text_projection", 0.0))(PHOTO, WORDS),
        refused="model 'spoilt' gives a text embedding of zeros",
    ),
    *(
        Case(f"an image tower of {value} in {use}", "a model of one's own", made, refused=said)
        for value, spoil in (("NaN", NAN), ("infinity", INF))
        for use, said, made in (
            (
                "segment",
                "scores of model 'spoilt' are NaN or infinite",
                lambda folder, spoil=spoil: Segmenter(_spoilt(FIRST, spoil), "vanilla")(PHOTO, WORDS),
            ),
            (
                "regions",
                "vectors of regions, by '.*', of model 'spoilt' are NaN",
                lambda folder, spoil=spoil: RegionClassifier(_spoilt(FIRST, spoil), proposals="grid")(PHOTO, WORDS),
            ),
            (
                "classify",
                "image embeddings of model 'spoilt' are NaN",
                lambda folder, spoil=spoil: FewShot(_spoilt(FIRST, spoil))(PHOTO, WORDS),
            ),
            (
                "few-shot",
                "image embeddings of model 'spoilt' are NaN|features hold zeros or numbers that are not finite",
                lambda folder, spoil=spoil: FewShot(_spoilt(FIRST, spoil)).fit({"cat": [PHOTO], "dog": [PHOTO]}),
            ),
            (
                "anomaly by words",
                "anomaly maps of model 'spoilt' are NaN",
                lambda folder, spoil=spoil: AnomalyDetector(_spoilt(FIRST, spoil), "dense")(PHOTO),
            ),
            (
                "anomaly by images",
                "features of the normal images are NaN",
                lambda folder, spoil=spoil: _fit(_spoilt(FIRST, spoil), "dino"),
            ),
        )
    ),
    Case(
        "scores of regions without a winner",
        "an image tower of zeros",
        lambda folder: RegionClassifier(_spoilt("visual.proj", 0.0), "pool", proposals="grid")(PHOTO, WORDS),
        warned="all 2 words score the same everywhere",
    ),
    Case(
        "scores of whole images without a winner",
        "an image tower of zeros",
        lambda folder: FewShot(_spoilt("visual.proj", 0.0))(PHOTO, WORDS),
        warned="all 2 words score the same everywhere",
    ),
    Case(
        "scores without a winner",
        "an image tower of zeros",
        lambda folder: Segmenter(_spoilt("visual.proj", 0.0), "vanilla")(PHOTO, WORDS),
        warned="all 2 words score the same everywhere",
        right=lambda result: set(np.unique(result.labels)) == {0},
    ),
    Case(
        "a logit scale that overflows",
        "weights of another kind",
        lambda folder: _spoilt("logit_scale", 1e4),
        refused="model 'spoilt' has a logit scale of inf",
    ),
)


@cases(*MODELS)
def test_a_model_that_computes_no_numbers_is_named(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)


SETTINGS = tuple(
    Case(
        f"{what} of {value}",
        "a setting that divides or multiplies scores",
        lambda folder, f=made, v=value: f(v),
        refused=what,
    )
    for what, made in (
        ("logit_scale", lambda value: InferenceProtocol(logit_scale=value)),
        ("calibration", lambda value: InferenceProtocol(calibration=(value, 0.0))),
        ("temperature", lambda value: Calibration(temperature=value)),
        ("temperature", lambda value: get_scoring("winclip", temperature=value)),
        ("temperature", lambda value: template_weights(torch.zeros(1, 2, 3), temperature=value)),
    )
    for value in (0.0, -1.0, INF, NAN)
)


@pytest.mark.parametrize("case", SETTINGS)
def test_a_scale_is_above_zero_and_finite(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)


OTHERS = (
    Case(
        "a memory of NaN", "features of one's own", lambda _: NearestMemory.of([torch.full((3, 4), NAN)]), refused="NaN"
    ),
    Case(
        "calibration on NaN",
        "logits of one's own",
        lambda _: Calibration.of(torch.full((3, 2), NAN), torch.zeros(3, dtype=torch.long), 0.1),
        refused="logits are NaN or infinite",
    ),
    *(
        Case(f"one pixel in {use}", "an image of 1x1", made, right=lambda found: found)
        for use, made in (
            ("segment", lambda _: Segmenter("mini")(PHOTO[:1, :1], ["penguin", "pizza"]).labels.shape == (1, 1)),
            (
                "regions",
                lambda _: len(RegionClassifier("mini", proposals="grid")(PHOTO[:1, :1], ["penguin", "pizza"])) >= 0,
            ),
            ("classify", lambda _: math.isfinite(FewShot("mini")(PHOTO[:1, :1], ["penguin", "pizza"]).confidence)),
            ("anomaly", lambda _: math.isfinite(AnomalyDetector("mini", "dense")(PHOTO[:1, :1]).score)),
        )
    ),
    Case(
        "one label alone",
        "one word, nothing beside it",
        lambda _: Segmenter("mini")(PHOTO, ["penguin"], background="none"),
        warned="penguin",
    ),
)


@cases(*OTHERS)
def test_inputs_of_hardly_anything_are_right_or_refused(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)


def _pixels(seed: int, count: int = 4) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    masks = rng.random((count, 32, 32)) < 0.1
    return (rng.normal(size=masks.shape) + masks).astype(np.float32), masks


def _counted(maps: Any, masks: Any) -> dict[str, float]:
    metrics = anomaly.AnomalyMetrics()
    for scores, mask in zip(maps, masks, strict=True):
        metrics.update(scores, mask, float(scores.max()))
    return metrics.compute()


def test_streaming_auroc_is_exact_below_its_size_as_scikit_learn_has_it() -> None:
    maps, masks = _pixels(0)
    maps = np.round(maps, 1)  # ties
    found = _counted(maps, masks)
    assert abs(found["pixel_auroc"] - roc_auc_score(masks.ravel(), maps.ravel())) < 1e-12
    assert abs(found["pixel_ap"] - average_precision_score(masks.ravel(), maps.ravel())) < 1e-12
    assert found["pixel_auroc_error"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_streaming_auroc_is_within_the_error_that_it_says(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anomaly, "EXACT", 1000)
    monkeypatch.setattr(anomaly, "WAITING", 500)
    maps, masks = _pixels(seed, 12)
    found = _counted(maps, masks)
    apart = abs(found["pixel_auroc"] - roc_auc_score(masks.ravel(), maps.ravel()))
    assert 0 < apart <= found["pixel_auroc_error"] < 2e-3


def test_merged_workers_are_exact_too() -> None:
    maps, masks = _pixels(3)
    whole, parts = _counted(maps, masks), [anomaly.AnomalyMetrics() for _ in range(2)]
    for index, (scores, mask) in enumerate(zip(maps, masks, strict=True)):
        parts[index % 2].update(scores, mask, float(scores.max()))
    parts[0].merge(parts[1])
    assert parts[0].compute() == pytest.approx(whole, nan_ok=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AUROC of one class", lambda: _sound("pixel_auroc")),
        ("AP of one class", lambda: _sound("pixel_ap")),
        ("AUROC of images of one class", lambda: _sound("image_auroc")),
        ("PRO without defects", lambda: _sound("aupro")),
        ("mIoU of no class", lambda: measures(confusion(np.full((2, 2), -1), np.zeros((2, 2), int), 3))["mIoU"]),
        ("accuracy of no pixels", lambda: measures(np.zeros((4, 4), np.int64))["aAcc"]),
        ("fwIoU of no pixels", lambda: measures(np.zeros((4, 4), np.int64))["fwIoU"]),
        ("PQ without segments", lambda: panoptic_quality(_no_segments())["PQ"]),
        ("AP without truth", lambda: average_precision(_no_objects(), [])[0]["AP"]),
        ("calibration of nothing", lambda: calibration(calibration_counts(*[np.full((1, 1), -1.0)] * 3))["ECE"]),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_measure_of_nothing_is_not_a_number_and_no_warning_of_numpy(name: str, value: Callable[[], float]) -> None:
    assert math.isnan(value()), name


def _sound(measure: str) -> float:
    maps, masks = _pixels(0)
    return _counted(maps, masks & False)[measure]


def _no_segments() -> Any:
    return panoptic_counts(np.zeros((2, 2), int), (), np.zeros((2, 2), int), (), 3)


def _no_objects() -> dict[str, Any]:
    return {"images": [{"id": 1, "height": 4, "width": 4}], "categories": [{"id": 1, "name": "cat"}], "annotations": []}


def test_calibration_of_one_bin_is_its_one_gap() -> None:
    counts = calibration_counts(np.zeros((2, 2)), np.array([[0, 0], [0, 1]]), np.full((2, 2), 0.5), bins=1)
    assert calibration(counts)["ECE"] == calibration(counts)["MCE"] == pytest.approx(0.25)


def test_json_has_no_nan() -> None:
    text = json_text({"a": NAN, "b": [INF, -INF, 1.5], "c": {"d": (NAN, "x")}})
    assert json.loads(text) == {"a": None, "b": [None, None, 1.5], "c": {"d": [None, "x"]}}


def _without_objects(folder: Path) -> Experiment:
    make_instances("folder", folder)
    path = folder / "instances.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    return Experiment("folder", root=str(folder), task="instance", model="mini", proposals="grid")


def _one_kind(folder: Path) -> Experiment:
    for place in ("test/dent", "ground_truth/dent"):
        (folder / "cup" / place).mkdir(parents=True)
    Image.fromarray(PHOTO).save(folder / "cup/test/dent/0.png")
    mask = np.zeros(PHOTO.shape[:2], np.uint8)
    mask[:8, :8] = 255
    Image.fromarray(mask).save(folder / "cup/ground_truth/dent/0_mask.png")
    return Experiment("mvtec", root=str(folder), model="mini", scoring="dense")


@pytest.mark.parametrize(
    ("made", "absent", "why"),
    [
        (_without_objects, "AP", "the truth has no objects"),
        (_one_kind, "image_auroc", "no category has both flawless and damaged images"),
    ],
)
def test_what_cannot_be_computed_is_na_with_its_reason(made: Any, absent: str, why: str, tmp_path: Path) -> None:
    told: list[str] = []
    outcome, files = evaluate(made(tmp_path / "data"), tmp_path / "out", quiet=True, tell=told.append)
    facts = json.loads((tmp_path / "out/results.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert facts["measures"][absent] is None
    assert facts["n/a"][absent] == why
    assert outcome.undefined[absent] == why
    assert sum(text.startswith("n/a: ") and why in text for text in told) == 1
    assert why in files[0].read_text()
    assert "nan" not in (outcome.headline + outcome.table()).casefold()


def test_a_command_prints_na_and_null(tmp_path: Path) -> None:
    _without_objects(tmp_path / "data")
    asked = ("folder", "--root", tmp_path / "data", "--task", "instance", "--model", "mini", "--proposals", "grid")
    said = run("eval", "run", *asked, "--out", tmp_path / "out")
    assert "AP n/a (the truth has no objects)" in said.out
    told = run("eval", "run", *asked, "--out", tmp_path / "out", "--json")
    assert json.loads(told.out)["measures"]["AP"] is None


def test_panoptic_maps_of_nothing_are_na(tmp_path: Path) -> None:
    make_panoptic("folder", tmp_path / "data")
    asked = Experiment("folder", root=str(tmp_path / "data"), task="panoptic", model="mini", proposals="grid", limit=1)
    outcome, _ = evaluate(asked, tmp_path / "out", quiet=True)
    assert all(math.isfinite(value) or outcome.undefined[name] for name, value in outcome.summary.items())
