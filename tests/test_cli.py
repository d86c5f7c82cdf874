"""The command through its runner: what it writes, what it says, and that a mistake is one line and exit code 2."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from conftest import PHOTOS, TINY, random_clip
from densevl.backbones.at_hand import ModelInfo
from densevl.backbones.open_clip_model import OpenClipBackbone
from densevl.backbones.reach import Reach
from densevl.cli import app
from densevl.recipes import names

runner = CliRunner()
SCENES = Path(__file__).parents[1] / "demo" / "scenes"
FAST = ["--templates", "name", "--short-side", "48", "--crop", "32", "--stride", "16"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    save_file({k: v.contiguous() for k, v in random_clip().state_dict().items()}, folder / "model.safetensors")
    return str(folder)


def _segment(*arguments: str):
    return runner.invoke(app, ["segment", *FAST, *arguments])


def test_segment_writes_labels_overlay_json_and_sheet(model, tmp_path) -> None:
    out = tmp_path / "out"
    done = _segment(str(PHOTOS), "--labels", "cat,dog|puppy", "--model", model, "--out", str(out), "--sheet")
    assert done.exit_code == 0, done.output
    stems = sorted(path.stem for path in PHOTOS.glob("*.jpg"))
    written = {f"{stem}{end}" for stem in stems for end in (".png", ".json", "_confidence.png", "_overlay.png")} | {
        "contact_sheet.jpg"
    }
    written.add("densevl.json")
    assert {path.name for path in out.iterdir()} == written
    key = json.loads((out / "cat.json").read_text())
    assert key["names"] == ["cat", "dog"]
    assert Image.open(out / "cat.png").size == Image.open(PHOTOS / "cat.jpg").size
    assert "cat.jpg: " in done.stdout
    assert "results in" in done.stdout


@pytest.mark.parametrize(
    ("option", "value", "want"),
    [
        ("--recipe", "naclip", lambda meta: meta["recipe"].startswith('Recipe("naclip"')),
        ("--templates", "a sketch of a {}", lambda meta: meta["templates"] == ["a sketch of a {}"]),
        ("--background", "0.4", lambda meta: meta["background"] == "probability under 0.4"),
        ("--background", "voc,0.2", lambda meta: meta["background"].endswith("rail, fence; probability under 0.2")),
        ("--presence", "0.5", lambda meta: meta["presence"] == 0.5 and isinstance(meta["absent"], list)),
        ("--templates", "simple+scene", lambda meta: len(meta["templates"]) == 12),
        ("--short-side", "40", lambda meta: meta["protocol"]["short_side"] == 40),
        ("--crop", "24", lambda meta: meta["protocol"]["crop"] == 24),
        ("--crop", "0", lambda meta: meta["protocol"]["crop"] is None),
        ("--stride", "8", lambda meta: meta["protocol"]["stride"] == 8),
        ("--blend", "patch", lambda meta: meta["protocol"]["blend"] == "patch"),
        ("--refine", "pamr", lambda meta: meta["refine"] == "pamr"),
        ("--refine", "pamr, lposs+", lambda meta: meta["refine"] == "pamr,lposs+"),
        ("--views", "flip+scale", lambda meta: meta["views"]["scales"] == [1.0, 0.75, 1.25]),
        ("--compat", "", lambda meta: meta["compat"] is True),
        ("--device", "cpu", lambda meta: meta["device"] == "cpu"),
    ],
)
def test_every_option_reaches_the_result(model, tmp_path, option, value, want) -> None:
    Image.open(PHOTOS / "cat.jpg").resize((40, 40)).save(tmp_path / "x.png")
    fast = [part for pair in zip(FAST[::2], FAST[1::2], strict=True) if pair[0] != option for part in pair]
    command = ["segment", str(tmp_path / "x.png"), "--labels", "cat,dog", "--model", model, *fast]
    done = runner.invoke(app, [*command, option, *([value] if value else []), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert want(json.loads((tmp_path / "out" / "x.json").read_text())["meta"])


@pytest.mark.parametrize(
    ("options", "want"),
    [
        (["--recipe", "proxyclip", "--proxy", "mini-sam"], {"proxy": "mini-sam", "sam": None, "regions": None}),
        (["--recipe", "trident", "--proxy", "mini-sam", "--sam", "mini-sam"], {"proxy": "mini-sam", "sam": "mini-sam"}),
        (["--recipe", "textregion", "--proposals", "mini-sam"], {"proxy": None, "regions": 1}),
        (["--refine", "vote", "--proposals", "mini-sam"], {"refine": "vote", "regions": 1}),
    ],
    ids=["proxy", "sam", "regions", "vote"],
)
def test_other_models_are_borrowed_from_by_name(model, tmp_path, options, want) -> None:
    pytest.importorskip("segment_anything")
    square = Image.new("RGB", (60, 40), "white")
    square.paste("red", (10, 10, 30, 30))
    square.save(tmp_path / "x.png")
    done = _segment(
        str(tmp_path / "x.png"), "--labels", "cat,dog", "--model", model, "--out", str(tmp_path / "out"), *options
    )
    assert done.exit_code == 0, done.output
    meta = json.loads((tmp_path / "out" / "x.json").read_text())["meta"]
    for key, value in want.items():
        assert meta[key] >= value if key == "regions" and value else meta[key] == value


def test_descriptors_come_from_a_file_and_absent_labels_are_named(model, tmp_path) -> None:
    (tmp_path / "looks.json").write_text('{"cat": ["whiskers"]}')
    options = ["--descriptors", str(tmp_path / "looks.json"), "--presence", "0.999"]
    cat = str(PHOTOS / "cat.jpg")
    done = _segment(cat, "--labels", "cat,dog", "--model", model, "--out", str(tmp_path / "out"), *options)
    assert done.exit_code == 0, done.output
    assert "warning: no descriptors for dog: embedded with the templates only" in done.stderr
    assert "not in it: cat, dog" in done.stdout
    meta = json.loads((tmp_path / "out" / "cat.json").read_text())["meta"]
    assert meta["text"]["descriptors"] == {"labels": 1, "weight": 1.0, "unit": True}
    assert meta["absent"] == ["cat", "dog"]


def test_auto_says_what_it_took_and_unknown_words_are_named(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("densevl.backbones.at_hand.best_at_hand", lambda: model)
    sky = {"sky": Reach("sky", "none", "none", "never seen")}
    monkeypatch.setattr(OpenClipBackbone, "reach", lambda self, words: [sky.get(word, Reach(word)) for word in words])
    monkeypatch.setattr(OpenClipBackbone, "upgrade", "a larger one", raising=False)
    done = _segment(str(PHOTOS), "--labels", "cat,sky", "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    first, *rest, left_out = done.stderr.splitlines()
    assert left_out == "left out of the folders: 1 .md"
    assert re.match(r"model \S+: CLIP: any words.*Better: a larger one$", first)
    assert [line for line in rest if "sky" in line] == [line for line in rest if line.startswith("warning: ")]
    assert len(rest) == 1  # named once, not for each image
    assert "warning" not in done.stdout


def test_a_name_the_terminal_cannot_show_does_not_end_the_run(tmp_path) -> None:
    for name in (b"\xff\xfe.png", "猫.png".encode(), b"two\nlines.png"):
        Image.open(PHOTOS / "cat.jpg").resize((40, 40)).save(os.path.join(os.fsencode(tmp_path), name), format="PNG")
    command = [
        sys.executable,
        "-m",
        "densevl",
        "segment",
        str(tmp_path),
        "--labels",
        "cat,dög",
        "--model",
        "mini",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*_overlay.png"))) == 3
    assert len(done.stdout.splitlines()) == 4


def test_the_same_name_in_two_folders_does_not_collide(model, tmp_path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.open(PHOTOS / "cat.jpg").resize((40, 40)).save(tmp_path / folder / "x.png")
    out = tmp_path / "out"
    images = [str(tmp_path / "a" / "x.png"), str(tmp_path / "b" / "x.png")]
    assert _segment(*images, "--labels", "cat,dog", "--model", model, "--out", str(out)).exit_code == 0
    assert {path.name for path in out.glob("*.json")} == {"a_x.json", "b_x.json", "densevl.json"}


def test_without_a_folder_other_labels_get_one_of_their_own(model, tmp_path, monkeypatch) -> None:
    """Else trying another word would be refused, or replace what the first one gave."""
    monkeypatch.chdir(tmp_path)
    places = []
    for labels in ("cat,dog", "cat", "cat,dog"):
        done = _segment(str(PHOTOS / "cat.jpg"), "--labels", labels, "--model", model)
        assert done.exit_code == 0, done.output
        places.append(done.stdout.split()[-1])
    assert places == ["densevl-out/segment", "densevl-out/segment-2", "densevl-out/segment"]


def test_one_bad_image_does_not_stop_the_others(model, tmp_path) -> None:
    (tmp_path / "bad.jpg").write_text("not a picture")
    Image.open(PHOTOS / "cat.jpg").resize((40, 40)).save(tmp_path / "good.png")
    out = tmp_path / "out"
    done = _segment(str(tmp_path), "--labels", "cat,dog", "--model", model, "--out", str(out))
    assert done.exit_code == 3
    assert (out / "good.png").exists()
    rows = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["bad.jpg"]
    assert not (out / "bad.png").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["{missing}.jpg", "--labels", "cat"], "does not exist"),
        (["{text}", "--labels", "cat"], "t.jpg"),
        (["{cat}"], "no labels; name at least one"),
        (["{cat}", "--labels", "cat,cat"], "given twice"),
        (["{cat}", "--labels", "cat", "--recipe", "slcip"], "closest: sclip"),
        (["{cat}", "--labels", "cat", "--model", "nonsense"], "no model 'nonsense'"),
        (["{cat}", "--labels", "cat", "--weights", "{wrong}"], "does not fit"),
        (["{cat}", "--labels", "cat", "--model", "ViT-B-32/openai"], "HF_HUB_OFFLINE|cannot be reached"),
        (["{cat}", "--labels", "cat", "--background", "7"], "outside 0..1"),
        (["{cat}", "--labels", "cat", "--presence", "1"], "presence is 1.0; it must be a probability within 0..1"),
        (["{cat}", "--labels", "cat", "--descriptors", "{text}"], "descriptors file .* cannot be read"),
        (["{empty}", "--labels", "cat"], "image"),
        (["{cat}", "--labels", "cat", "--device", "gpu"], "device 'gpu' cannot be used"),
        (["{cat}", "--labels", "cat", "--crop", "8"], "leaves gaps"),
        (["{cat}", "--labels", "cat", "--blend", "feature"], "one of pixel, patch"),
        (["{cat}", "--labels", "cat", "--refine", "crf"], "'crf' is not known"),
        (["{cat}", "--labels", "cat", "--refine", "vote"], "give each call regions="),
        (["{cat}", "--labels", "cat", "--proposals", "slic"], "proposals is 'slic'"),
        (["{cat}", "--labels", "cat", "--views", "flop"], "'flop' is not known"),
        (["{cat}", "--labels", "cat", "--recipe", "proxyclip"], "--proxy mini-sam"),
        (["{cat}", "--labels", "cat", "--recipe", "sclip", "--proxy", "mini-sam"], "borrows nothing"),
        (["{cat}", "--labels", "cat", "--sam", "mini-sam"], "borrows nothing from sam='mini-sam'"),
    ],
    ids=lambda value: None if isinstance(value, list) else value.split("|")[0].replace(" ", "-"),
)
def test_a_mistake_is_one_line_and_exit_code_2(model, tmp_path, arguments, reason, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "t.jpg").write_text("text, not a picture")
    (tmp_path / "empty").mkdir()
    save_file({"a": random_clip().visual.proj}, tmp_path / "wrong.safetensors")
    places = {
        "missing": tmp_path / "missing",
        "text": tmp_path / "t.jpg",
        "cat": PHOTOS / "cat.jpg",
        "wrong": tmp_path / "wrong.safetensors",
        "empty": tmp_path / "empty",
    }
    out = tmp_path / "out"
    filled = [argument.format(**places) for argument in arguments]
    done = _segment(*filled, *([] if "--model" in filled else ["--model", model]), "--out", str(out))
    assert done.exit_code == 2
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert re.search(reason, lines[0])
    assert not out.exists()


def test_recipes_are_listed_and_explained() -> None:
    listed = runner.invoke(app, ["recipes"])
    assert listed.exit_code == 0
    assert "naclip" in listed.output
    rows = listed.output.splitlines()
    assert [row.split()[0] for row in rows[1 : 1 + len(names())]] == names()  # one line a recipe
    assert re.search(r"^trident .*ICCV 2025 .*proxy, sam  .*attention of SAM's encoder *$", listed.output, re.MULTILINE)
    shown = runner.invoke(app, ["recipes", "show", "SCLIP"])
    assert "queries look at queries" in shown.output
    assert "80.4" in shown.output
    assert 'Recipe("sclip", attention=SelfAttention("qq") + SelfAttention("kk"))' in re.sub(r"\s+", " ", shown.output)
    borrowing = runner.invoke(app, ["recipes", "show", "corrclip"]).output
    assert re.search(r"needs proxy: .*--proxy", borrowing)
    assert "needs regions: " in borrowing
    assert runner.invoke(app, ["recipes", "show", "nope"]).exit_code == 2


def test_models_are_listed_without_a_network(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    listed = runner.invoke(app, ["models"]).output
    assert "ViT-B-16/openai" in listed
    assert re.search("--proxy: mini-sam, .*, dino_vits16", listed)


@pytest.mark.parametrize(("at_hand", "code"), [(True, 0), (False, 1)])
def test_doctor_tells_whether_anything_can_run(monkeypatch, at_hand, code) -> None:
    info = ModelInfo("some-model", at_hand, "")
    monkeypatch.setattr("densevl.backbones.at_hand.available", lambda: [info])
    done = runner.invoke(app, ["doctor"])
    assert done.exit_code == code, done.output
    assert ("some-model" in done.output) == at_hand
    assert "torch" in done.output


def test_doctor_says_what_an_extra_lacks_and_how_to_get_it(monkeypatch) -> None:
    declared = ["numpy>=1", 'absent-one>=2; extra == "sea"', 'numpy; extra == "sea"', "typer; extra == 'cli'"]
    monkeypatch.setattr("densevl.diagnosis.requires", lambda package: declared)
    done = runner.invoke(app, ["doctor", "--json"])
    rows = {row["what"]: row["found"] for row in map(json.loads, done.stdout.splitlines())}
    assert rows["extra sea"] == 'absent-one not installed: pip install "densevl[sea]"'
    assert rows["extras"] == "installed: cli"


def test_version() -> None:
    import densevl

    assert runner.invoke(app, ["--version"]).output.strip() == f"densevl {densevl.__version__}"


def test_python_dash_m_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "densevl", "--help"], capture_output=True, text=True, check=True)
    assert "segment" in done.stdout


def test_regions_are_named_in_files(model, tmp_path) -> None:
    Image.open(PHOTOS / "cat.jpg").resize((40, 40)).save(tmp_path / "x.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    command = ["regions", str(tmp_path), "--labels", "cat,dog", "--model", model, "--proposals", "grid"]
    done = runner.invoke(app, [*command, "--out", str(tmp_path / "out"), "--sheet"])
    assert done.exit_code == 3, done.output  # one image is bad, the other done
    assert "1 of 2 images failed" in done.output
    content = json.loads((tmp_path / "out" / "x.json").read_text())
    assert content["names"] == ["cat", "dog"]
    assert len(content["regions"]) > 1
    assert (tmp_path / "out" / "x_overlay.png").is_file()
    assert (tmp_path / "out" / "contact_sheet.jpg").is_file()
    refused = runner.invoke(app, [*command[:-1], "slic", "--out", str(tmp_path / "out")])
    assert refused.exit_code == 2
    assert refused.output.count("error:") == 1
    assert "no proposer 'slic'" in refused.output


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize(
    ("into", "code", "said"), [("> /dev/full", 4, "cannot write to standard output"), ("| :", 141, "")]
)
def test_output_that_nobody_takes_is_one_line_and_its_own_exit_code(tmp_path, into, code, said) -> None:
    """A full disk, and a reader that has gone: each line of --json, and what is printed last."""
    for words in (f"segment {SCENES} --model mini --labels cat --json --out {tmp_path}/o", "models list"):
        line = f"set -o pipefail; {sys.executable} -m densevl {words} {into}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == code, (words, done.returncode, done.stderr)
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
