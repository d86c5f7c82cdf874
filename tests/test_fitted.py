"""What decides a result: facts that change with it, say what differs, and hash what was loaded."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from densevl import fitted
from densevl.backbones import load_backbone
from densevl.errors import OutputError
from densevl.fitted import differing, fingerprint, identity
from densevl.pipelines.anomaly.detector import AnomalyDetector
from densevl.pipelines.fewshot.classifier import FewShot
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.segmentation.ensemble import Ensemble
from densevl.pipelines.segmentation.segmenter import Segmenter
from densevl.proposals import load_proposer

PICTURE = np.full((64, 64, 3), 90, np.uint8)
MINI = load_backbone("mini")


def fewshot(**options) -> FewShot:
    return FewShot(MINI, **options).fit({"dark": [PICTURE], "light": [PICTURE + 90]})


def ensemble(share: float) -> Ensemble:
    return Ensemble([(Segmenter(MINI), share), (Segmenter(MINI, "naclip"), 1 - share)], background="none")


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (lambda: Segmenter(MINI), lambda: Segmenter("photo"), "model 'mini' -> 'photo', weights "),
        (lambda: Segmenter(MINI), lambda: Segmenter(MINI, "naclip"), "recipe"),
        (lambda: Segmenter(MINI), lambda: Segmenter(MINI, protocol={"crop": 64}), "protocol.crop 96 -> 64"),
        (lambda: Segmenter(MINI), lambda: Segmenter(MINI, background="none"), "background.words"),
        (lambda: Segmenter(MINI), lambda: Segmenter(MINI, refine="pamr"), "refine [] -> ['pamr']"),
        (lambda: ensemble(0.5), lambda: ensemble(0.25), "members"),
        (
            lambda: RegionClassifier(MINI),
            lambda: RegionClassifier(MINI, proposals="grid"),
            "proposals 'mini-sam' -> 'grid'",
        ),
        (lambda: RegionClassifier(MINI), lambda: RegionClassifier(MINI, margin=0.5), "margin 0.0 -> 0.5"),
        (lambda: AnomalyDetector(MINI), lambda: AnomalyDetector(MINI, item="tile"), "item 'object' -> 'tile'"),
        (lambda: AnomalyDetector(MINI), lambda: AnomalyDetector(MINI).fit([PICTURE]), "memory none -> "),
        (lambda: fewshot(), lambda: fewshot(options={"alpha": 2.0}), "settings.alpha none -> 2.0"),
        (lambda: fewshot(), lambda: fewshot().partial_fit({"dark": [PICTURE + 9]}), "learned.sha256"),
    ],
)
def test_facts_are_json_equal_for_equal_settings_and_say_what_differs(one, other, said) -> None:
    first = one().facts()
    assert json.loads(json.dumps(first)) == json.loads(json.dumps(one().facts()))
    assert differing(first, first) == ""
    assert said in differing(first, other().facts())


def test_weights_changed_in_place_have_another_fingerprint() -> None:
    backbone = load_backbone("mini")
    before = fingerprint(backbone)
    assert fingerprint(backbone.at_precision("bfloat16")) == before
    with torch.no_grad():
        next(backbone.model.visual.parameters()).add_(1)
    assert fingerprint(backbone) != before


def test_a_proposer_within_a_proposer_is_named_with_its_weights_and_settings() -> None:
    found = identity(load_proposer("mini-sam", tile=64, points_per_side=4))
    assert (found["side"], found["inner"]["settings"]["points_per_side"]) == (64, 4)
    assert len(found["inner"]["weights"]) == 64


def test_a_long_list_of_differences_stays_one_short_line() -> None:
    said = differing({str(n): "x" * 500 for n in range(50)}, {"label": {"name": "a"}})
    assert len(said) < 600
    assert said.endswith("and 45 more")


@pytest.mark.parametrize("ending", [".json", ".safetensors"])
def test_a_file_of_the_user_is_replaced_only_if_asked(ending, tmp_path) -> None:
    rows, theirs = {"rows": torch.ones(2)}, tmp_path / f"head{ending}"
    theirs.write_text("{}")
    with pytest.raises(OutputError, match=r"not written by densevl .* overwrite=True$"):
        fitted.save(tmp_path / "head", "densevl-head-1", rows, {})
    assert [path.read_text() for path in tmp_path.iterdir()] == ["{}"]
    fitted.save(tmp_path / "head", "densevl-head-1", rows, {}, overwrite=True)
    fitted.save(tmp_path / "head", "densevl-head-1", rows, {})


def test_tensors_that_share_memory_are_saved_each(tmp_path) -> None:
    """Two operators of a region head hold the same rows of words."""
    rows = torch.randn(3, 4)
    fitted.save(tmp_path / "head", "kind 1", {"one": rows, "other": rows}, {})
    tensors, _ = fitted.read(tmp_path / "head", "kind 1", fitted.kind_of("head"))
    assert torch.equal(tensors["one"], rows)
    assert torch.equal(tensors["other"], rows)
