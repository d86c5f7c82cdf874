"""Analyses from the command to the page: on a benchmark, and on photos without labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from label_maps import written
from PIL import Image
from torch.nn import functional as F
from typer.testing import CliRunner

import densevl
from concept_folders import FOLDERS
from densevl.cli import app
from densevl.cli.measure.analyse import ANALYSES
from densevl.evaluation import Experiment, Predictor, open_dataset
from densevl.evaluation.analyses import NAMES, analyse
from densevl.evaluation.analyses.looks import IMAGE, ModelLooks
from densevl.evaluation.benchmarks.class_lists import ClassList
from densevl.evaluation.report.analyses import FILES
from densevl.pipelines.feeding import embed_images
from densevl.vocabulary import LabelSet

SCENES = Path(__file__).parents[2] / "demo" / "scenes"
WORDS = ("background", "penguin", "pizza", "bicycle")


def run(*arguments: str) -> tuple[int, str, str]:
    quick = () if "concepts" in str(arguments) else ("--set", "protocol.short_side=64")
    done = CliRunner().invoke(app, ["eval", "analyse", *map(str, arguments), *quick])
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two scenes cut small, with label maps of boxes."""
    photos = []
    for number, path in enumerate(sorted(SCENES.glob("*.png"))[:2]):
        picture = np.asarray(Image.open(path).convert("RGB").resize((64, 64)))
        labels = np.zeros((64, 64), np.uint8)
        labels[4:36, 4:36], labels[38:60, 38:60] = 1 + number, 3
        photos.append((picture, labels))
    return written(tmp_path / "data", photos, WORDS)


def test_the_command_knows_the_names_of_all_analyses() -> None:
    assert ANALYSES == NAMES


def test_a_benchmark_is_analysed_and_the_page_says_what_to_do(folder, tmp_path) -> None:
    out = tmp_path / "out"
    only = ",".join(name for name in NAMES if name not in ("corruption", "vocabulary", "agreement"))
    code, stdout, stderr = run("folder", "--root", folder, "--model", "mini", "--only", only, "--out", out, "--json")
    assert code == 0, stderr
    told = json.loads(stdout)
    assert told["analyses"] == [
        *("Background reliance", "Object size", "Written words", "Association of attributes", "Unknown classes"),
        "Swapped backgrounds",
    ]
    assert told["left out"] == {}
    page = (out / "analyses.html").read_text()
    for own in told["advice"]:
        assert own["text"]
        assert own["advice"]
    assert page.count("<h2>") >= 7
    saved = json.loads((out / "analyses.json").read_text())
    assert [own["name"] for own in saved["analyses"]] == told["analyses"]
    # all are asked for before the model runs
    assert {path.name for path in out.iterdir()} <= set(FILES)
    mine = tmp_path / "other/object_size.csv"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert run("folder", "--root", folder, "--model", "mini", "--only", "size", "--out", mine.parent)[0] != 0
    assert mine.read_text() == "mine"
    assert saved["used"]["images"] == 2
    assert len(saved["used"]["weights"]) == 64
    assert saved["used"]["protocol"]["short_side"] == 64
    assert (saved["asked"]["of"], saved["asked"]["root"]) == ("folder", str(folder))


def test_tables_of_other_analyses_are_not_mixed(tmp_path) -> None:
    one, out = sorted(SCENES.glob("*.png"))[0], tmp_path / "out"
    asked = (one, "--labels", "penguin,pizza", "--model", "mini", "--out", out, "--only")
    assert run(*asked, "agreement")[0] == 0
    (out / "mine.csv").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for other in (("written",), ("agreement", "--limit", "9")):
        code, _, stderr = run(*asked, *other)
        assert (code, "holds other analyses" in stderr.replace("\n", " ")) == (4, True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run(*asked, "written", "--overwrite")[0] == 0
    assert {path.name for path in out.iterdir()} == {"analyses.html", "analyses.json", "mine.csv", "written_words.csv"}
    code, _, stderr = run(*asked[:-2], out / "mine.csv", "--only", "agreement")
    assert (code, "is a file, not a folder" in stderr.replace("\n", " ")) == (4, True)


def test_text_masks_of_no_photo_are_named(tmp_path) -> None:
    one = sorted(SCENES.glob("*.png"))[0]
    mask = Image.new("L", Image.open(one).size)
    mask.save(tmp_path / one.name)
    mask.save(tmp_path / "stray.png")
    asked = ("--labels", "penguin,pizza", "--model", "mini", "--only", "written", "--text-masks", tmp_path)
    code, _, stderr = run(one, *asked, "--out", tmp_path / "out")
    assert code == 0, stderr
    assert "belong to no photo that is analysed, such as 'stray.png'" in stderr.replace("\n", " ")


def test_without_labels_what_needs_a_truth_is_named_with_the_reason(tmp_path) -> None:
    out = tmp_path / "out"
    one = sorted(SCENES.glob("*.png"))[0]
    asked = ("--labels", "penguin, pizza | pizza slice", "--distractors", "sky, key")
    code, stdout, stderr = run(one, *asked, "--model", "mini", "--out", out)
    assert code == 0, stderr
    for name in ("background", "size", "association", "unknown", "backgrounds"):
        assert f"left out: {name}: it needs to know where objects are" in stdout.replace("\n", " ")
    saved = json.loads((out / "analyses.json").read_text())
    done = ["Vocabulary expansion", "Corruption robustness", "Written words", "Agreement of views"]
    assert [own["name"] for own in saved["analyses"]] == done
    assert saved["analyses"][2]["tables"]["Written words"][0]["same answer, as it is"] == 1.0


def test_a_photo_that_cannot_be_read_is_named_and_the_others_are_analysed(tmp_path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/bad.png").write_text("no picture")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "photos/good.png")
    asked = ("--labels", "penguin,pizza", "--model", "mini", "--only", "agreement", "--out", tmp_path / "out", "--json")
    code, stdout, stderr = run(tmp_path / "photos", *asked)
    assert code == 0, stderr
    assert json.loads(stdout)["analyses"] == ["Agreement of views"]
    assert "bad.png" in stderr
    assert "left out" in stderr
    (tmp_path / "photos/good.png").unlink()
    code, _, stderr = run(tmp_path / "photos", *asked, "--overwrite")
    assert (code, "can be read" in stderr) == (2, True)


def test_attributes_of_photos_of_ones_own_need_no_benchmark(tmp_path) -> None:
    scene = str(sorted(SCENES.glob("*.png"))[0])
    entries = [
        {"image": scene, "box": box, "object": "penguin", "attribute": value}
        for box, value in (([5, 5, 40, 40], "black"), ([50, 50, 90, 90], "green"))
    ]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    more = ("--attributes", tmp_path / "list.json", "--only", "association", "--out", tmp_path / "out", "--json")
    code, stdout, stderr = run(scene, "--labels", "penguin,pizza", "--model", "mini", *more)
    assert code == 0, stderr
    assert json.loads(stdout)["analyses"] == ["Association of attributes"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--only", "size"], "analysis 'size' cannot be run"),
        (["--root", "."], "--root is for benchmarks"),
        (["--only", "vocabulary", "--text-masks", "."], "--text-masks is for analysis 'written'"),
        (["--only", "agreement", "--distractors", "sky"], "--distractors is for analysis 'vocabulary'"),
        (["--set", "task=panoptic"], "not with task panoptic"),
        (["--set", "dataset=voc20"], "--set dataset=voc20 contradicts"),
        (["--set", "root=."], "--root is for benchmarks"),
        (["--only", "vocabulary", "--attributes", "list.json"], "--attributes is for analysis 'association'"),
        (["--text-masks", "."], "no text mask in '.' belongs to a photo"),
        (["--set", "recipe=sclap"], "sclip"),
    ],
)
def test_what_photos_without_labels_do_not_allow_is_refused(more, reason, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    entry = {"image": "a.png", "box": [0, 0, 9, 9], "object": "cup", "attribute": "red"}
    (tmp_path / "list.json").write_text(json.dumps([entry, {**entry, "object": "hat", "attribute": "blue"}]))
    code, _, stderr = run(sorted(SCENES.glob("*.png"))[0], "--labels", "penguin,pizza", "--model", "mini", *more)
    assert code == 2
    assert reason in stderr
    assert not (tmp_path / "densevl-out").exists()


def test_a_benchmark_with_labels_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, stderr = run("voc20", "--labels", "cat,dog", "--model", "mini")
    assert (code, "voc20 is a benchmark, but --labels is for photos" in stderr) == (2, True)


def test_a_dataset_that_shows_nothing_leaves_analyses_out_with_reasons(tmp_path) -> None:
    blank = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
    root = written(tmp_path / "data", [blank], WORDS)
    found = analyse(Experiment("folder", root=str(root), model="mini"), ["agreement"], tell=lambda _: None)
    assert [own.name for own in found.done] == ["Agreement of views"]
    with pytest.raises(densevl.DensevlError, match="has an object"):
        analyse(Experiment("folder", root=str(root), model="mini"), ["size"], tell=lambda _: None)


def test_a_concept_model_has_no_vectors_and_the_rest_is_analysed(folder, tmp_path) -> None:
    model = str(FOLDERS["clipseg"](tmp_path / "concepts"))
    photos = folder / "images"
    asked = ("--labels", "cat,dog", "--model", model, "--distractors", "sky", "--limit", "1", "--out", tmp_path / "out")
    code, stdout, stderr = run(photos, *asked, "--json")
    assert code == 0, stderr
    told = json.loads(stdout)
    assert told["analyses"] == ["Vocabulary expansion", "Corruption robustness", "Agreement of views"]
    assert "no vectors of photos" in told["left out"]["written"]


def test_ways_judge_as_the_pipelines_do(folder) -> None:
    dataset = open_dataset("folder", folder)
    classes = ClassList("own", WORDS[1:], True)
    predictor = Predictor(densevl.Segmenter("mini"), classes)
    looks = ModelLooks(predictor, Experiment("folder", model="mini"))
    assert looks.ways == ("image", "crop", "pool", "cls_mask")
    sample = dataset[0]
    masks, labels = [sample.truth == 1, sample.truth == 3], LabelSet.parse("penguin | king penguin, pizza, bicycle")
    found = looks(sample.image, masks, looks.words(labels))
    for way in looks.ways[1:]:
        classify = densevl.RegionClassifier(predictor.segmenter.backbone, way, background="none")
        result = classify(sample.image, labels, regions=np.stack(masks))
        np.testing.assert_allclose(np.exp(found[way]), result.scores, atol=1e-5)
    backbone = predictor.segmenter.backbone
    rows = F.normalize(embed_images(backbone, [sample.image]), dim=1)
    text = predictor.segmenter.words.classifier.encode(labels).vectors
    logp = (backbone.logit_scale * rows @ text.T).log_softmax(dim=1)[0].numpy()
    np.testing.assert_allclose(found[IMAGE][0], [max(logp[:2]), *logp[2:]], atol=1e-4)
    assert (found[IMAGE][0] == found[IMAGE][1]).all()
    cosines = looks.likeness(["penguin", "pizza"], ["penguin", "bicycle"])
    assert cosines is not None
    assert cosines[0] == pytest.approx(1, abs=1e-5)


def test_logits_of_a_predictor_make_its_confidence(folder) -> None:
    dataset = open_dataset("folder", folder)
    predictor = Predictor(densevl.Segmenter("mini", background="none"), ClassList("own", WORDS[1:], True))
    image = dataset[0].image
    logits, found = predictor.logits(image).astype(float), predictor(image)
    p = np.exp(logits - logits.max(axis=0)) / np.exp(logits - logits.max(axis=0)).sum(axis=0)
    assert (p.argmax(axis=0) + 1 == found.labels).mean() > 0.999  # but for ties that rounding breaks
    slope, offset = predictor.calibration
    odds = slope * np.log(p.max(axis=0) / np.maximum(1 - p.max(axis=0), 1e-12)) + offset
    np.testing.assert_allclose(1 / (1 + np.exp(-odds)), found.confidence, atol=1e-3)


def test_other_plans_and_views_are_those_of_a_segmenter_that_was_made_so(folder) -> None:
    dataset = open_dataset("folder", folder)
    predictor = Predictor(densevl.Segmenter("mini"), ClassList("own", WORDS[1:], True))
    image = dataset[0].image
    for given, made in (({"plan": "whole"}, {"protocol": "whole"}), ({"views": "flip"}, {"views": "flip"})):
        other = Predictor(densevl.Segmenter("mini", **made), predictor.classes)
        np.testing.assert_array_equal(predictor.with_options(**given)(image).labels, other(image).labels)
