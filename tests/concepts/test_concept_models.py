"""SAM 3 and CLIPSeg behind one contract: against transformers' own calls, in float64, and the rule written out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from concept_folders import FOLDERS
from conftest import close
from densevl import Concepts, load_proposer
from densevl.concepts import Judged, concept_kind, load_concepts
from densevl.errors import (
    DensevlError,
    LabelError,
    MissingExtraError,
    ModelError,
    OptionError,
    ProposalError,
    WeightsError,
)
from densevl.vocabulary import Background

TEXTS = ["cat", "dog", "puppy", "red car", "sky", "grass"]
LABELS = ["cat", "dog | puppy", "sky"]


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request, tmp_path_factory) -> Path:
    return FOLDERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def model(folder):
    return load_concepts(folder)


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)


def joined(parts) -> Judged:
    parts = list(parts)
    return Judged(*(torch.cat([getattr(p, n) for p in parts]) for n in ("places", "presence", "masks", "sure")))


def test_cached_photos_and_texts_are_the_full_call(folder, rgb) -> None:
    """Each text alone through transformers' own forward, photo and all."""
    model = load_concepts(folder)
    model.module.double()
    found = joined(model.judgements(rgb, TEXTS))
    pixels = model.pixels(rgb)
    assert pixels.dtype == torch.float64
    for index, text in enumerate(TEXTS):
        settings = {"padding": "max_length", "max_length": 32} if model.kind == "sam3" else {}
        given = model._tokenizer([text], return_tensors="pt", **settings)
        with torch.no_grad():
            own = model.module(pixel_values=pixels, input_ids=given.input_ids, attention_mask=given.attention_mask)
        if model.kind == "clipseg":
            close(found.places[index], own.logits.reshape(found.places[index].shape))
            continue
        close(found.places[index], own.semantic_seg[0, 0])
        close(found.presence[index], own.presence_logits.sigmoid().reshape(()))
        close(found.masks[index], own.pred_masks[0])
        close(found.sure[index], own.pred_logits[0].sigmoid())


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("least", [0.0, 0.2, 0.5, 0.99], ids=["all", "most", "some", "none"])
@pytest.mark.parametrize("instances", [0, 1, 4])
def test_strength_is_the_rule_written_out(compat, least, instances) -> None:
    judged = Judged(
        torch.randn(3, 4, 5).double(), torch.rand(3).double(), torch.randn(3, instances, 4, 5).double(),
        torch.rand(3, instances).double(),
    )  # fmt: skip
    got = judged.strength(least, compat=compat)
    for text in range(3):
        presence = float(judged.presence[text])
        for y in range(4):
            for x in range(5):
                things = [
                    presence * float(judged.sure[text, q]) * sigmoid(float(judged.masks[text, q, y, x]))
                    for q in range(instances)
                    if presence * float(judged.sure[text, q]) > least
                ]
                place = sigmoid(float(judged.places[text, y, x]))
                want = presence * max([place, *things]) if compat else max([presence * place, *things])
                assert abs(float(got[text, y, x]) - want) < 1e-12


def test_one_word_more_changes_no_other(model, rgb) -> None:
    few, many = Concepts(model)(rgb, LABELS), Concepts(model)(rgb, [*LABELS, "grass", "car"])
    close(few.scores, many.scores[:3])
    assert few.scores.min() >= 0
    assert few.scores.max() <= 1


def test_labels_are_the_best_class_and_confidence_its_own(model, rgb) -> None:
    result = Concepts(model, background="none")(rgb, LABELS)
    assert (result.labels == result.scores.argmax(0)).all()
    close(result.confidence, result.scores.max(0))
    alone = Concepts(model)(rgb, ["dog"]), Concepts(model)(rgb, ["puppy"])
    close(result.scores[1], np.maximum(alone[0].scores[0], alone[1].scores[0]), tolerance=0.05, why="resized apart")


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
def test_under_the_threshold_nothing_is_there(model, rgb, threshold) -> None:
    result = Concepts(model, background=threshold)(rgb, LABELS)
    best = result.scores.max(0)
    assert ((result.labels == -1) == (best < threshold)).all()
    close(result.confidence[result.labels == -1], 1 - best[result.labels == -1])


def test_background_words_and_negatives_take_what_they_win(model, rgb) -> None:
    result = Concepts(model, background=["grass"])(rgb, ["cat", "sky | not: tree"])
    others = Concepts(model)(rgb, ["grass | tree"]).scores[0]
    assert ((result.labels == -1) == (others > result.scores.max(0))).mean() > 0.98
    assert result.at(0, 0)


def test_a_call_and_many_are_alike_and_words_are_encoded_once(model, rgb, monkeypatch) -> None:
    segment = Concepts(model)
    one = segment(rgb, LABELS)
    monkeypatch.setattr(type(model), "encode", lambda *_: pytest.fail("encoded again"))
    (two,) = segment.many([rgb], LABELS)
    assert (one.labels == two.labels).all()
    assert json.dumps(segment.facts())


def test_a_prefilter_judges_the_nearest_classes_alone(model, tiny, rgb) -> None:
    words = ["cat", "dog", "sky", "grass", "tree"]
    result = Concepts(model, prefilter=2, prefilter_model=tiny, background="none")(rgb, words)
    asked = [name for name in words if name not in result.meta["unasked"]]
    assert len(asked) == 2
    assert set(result.fractions()) - {"nothing"} == set(words)
    whole = Concepts(model, background="none")(rgb, words)
    for index, name in enumerate(words):
        close(result.scores[index], whole.scores[index] if name in asked else 0.0)


def test_masks_are_proposed_for_words(folder, rgb) -> None:
    found = load_proposer(f"concepts:{folder}", words=["cat", "sky"], least=0.01)(rgb)
    assert found.size == (40, 70)
    assert (np.diff(found.quality) <= 1e-6).all()
    assert len(load_proposer(f"concepts:{folder}", words=["cat"], least=0.999999)(rgb)) in (0, 1)
    with pytest.raises(ProposalError, match="words="):
        load_proposer(f"concepts:{folder}")


def test_a_sam3_of_video_is_read_as_its_detector(tmp_path, rgb) -> None:
    folder = FOLDERS["sam3"](tmp_path / "own")
    config, state = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    want = joined(load_concepts(folder).judgements(rgb, ["cat"]))
    (folder / "config.json").write_text(json.dumps({"model_type": "sam3_video", "detector_config": config}))
    whole = {f"detector_model.{key}": value for key, value in state.items()} | {"tracker_model.x": torch.zeros(1)}
    save_file(whole, folder / "model.safetensors")
    close(joined(load_concepts(folder).judgements(rgb, ["cat"])).places, want.places)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"instance_threshold": 1.0}, "a probability from 0, below 1"),
        ({"instance_threshold": "x"}, "a probability from 0, below 1"),
        ({"background": "unknown"}, "no notion of 'unknown'"),
        ({"background": "foreground, sky"}, "no notion of 'foreground'"),
        ({"background": "scenes:8"}, "no notion of 'scenes'"),
        ({"background": Background(scenes=3)}, "no notion of 'scenes'"),
        ({"background": 2}, "outside 0..1"),
        ({"compat": 1}, "must be True or False"),
        ({"prefilter": 0}, "at least 1"),
        ({"model": 3}, "must be a name or folder"),
        ({"model": "none/such/model"}, "no concept model"),
        ({"model": "mini"}, "no concept model"),
        ({"model": ""}, "no concept model is named"),
        ({"model": "local-dir:"}, "no concept model is named"),
    ],
)
def test_a_mistake_is_one_line(settings, match, model) -> None:
    with pytest.raises((OptionError, ModelError), match=match) as raised:
        Concepts(**{"model": model, **settings})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "told", "match"),
    [
        ("sam3", {"size": {"height": 112, "width": 112}}, "sees photos of 56 pixels a side"),
        ("sam3", {"size": 1008}, "sees photos of 56 pixels a side"),
        ("clipseg", {"size": {"height": 40, "width": 64}}, "makes photos 40 by 64 pixels"),
        ("clipseg", {"size": {"height": 4, "width": 4}}, "patches of 8 pixels"),
        ("clipseg", {"size": "large"}, "says no size"),
        ("clipseg", {"image_std": ["a", 1, 1]}, "says no size, mean and std"),
    ],
)
def test_a_processor_that_does_not_fit_is_refused_at_loading(tmp_path, kind, told, match) -> None:
    FOLDERS[kind](tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match=match) as raised:
        load_concepts(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("told", "said"), [(None, "has no preprocessor_config"), ({"size": 48}, "without image_mean")])
def test_what_no_processor_says_is_a_guess_and_told(tmp_path, rgb, folder, told, said) -> None:
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    assert not any("as is usual" in warning for warning in Concepts(own)(rgb, ["cat"]).warnings)
    (own / "preprocessor_config.json").unlink()
    if told is not None:
        told = {"size": load_concepts(folder).side}
        (own / "preprocessor_config.json").write_text(json.dumps(told))
    model = load_concepts(own)
    assert model.side == (352 if model.kind == "clipseg" and told is None else load_concepts(folder).side)
    assert any(said in warning for warning in Concepts(model)(rgb, ["cat"]).warnings)


def test_a_label_longer_than_the_model_reads_is_told(model, rgb) -> None:
    told = Concepts(model)(rgb, [" ".join(["cat"] * 100), "dog"]).warnings
    assert sum("is longer than the 32 tokens" in warning for warning in told) == 1


def test_other_labels_need_a_call_of_their_own(model, rgb) -> None:
    with pytest.raises(DensevlError, match="call the segmenter again"):
        Concepts(model)(rgb, ["cat"]).reclassify(["dog"])


@pytest.mark.filterwarnings("error")
def test_pixels_that_cannot_be_written_are_read(model, rgb) -> None:
    fixed = rgb.copy()
    fixed.flags.writeable = False
    close(model.pixels(fixed), model.pixels(rgb))


def test_only_words_can_be_asked(model, rgb) -> None:
    with pytest.raises(LabelError, match="takes only words"):
        Concepts(model)(rgb, {"cat": [rgb]})


def _damaged(folder: Path, how: str) -> None:
    state, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    name = next(iter(state))
    if how == "missing":
        del state[name]
    elif how == "nan":
        state[name] = torch.full_like(state[name], torch.nan)
    elif how == "type":
        config["model_type"] = "bert"
    elif how == "config":
        config["vision_config"] = "large"
    elif how == "pixels":
        (folder / "preprocessor_config.json").write_text('{"size": {"height": -3}}')
    elif how == "weights":
        (folder / "model.safetensors").unlink()
        return
    elif how == "tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("how", ["missing", "nan", "type", "config", "pixels", "weights", "tokenizer"])
def test_a_folder_that_is_not_whole_is_refused(how, tmp_path) -> None:
    folder = FOLDERS["clipseg"](tmp_path)
    _damaged(folder, how)
    with pytest.raises(WeightsError if how in ("missing", "nan") else DensevlError) as raised:
        load_concepts(folder)
    assert "\n" not in str(raised.value)


def test_without_transformers_the_extra_is_named(folder, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"densevl\[hf\]"):
        load_concepts(folder)


def test_published_names_are_known_before_they_are_here() -> None:
    assert concept_kind("facebook/sam3") == "sam3"
    assert concept_kind("hf-hub:CIDAS/clipseg-rd64-refined") == "clipseg"
    assert concept_kind("mini") is None
    assert concept_kind("ViT-B-16/openai") is None
