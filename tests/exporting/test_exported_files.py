"""Models as files: they say what the model says, in any size and with any words, and run without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from conftest import TINY, random_clip, wrap
from densevl import LabelSet, Segmenter, load_backbone
from densevl.backbones.exported import Exported
from densevl.cli import app
from densevl.errors import DensevlError, LabelError, ModelError, OptionError, RecipeError, WeightsError
from densevl.exporting import checking, files, graph, words
from densevl.recipes import get

pytest.importorskip("onnxscript")

DEMO = Path(__file__).parents[2] / "demo"
SCENES = DEMO / "scenes"
SMALL = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "layers": 3}}


@pytest.fixture(scope="module")
def small():
    return wrap(random_clip(config=SMALL))


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> Path:
    """The shipped model as the command writes it, and words beside it."""
    out = tmp_path_factory.mktemp("export") / "mini"
    done = CliRunner().invoke(app, ["export", str(out), "--model", "mini", "--labels", "penguin, cactus | plant"])
    assert done.exit_code == 0, done.stderr
    return out.with_suffix(".onnx")


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [("clip_prs", "onnx"), ("naclip", "onnx"), ("cliper", "onnx"), ("sfp", "torch")],
)
def test_a_file_says_what_the_model_says(small, tmp_path, recipe, kind) -> None:
    chosen = get(recipe)
    path = files.path_of(tmp_path / "model", kind)
    files.save(graph.capture(small, chosen), kind, path, graph.facts(small, chosen))
    rows = list(checking.compare(small, chosen, files.runner(path, kind)))
    assert len({(row.batch, row.height, row.width, row.words) for row in rows}) == 6
    assert max(row.difference for row in rows) < 5e-6


def test_a_file_that_says_something_else_is_told(small) -> None:
    rows = list(checking.compare(small, get("vanilla"), lambda pixels, text: np.zeros((1, 2, 3, 5), np.float32)))
    assert not any(row.passes for row in rows)


@pytest.mark.parametrize("recipe", ["proxyclip", "trident", "textregion", "ov_stitcher", "corrclip"])
def test_what_cannot_be_one_graph_is_refused_with_the_reason(small, recipe) -> None:
    with pytest.raises(RecipeError, match=rf"recipe '{recipe}' cannot be exported: it (reads|joins|spreads)"):
        graph.capture(small, get(recipe))


def test_a_model_of_photos_is_refused_before_it_is_traced() -> None:
    """Its tower was traced for minutes, without an end."""
    pytest.importorskip("timm")
    with pytest.raises(RecipeError, match="for all sizes; export a CLIP"):
        graph.capture(load_backbone("photo"), None)


def test_segmenting_by_the_file_gives_the_labels_of_the_model(mini, monkeypatch) -> None:
    labels = ["penguin", "cactus | plant"]
    by_file, by_model = Segmenter(str(mini)), Segmenter("mini")
    monkeypatch.setattr("densevl.backbones.load._load", None)  # the words come from the file beside it
    for scene in ("wood", "snow"):
        got, want = (segmenter(SCENES / f"{scene}.png", labels) for segmenter in (by_file, by_model))
        assert (got.labels == want.labels).all()
        np.testing.assert_allclose(got.scores, want.scores, atol=2e-6)
        assert [text.replace(mini.name, "mini") for text in got.warnings] == list(want.warnings)


def test_other_words_are_those_of_the_model_it_was_made_of(mini) -> None:
    got, want = (Segmenter(name, use_cache=False)(SCENES / "snow.png", ["pizza"]) for name in (str(mini), "mini"))
    assert (got.labels == want.labels).all()
    np.testing.assert_allclose(got.scores, want.scores, atol=2e-6)
    assert [text.replace(mini.name, "mini") for text in got.warnings] == list(want.warnings)


def test_photos_share_a_pass(mini) -> None:
    segment = Segmenter(str(mini))
    photos = [SCENES / "wood.png", SCENES / "snow.png"]
    for got, photo in zip(segment.many(photos, ["penguin"]), photos, strict=True):
        assert (got.labels == segment(photo, ["penguin"]).labels).all()


def test_the_script_runs_it_without_torch(mini, tmp_path) -> None:
    beside = words.words_path(mini)
    places = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    code = (
        f"import runpy, sys; sys.argv = ['x', {str(mini)!r}, {str(beside)!r}, {str(SCENES / 'wood.png')!r}, 'l.png'];"
        f"runpy.run_path({str(DEMO / 'exported_model.py')!r}, run_name='__main__');"
        "assert not {'torch', 'densevl', 'onnx'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=places, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "penguin" in done.stdout
    got = np.asarray(Image.open(tmp_path / "l.png")).astype(int) - 1
    want = Segmenter("mini", protocol="whole")(SCENES / "wood.png", ["penguin", "cactus | plant"]).labels
    assert (got == want).mean() > 0.93  # its labels are those of patches


def test_facts_are_in_the_file_and_words_beside_it(mini) -> None:
    model = load_backbone(str(mini))
    source = load_backbone("mini")
    for name in ("patch_size", "embed_dim", "mean", "std", "protocol", "background", "text_fingerprint", "logit_scale"):
        assert getattr(model, name) == getattr(source, name)
    held = np.load(words.words_path(mini))
    assert held["names"].tolist() == ["penguin", "cactus"]
    assert held["classes"].tolist()[:3] == [0, 1, 1]
    assert set(held["classes"].tolist()[3:]) == {-1}
    np.testing.assert_allclose(np.linalg.norm(held["vectors"], axis=1), 1, atol=1e-5)


def test_a_single_word_stands_twice(tmp_path) -> None:
    path = words.save_words(tmp_path / "w.npz", load_backbone("mini"), LabelSet.parse("dog"), background=None)
    assert len(np.load(path)["classes"]) > 2
    from densevl.vocabulary import Background

    path = words.save_words(path, load_backbone("mini"), LabelSet.parse("dog"), background=Background.parse("none"))
    assert np.load(path)["classes"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("use", "error", "said"),
    [
        (lambda m: Segmenter(m, "sclip"), RecipeError, "leave the recipe out"),
        (lambda m: load_backbone(m, device="meta"), DensevlError, "meta"),
        (lambda m: load_backbone(m, precision="int8"), ModelError, "float32 only"),
        (lambda m: load_backbone(m).encode_image(torch.zeros(1, 3, 96, 96)), ModelError, "made of, 'mini'"),
        (lambda m: load_backbone(m).encode_dense(torch.zeros(1, 3, 96, 96)).features, ModelError, "gives no features"),
        (lambda m: graph.capture(load_backbone(m), None), RecipeError, "already a file"),
        (lambda m: files.path_of("x.onnx", "torch"), OptionError, r"must end in \.pt2"),
        (lambda m: Exported(Path(m).with_suffix(".words.npz"), load_backbone), WeightsError, "exported model"),
    ],
)
def test_what_a_file_cannot_do_is_one_line(mini, use, error, said) -> None:
    with pytest.raises(error, match=said):
        use(str(mini))


def test_words_of_another_model_are_refused(mini, tmp_path) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(mini.read_bytes())
    held = dict(np.load(words.words_path(mini)))
    np.savez(tmp_path / "other.words.npz", **{**held, "text_side": np.array("0" * 64)})
    with pytest.raises(WeightsError, match="another model's text side"):
        Segmenter(str(other), use_cache=False)(SCENES / "wood.png", ["penguin"])
    np.savez(tmp_path / "other.words.npz", **{**held, "templates": np.array(["{}"])})  # not those it asks for
    model = load_backbone(str(other))
    model.made_of = "absent"
    with pytest.raises(LabelError, match=r"export words other\.words\.npz"):
        model.encode_text(["a penguin"])
