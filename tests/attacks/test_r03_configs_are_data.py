"""R3: configs are data. Hostile ones run no code and are one line; a program runs only where it is trusted."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from densevl.cli import app
from densevl.errors import DensevlError, RecipeError
from densevl.evaluation import EvaluationError, Experiment
from densevl.evaluation.config import LIMIT, load_experiment
from densevl.recipes import get
from densevl.vocabulary import LabelSet

needs_mmengine = pytest.mark.skipif(find_spec("mmengine") is None, reason="mmengine is not installed")
PROGRAM = "import pathlib\npathlib.Path('ran').touch()\ndataset = 'voc21'\nX = 1\n"
TOUCH = "open('ran', 'w')"
LAUGHS = "a: &a [x, x]\n" + "".join(f"{new}: &{new} [{f'*{old}, ' * 9}]\n" for old, new in pairwise("abcdefghi"))


HOSTILE = {
    # name: file, content, what the line says, what else lies there
    "object": ("x.yaml", f'dataset: !!python/object/apply:builtins.eval ["{TOUCH}"]', "tags (!name) are not read"),
    "object, as a base": ("x.json", '{"_base_": "object.yaml"}', "tags (!name) are not read"),
    "name": ("x.yaml", "dataset: !!python/name:evil.X", "tags (!name) are not read"),
    "module": ("x.yml", "dataset: !!python/module:evil", "tags (!name) are not read"),
    "program": ("evil.py", PROGRAM, "add --trust-config"),
    "program in capitals": ("evil.PY", PROGRAM, "add --trust-config"),
    "program as a base": ("x.yaml", "_base_: evil.py", "its ending is none of"),
    "program among bases": ("x.toml", '_base_ = ["good.yaml", "evil.py"]', "its ending is none of"),
    "program under another ending": ("x.yaml", PROGRAM, "cannot be read"),
    "recipe that imports": ("x.yaml", "dataset: voc21\nrecipe: evil:X", "names a recipe that is Python code"),
    "recipe that imports, in a base": ("x.json", '{"_base_": "recipe.yaml"}', "names a recipe that is Python code"),
    "mmengine's imports": ("x.json", '{"dataset": "voc21", "custom_imports": {"imports": ["evil"]}}', "no field"),
    "expression": ("x.yaml", f"dataset: voc21\nlimit: {TOUCH}", "limit of an experiment is a whole number"),
    "base above": ("x.yaml", "_base_: ../outside.yaml", "is outside the folder"),
    "base by detour": ("x.yaml", "_base_: sub/../../outside.yaml", "is outside the folder"),
    "absolute base": ("x.yaml", "_base_: {absolute}", "is outside the folder"),
    "base behind a link": ("x.yaml", "_base_: link.yaml", "is outside the folder"),
    "base of the system": ("x.yaml", "_base_: /etc/passwd", "is outside the folder"),
    "base that is a folder": ("x.yaml", "_base_: .", "its ending is none of"),
    "base with a null byte": ("x.json", '{"_base_": "a\\u0000.yaml"}', "null"),
    "base that is a number": ("x.yaml", "_base_: 3", "is a file or a list of files"),
    "itself as base": ("x.yaml", "_base_: x.yaml", "in a circle"),
    "circle": ("x.yaml", "_base_: circle.yaml", "in a circle"),
    "long chain": ("x.yaml", "_base_: deep0.yaml", "over more than 8 files"),
    "billion laughs": ("x.yaml", LAUGHS, "aliases (*name) and tags (!name) are not read"),
    "alias of itself": ("x.yaml", "protocol: &a {crop: *a}", "aliases (*name) and tags (!name) are not read"),
    "merge key": ("x.yaml", "dataset: voc21\n<<: {recipe: sclip}", "no field '<<'"),
    "huge": ("x.yaml", "# " + "x" * LIMIT, "more than 20,000 bytes"),
    "huge, as a base": ("x.yaml", "_base_: huge.json", "more than 20,000 bytes"),
    "deep lists": ("x.yaml", "measures: " + "[" * 9_000, "nested too deeply"),
    "deep lists of JSON": ("x.json", "[" * 9_000, "nested too deeply"),
    "endless number": ("x.json", '{"seed": ' + "9" * 9_000 + "}", "limit"),
    "environment": ("x.yaml", 'dataset: voc21\nroot: "{{$SECRET:}}"', "asks for a value to be filled in"),
    "mmengine's names": ("x.json", '{"dataset": "{{ fileDirname }}"}', "asks for a value to be filled in"),
    "list": ("x.yaml", "- voc21", "holds no fields"),
    "nothing": ("x.yaml", "", "it is empty"),
    "text": ("x.json", '"voc21"', "holds no fields"),
    "key that is no number": ("x.yaml", "!!float .nan: voc21", "tags (!name) are not read"),
    "number as key": ("x.yaml", "1: voc21", "key '1' is not text"),
    "list as key": ("x.yaml", "? [a]\n: voc21", "is not text"),
    "no number": ("x.json", '{"dataset": "voc21", "min_share": NaN}', "is not a finite number"),
    "infinite": ("x.toml", 'dataset = "voc21"\nmin_share = inf', "is not a finite number"),
    "doubled key": ("x.yaml", "dataset: voc21\ndataset: voc20", "key 'dataset' appears twice"),
    "doubled key of JSON": ("x.json", '{"seed": 1, "seed": 2}', "key 'seed' appears twice"),
    "doubled key within": ("x.yaml", "protocol: {crop: 1, crop: 2}", "key 'crop' appears twice"),
    "two documents": ("x.yaml", "dataset: voc21\n---\ndataset: voc20", "another document"),
    "date": ("x.toml", "dataset = 2001-01-01", "is a date"),
    "bytes": ("x.yaml", b"\x80\x81\xff", "it is not text"),
    "null bytes": ("x.yaml", "dataset: \x00", "unacceptable character"),
    "escapes of a terminal": ("x.json", '{"\\u001b[2J": 1}', "no field '\\x1b[2J'"),
    "a value with escapes": ("x.yaml", 'dataset: "\\e[2J\\nx"', "no dataset '\\x1b[2J\\nx'"),
    "dots that take minutes": ("x.toml", "a" + ".a" * 40_000 + "=1", "more than 20,000 bytes"),
    "unknown field": ("x.yaml", "datasets: voc21", "no field 'datasets' (closest: dataset"),
    "ending": ("x.txt", "dataset: voc21", "its ending is none of"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """What hostile configs reach for: a program, bases that lead in a circle, a file outside."""
    own = tmp_path / "own"
    own.mkdir()
    files = {
        "evil.py": PROGRAM,
        "good.yaml": "dataset: voc21",
        "object.yaml": HOSTILE["object"][1],
        "recipe.yaml": HOSTILE["recipe that imports"][1],
        "circle.yaml": "_base_: x.yaml",
        "huge.json": '"' + "x" * LIMIT + '"',
        "../outside.yaml": "dataset: voc21",
    }
    for name, content in files.items():
        (own / name).write_text(content)
    (own / "link.yaml").symlink_to("../outside.yaml")
    for number in range(20):
        (own / f"deep{number}.yaml").write_text(f"_base_: deep{number + 1}.yaml\n")
    monkeypatch.setenv("SECRET", "s3cret")
    monkeypatch.chdir(own)
    return own


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_config_runs_no_code_and_is_one_line(name, folder) -> None:
    file, content, reason = HOSTILE[name]
    text = (
        content
        if isinstance(content, bytes)
        else content.replace("{absolute}", str(folder.parent / "outside.yaml")).encode()
    )
    (folder / file).write_bytes(text)
    done = CliRunner().invoke(app, ["eval", "run", f"./{file}"])
    assert done.exit_code == 2, done.output
    assert reason in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "s3cret" not in done.stderr
    assert not list(folder.parent.rglob("ran"))


@pytest.mark.parametrize("name", ["object", "module", "recipe that imports"])
def test_the_hostile_configs_do_run_code_where_they_are_not_read_as_data(name, folder, monkeypatch) -> None:
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    found = yaml.unsafe_load(HOSTILE[name][1])
    if "recipe" in found:
        with pytest.raises(RecipeError):
            get(found["recipe"])
    assert (folder / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        f'dataset=!!python/object/apply:builtins.eval ["{TOUCH}"]',
        "dataset={{$SECRET:}}",
        "limit",
        "=3",
        "limit=[1",
        "seed=" + "9" * 5000,
        "protocol={crop: 1, crop: 2}",
        f"limit={TOUCH}",
        "limit=__import__('evil').X",
        "__class__=3",
        "limit.x=3",
        "seed=.inf",
        "min_share=1" + "0" * 400,
        "protocol" + ".a" * 5000 + "=1",
    ],
)
def test_a_hostile_change_is_one_line(change, folder) -> None:
    done = CliRunner().invoke(app, ["eval", "run", "good.yaml", "--set", change])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "s3cret" not in done.stderr
    assert not list(folder.parent.rglob("ran"))


@needs_mmengine
def test_a_trusted_program_runs_and_says_so(folder, caplog) -> None:
    (folder / "evil.py").write_text(PROGRAM.replace("X = 1", "limit = 2 + 1"))
    with caplog.at_level(logging.WARNING):
        assert load_experiment("evil.py", {"seed": 1}, trust=True) == Experiment("voc21", limit=3, seed=1)
    assert [record.message for record in caplog.records] == ["config 'evil.py' is trusted, and run as a program"]
    assert (folder / "ran").exists()
    (folder / "evil.py").write_text("dataset = 1 / 0\n")
    with pytest.raises(EvaluationError, match="cannot be read: division by zero") as caught:
        load_experiment("evil.py", trust=True)
    assert "\n" not in str(caught.value)
    (folder / "x.yaml").write_text("_base_: evil.py")
    with pytest.raises(EvaluationError, match="its ending is none of"):  # trusted or not, data rests on data
        load_experiment("x.yaml", trust=True)


NESTED = ", ".join(["&a [x, x]", *(f"&{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in pairwise("abcdefghi"))])
HOSTILE_LABELS = {
    "object": ("x.yaml", f'- !!python/object/apply:builtins.eval ["{TOUCH}"]'),
    "name": ("x.yaml", "names: !!python/name:os.system"),
    "billion laughs": ("x.yaml", LAUGHS),
    "billion laughs, all in one label": ("x.yaml", f"- [{NESTED}]"),
    "billion laughs as names of a data set": ("x.txt", f"names: [[{NESTED}]]"),
    "alias of itself": ("x.yaml", "names: &a [*a]"),
    "deep lists": ("x.json", "[" * 100_000),
    "deep mappings": ("x.yaml", "{a: " * 5_000),
    "a label as long as the file": ("x.json", f"[[{'1,' * 100_000}1]]"),
}


@pytest.mark.parametrize("name", HOSTILE_LABELS)
def test_a_hostile_file_of_labels_runs_no_code_and_is_one_line(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    file, content = HOSTILE_LABELS[name]
    (tmp_path / file).write_text(content)
    with pytest.raises(DensevlError) as caught:
        LabelSet.parse(tmp_path / file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert not (tmp_path / "ran").exists()
