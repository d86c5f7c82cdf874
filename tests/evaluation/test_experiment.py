"""Experiments: the papers' protocols, the command's options, and the whole way with the shipped model."""

from __future__ import annotations

import html
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from conftest import close
from densevl import recipes
from densevl.cli import app, options
from densevl.evaluation import EvaluationError, Experiment, open_dataset, papers, task_of
from densevl.evaluation.benchmarks.class_lists import class_list
from densevl.vocabulary import Background

ROOT = Path(__file__).parents[2]
RENDERED = str(ROOT / "configs/rendered.yaml")
BENCHMARKS = ("voc21", "context60", "coco-object", "voc20", "context59", "coco-stuff", "cityscapes", "ade150")


@pytest.mark.parametrize("recipe", papers.known())
@pytest.mark.parametrize("benchmark", ["voc21", "context60", "coco-object", "voc20", "ade150", "cityscapes"])
def test_a_protocol_names_strings_and_a_background_that_exist(recipe, benchmark) -> None:
    found = papers.protocol(recipe, benchmark)
    classes = class_list(benchmark)
    classes.labels(found["strings"])
    policy = Background.parse(found["background"])
    assert bool(policy.words) == classes.background
    assert papers.published(recipe, benchmark) > 10


@pytest.mark.parametrize(
    ("recipe", "benchmark", "field", "value"),
    [
        ("sclip", "voc21", "logit_scale", 65.0),
        ("sclip", "voc21", "min_share", 0.1),
        ("sclip", "coco-stuff", "short_side", 448),
        ("sclip", "cityscapes", "short_side", 560),
        ("naclip", "voc20", "crop", None),
        ("clearclip", "cityscapes", "stride", 224),
        ("clearclip", "voc21", "background", "context@1, 0.5"),
        ("proxyclip", "coco-object", "background", "coco-object@1, 0.25"),
        ("sc_clip", "coco-object", "logit_scale", 55.0),
        ("sclip", "ade150", "background", "none"),
        ("sfp", "ade150", "short_side", 384),
        ("resclip", "coco-stuff", "short_side", 336),
        ("resclip", "voc21", "crop", None),
    ],
)
def test_protocols_of_the_papers(recipe, benchmark, field, value) -> None:
    assert papers.protocol(recipe, benchmark)[field] == value


def test_a_published_figure_belongs_to_the_papers_model_and_protocol_only() -> None:
    plain = Experiment("voc21", model=papers.MODEL, recipe="sclip", paper=True)
    assert plain.published == 59.1
    for change in (
        {"model": "mini"},
        {"limit": 5},
        {"protocol": {"stride": 56}},
        {"background": "none"},
        {"paper": False},
    ):
        changed = Experiment("voc21", **{"model": papers.MODEL, "recipe": "sclip", "paper": True, **change})
        assert changed.published is None, change
    assert plain.resolved().protocol["crop"] == 224
    with pytest.raises(EvaluationError, match="not known completely"):
        Experiment("voc21", recipe="vanilla", paper=True).resolved()


def test_bad_experiments_are_named() -> None:
    with pytest.raises(EvaluationError, match=r"no field 'recipee'.*closest: recipe"):
        Experiment.parse({"dataset": "voc21", "recipee": "sclip"})
    with pytest.raises(EvaluationError, match="needs a dataset"):
        Experiment.parse({"recipe": "sclip"})
    with pytest.raises(EvaluationError, match="no measure 'iuo'"):
        Experiment("voc21", measures=("iuo",))


@pytest.fixture
def scenes(tmp_path) -> Path:
    """Three drawings with labels of left and right half."""
    root = tmp_path / "data"
    drawings = sorted((Path(__file__).parents[2] / "demo/scenes").glob("*.png"))[:3]
    for number, path in enumerate(drawings):
        for kind in ("images", "labels"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        picture = Image.open(path).convert("RGB").resize((96, 96))
        picture.save(root / f"images/{number}.png")
        labels = np.zeros((96, 96), np.uint8)
        labels[:, 48:] = 1 + number % 2
        Image.fromarray(labels).save(root / f"labels/{number}.png")
    (root / "names.txt").write_text("background\npenguin\npizza\n")
    return root


def test_the_area_threshold_gives_a_rare_class_to_the_next_best(scenes) -> None:
    plain = Experiment("folder", root=str(scenes), model="mini", recipe="maskclip_value")
    dataset = open_dataset("folder", scenes)
    predictor = task_of(plain, dataset).predictor()
    before = predictor(dataset[0].image)
    predictor.min_share = 0.9
    after = predictor(dataset[0].image)
    assert before.labels.min() >= 0
    assert set(np.unique(after.labels)) <= set(np.unique(before.labels)) | {0}
    predictor.min_share = 1e-9
    same = predictor(dataset[0].image)
    np.testing.assert_array_equal(same.labels, before.labels)
    close(same.confidence, before.confidence)


def test_every_published_row_has_its_figure() -> None:
    for recipe, model, refine in papers.rows():
        for benchmark in BENCHMARKS:
            row = Experiment(benchmark, recipe=recipe, model=model, refine=refine or None, paper=True)
            assert row.published > 10, (recipe, model, refine, benchmark)


def test_resclip_has_its_own_shares_for_each_benchmark() -> None:
    one, other = (papers.recipe("resclip", name) for name in ("voc21", "cityscapes"))
    assert (one.attention.feedback.threshold, other.attention.feedback.share) == (0.5, 0.6)
    assert [weight for weight, _ in other.attention.first.terms] == [2 * 0.8, 2 * 0.2]
    assert papers.recipe("sclip", "voc21") == recipes.get("sclip")


@pytest.mark.parametrize("change", [{"proxy": "mini-sam"}, {"precision": "int8"}, {"refine": "lposs+"}])
def test_no_published_figure_where_something_else_is_borrowed(change) -> None:
    plain = {"model": papers.MODEL, "recipe": "proxyclip", "paper": True}
    assert Experiment("coco-object", **plain).published == 37.5
    assert Experiment("coco-object", **{**plain, **change}).published is None
    large = Experiment("coco-object", **{**plain, "model": "ViT-L-14/openai"})
    assert large.published == 39.2


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["eval", "run", *arguments])


def test_a_config_is_evaluated_from_the_command_line(scenes, tmp_path) -> None:
    out = str(tmp_path / "out")
    arguments = [RENDERED, "--out", out, "--dump", "--set", "dataset=folder", "--root", str(scenes), "--crop", "48"]
    done = _run(*arguments, "--limit", "2", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    facts = json.loads((tmp_path / "out/results.json").read_text())
    assert said["measures"]["mIoU"] == pytest.approx(facts["measures"]["mIoU"])
    assert said["report"] == str(tmp_path / "out/report.html")
    assert facts["used"]["recipe"] == "maskclip_value"
    assert facts["used"]["protocol"]["crop"] == 48
    assert facts["run"]["images"] == 2
    assert len(list((tmp_path / "out/predictions").rglob("*.png"))) == 2
    done = _run(*arguments, "--limit", "3")
    assert done.exit_code == 2  # the work folder holds another experiment
    assert "another experiment" in done.stderr
    assert _run(*arguments, "--limit", "3", "--fresh").exit_code == 0


def test_the_tool_of_mmsegmentations_name_is_the_command(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["test.py", "voc2"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "tools/test.py"), run_name="__main__")
    assert "no dataset 'voc2' (closest: voc21" in " ".join(capsys.readouterr().err.split())


def test_torchrun_and_one_process_write_the_same_report(scenes, tmp_path) -> None:
    common = ["--threads", "1", "--set", "dataset=folder", "--set", f"root={scenes}"]
    done = _run(RENDERED, "--out", str(tmp_path / "one"), *common)
    assert done.exit_code == 0, done.output
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [
        *torchrun,
        str(ROOT / "tools/test.py"),
        RENDERED,
        "--out",
        str(tmp_path / "two"),
        "--launcher",
        "pytorch",
        *common,
    ]
    both = subprocess.run(command, check=False, capture_output=True, text=True, timeout=250)
    assert both.returncode == 0, both.stderr
    facts = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert [own.pop("run")["images"] for own in facts] == [3, 3]
    assert facts[0] == facts[1]
    assert len(list((tmp_path / "two/state").glob("*.npz"))) == 2
    tables = [(tmp_path / name / "confusion.csv").read_bytes() for name in ("one", "two")]
    assert tables[0] == tables[1]


OPTIONS = [
    # an option of the command, and what the experiment has of it
    ("--weights x.pt", {"weights": "x.pt"}),
    ("--templates dense", {"templates": "dense"}),
    ("--descriptors looks.json", {"text": {"descriptors": "looks.json"}}),
    ("--presence 0.5", {"presence": 0.5}),
    ("--short-side 64 --crop 0", {"protocol": {"short_side": 64, "crop": None}}),
    ("--stride 8 --plan sliding --blend patch", {"protocol": {"stride": 8, "plan": "sliding", "blend": "patch"}}),
    ("--precision int8", {"precision": "int8"}),
    ("--proxy mini-sam --proxy-scope window", {"proxy": "mini-sam", "proxy_scope": "window"}),
    ("--sam mini-sam --proposals mini-sam", {"sam": "mini-sam", "proposals": "mini-sam"}),
    ("--views flip --refine pamr", {"views": "flip", "refine": "pamr"}),
    ("--device cpu --compat", {"device": "cpu", "compat": True}),
    ("--background voc,0.1 --strings sclip@1", {"background": "voc,0.1", "strings": "sclip@1"}),
    ("--measures iou,boundary --seed 3", {"measures": ("iou", "boundary"), "seed": 3}),
    ("--task panoptic --proposals truth", {"task": "panoptic", "proposals": "truth"}),
    ("--task instance --operator pool", {"task": "instance", "operator": "pool"}),
    ("--crop 9 --set protocol.crop=64 --set protocol.stride=32", {"protocol": {"crop": 64, "stride": 32}}),
    ("--recipe sclip --paper", {"recipe": "sclip", "paper": True}),
    ("--root /data --variant keep-ignore --limit 3", {"root": "/data", "variant": "keep-ignore", "limit": 3}),
]


@pytest.mark.parametrize(("options", "want"), OPTIONS, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("what", ["voc21", "x.yaml"])
def test_every_option_reaches_the_experiment(options, want, what, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("dataset: voc21\nbackground: none")
    for name in ("x.pt", "looks.json"):
        Path(name).touch()
    seen = []

    def evaluate(experiment: Experiment, *_: object, **__: object) -> None:
        seen.append(experiment)
        raise EvaluationError("enough")

    monkeypatch.setattr("densevl.evaluation.evaluate", evaluate)
    done = _run(what, *options.split())
    assert done.stderr == "error: enough\n", done.output
    usual = {"background": "none"} if what == "x.yaml" else {}
    assert seen == [Experiment("voc21", **{**usual, **want})]


def test_every_option_that_decides_what_segment_finds_is_one_of_eval_run() -> None:
    panels = (options.WORDS, options.MODELLING, options.METHOD, options.LOOKING)
    root = typer.main.get_command(app)
    deciding = {param.name for param in root.commands["segment"].params if param.rich_help_panel in panels}
    assert len(deciding) > 15
    given = {"labels", "like", "head", "max_pixels"}  # a benchmark has its own classes, and pictures that it knows
    assert deciding - given <= {param.name for param in root.commands["eval"].commands["run"].params}


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["run", "voc2"], "no dataset 'voc2' (closest: voc21"),
        (["run", "b"], "'b' is a folder, not a benchmark or a config"),
        (["run", "./b"], "densevl eval run folder --root b"),
        (["check", "b"], "densevl eval run folder --root b"),
        (["run", "none.yaml"], "no config 'none.yaml'"),
        (["run", "voc21", "--task", "nothing"], "no task 'nothing'"),
        (["run", "voc21", "--measures", "iuo"], "no measure 'iuo'"),
        (["run", "voc21", "--launcher", "slurm"], "no launcher 'slurm'"),
        (["run", "voc21", "--launcher", "pytorch"], "needs torchrun"),
        (["run", "voc21", "--set", "limit"], "not FIELD=VALUE"),
        (["run", "voc21", "--set", "limits=3"], "no field 'limits' (closest: limit"),
        (["run", "voc21", "--seed", "-1"], "seed of an experiment is 0 to 4294967295"),
        (["run", "voc21", "--set", "measures=[1]"], "measures of an experiment is a list of names"),
        (["run", "voc21", "--set", "min_share=2"], "min_share of an experiment is 0 to 1"),
        (["run", "coco", "--set", "resolve.threshold=x"], "threshold to resolve by is a number"),
        (["run", "coco", "--set", "resolve.threshold=5"], "threshold to resolve by is 0 to 1"),
        (["run", "a" * 5000 + ".yaml"], "File name too long"),
        (["run", "folder", "--root", "a" * 5000], "File name too long"),
        (["run", "voc21", "--out", "a" * 5000], "File name too long"),
        (["run", "voc21", "--threads", "99999999999"], "--threads"),
        (["anomaly", "mvtec", "--set", "shots=-1"], "shots of an experiment is 0 to"),
        (["run", "voc21", "--shots", "1"], "shots goes with task anomaly"),
        (["run", "voc21", "--presence", "many"], "presence"),
        (
            ["analyse", "voc21", "--only", "nothing"],
            "no analysis 'nothing'; there are vocabulary, background, corruption",
        ),
        (["analyse", "voc21", "--only", "vocabulary,foo"], "no analysis 'foo'"),
        (["analyse", "coco", "--set", "task=instance"], "not with task instance"),
        (["compare", "voc21", "--recipes", "sclp"], "closest: sclip"),
        (["check", "voc2"], "no dataset 'voc2' (closest: voc21"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(command, reason, tmp_path, monkeypatch) -> None:
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(app, ["eval", *command])
    assert done.exit_code == 2, done.output
    assert reason in done.stderr
    if done.stderr.startswith("error"):
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "name", ["report.html", "results.json", "classes.csv", "confusion.csv", "predictions/0.png", "predictions/mine.txt"]
)
def test_files_of_others_are_not_replaced_by_a_report(name, scenes, tmp_path) -> None:
    command = ["folder", "--root", str(scenes), "--model", "mini", "--out", str(tmp_path / "out"), "--dump"]
    (tmp_path / "out/predictions").mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    done = _run(*command)
    assert done.exit_code in (2, 4)
    assert "not written by densevl" in done.stderr
    assert (tmp_path / "out" / name).read_text() == "mine"
    assert _run(*command, "--overwrite").exit_code == 0
    assert _run(*command).exit_code == 0


def test_fresh_forgets_counts_and_nothing_else(scenes, tmp_path) -> None:
    command = ["folder", "--root", str(scenes), "--model", "mini", "--out", str(tmp_path)]
    assert _run(*command, "--limit", "1").exit_code == 0
    (tmp_path / "state/mine.txt").write_text("mine")
    (tmp_path / "state/2023-2024.csv").write_text("mine")
    counted = sorted((tmp_path / "state").iterdir())
    assert _run(*command, "--limit", "2", "--fresh", "--recipe", "nope").exit_code == 2
    assert sorted((tmp_path / "state").iterdir()) == counted, "a mistake forgets nothing"
    kept = _run(*command, "--limit", "1", "--dump")
    assert (kept.exit_code, "predictions were not kept" in kept.stderr) == (2, True)
    done = _run(*command, "--limit", "2", "--fresh", "--dump", "--quiet")
    assert (done.exit_code, done.stdout) == (0, "")
    assert all(line.startswith("warning: ") for line in done.stderr.splitlines())
    assert (tmp_path / "state/mine.txt").read_text() == (tmp_path / "state/2023-2024.csv").read_text() == "mine"


@pytest.mark.parametrize(
    ("classes", "given", "told"),
    [
        ("penguin\npizza", [], True),
        ("penguin\npizza", ["--background", "none"], False),
        ("background\npenguin", [], False),
    ],
)
def test_a_background_that_is_left_out_is_told(classes, given, told, scenes, tmp_path) -> None:
    (scenes / "names.txt").write_text(classes)
    for path in (scenes / "labels").iterdir():
        Image.fromarray(np.zeros_like(np.array(Image.open(path)))).save(path)
    done = _run("folder", "--root", str(scenes), "--model", "mini", "--limit", "1", "--out", str(tmp_path), *given)
    assert done.exit_code == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert ("background: none, since 'folder' has no background class" in said) == told
    assert ("--background 'sky, grass, " in said) == told


def test_words_that_the_model_does_not_know_are_told_of_everywhere(scenes, tmp_path) -> None:
    (scenes / "names.txt").write_text("background\npenguin\nquokka\n")
    done = _run("folder", "--root", str(scenes), "--model", "mini", "--out", str(tmp_path))
    assert done.exit_code == 0
    kept = json.loads((tmp_path / "results.json").read_text())["warnings"]
    told = next(text for text in kept if "quokka" in text and "mini" in text)
    assert done.stderr.count(f"warning: {told}") == 1
    assert told in html.unescape((tmp_path / "report.html").read_text())


@pytest.fixture
def cups(tmp_path) -> Path:
    """Two categories of two flawless and two damaged things."""
    rng = np.random.default_rng(0)
    for category in ("cup", "nut"):
        for place in ("train/good", "test/good", "test/dent"):
            for number in range(2):
                path = tmp_path / "things" / category / place / f"{number:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture, mask = rng.integers(0, 60, (32, 32, 3)).astype(np.uint8), np.zeros((32, 32), np.uint8)
                if place == "test/dent":
                    picture[8:16, 8:16], mask[8:16, 8:16] = 255, 255
                    truth = tmp_path / "things" / category / "ground_truth/dent" / f"{number:03d}_mask.png"
                    truth.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask).save(truth)
                Image.fromarray(picture).save(path)
    return tmp_path / "things"


@pytest.mark.parametrize(
    "command",
    [
        ["anomaly", "mvtec", "--model", "mini"],
        ["run", "mvtec", "--model", "mini"],
        ["run", str(ROOT / "configs/anomaly.yaml"), "--set", "model=mini"],
    ],
    ids=["anomaly", "run", "config"],
)
def test_anomaly_has_three_ways_and_one_report(command, cups, tmp_path) -> None:
    out = str(tmp_path / "out")
    arguments = ["eval", *command, "--root", str(cups), "--shots", "1", "--scoring", "patchcore", "--out", out]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "pixel_auroc" in done.stdout
    assert ("| cup |" in done.stdout) == (command[0] == "anomaly")
    facts = json.loads((tmp_path / "out/results.json").read_text())
    assert (facts["task"], facts["experiment"]["shots"], len(facts["images"])) == ("anomaly", 1, 8)
    assert (tmp_path / "out/report.html").read_text().count("data:image/jpeg") == 4 * 3  # the damaged
    again = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(again.stdout)["measures"]["pixel_auroc"] == pytest.approx(facts["measures"]["pixel_auroc"])
    assert json.loads((tmp_path / "out/results.json").read_text())["run"]["resumed"] == 8
    other = CliRunner().invoke(app, [*arguments, "--limit", "2"])
    assert other.exit_code == 2
    assert "--fresh" in other.stderr
