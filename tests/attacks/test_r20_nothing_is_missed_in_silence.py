"""R20: an absent package is named with its extra, what ships works without a network, and help is soon there."""

from __future__ import annotations

import ast
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
BLOCKED = """
import importlib.abc, json, sys
import numpy as np

class Absent(importlib.abc.MetaPathFinder):
    packages = set(sys.argv[1].split(","))
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

sys.meta_path.insert(0, Absent())
import importlib.util
there = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.partition(".")[0] in Absent.packages else there(name, *rest)

from pathlib import Path
import densevl
from densevl.errors import MissingExtraError
from densevl.images import read_image

def to_supervision():
    return densevl.Segmenter("mini")(np.zeros((32, 32, 3), np.uint8), ["cat"]).to_supervision()

def served():
    from typer.testing import CliRunner
    from densevl.cli import app
    done = CliRunner().invoke(app, ["serve", "--model", "mini"])
    assert done.exit_code == 2, done.output
    raise SystemExit(done.stderr)

def program():
    Path("x.py").write_text("dataset = 'voc21'")
    from densevl.evaluation.config import load_experiment
    load_experiment("x.py", trust=True)

CALLS = {
    "viz": to_supervision,
    "serve": served,
    "eval": program,
    "superpixels": lambda: densevl.load_proposer("superpixels"),
    "sam": lambda: densevl.load_proposer("mini-sam"),
    "remote": lambda: read_image("memory://x.png"),
    "heif": lambda: read_image(b"\\0\\0\\0\\x18ftypheic" + bytes(99)),
    "geo": lambda: densevl.BlockSegmenter("mini")(sys.argv[2], ["cat"]),
    "video": lambda: list(densevl.VideoSegmenter(densevl.Segmenter("mini"))(sys.argv[2], ["cat"])),
}
said = {}
for extra, call in CALLS.items():
    try:
        call()
        said[extra] = "nothing"
    except (MissingExtraError, SystemExit) as error:
        said[extra] = str(error)
    except BaseException as error:
        said[extra] = repr(error)
print(json.dumps(said))
"""
PACKAGES = "supervision,fastapi,uvicorn,starlette,mmengine,skimage,segment_anything,fsspec,pi_heif,rasterio,av"
OFFLINE = """
import json, socket, sys
def refuse(*given, **named):
    raise AssertionError(f"asked the network for {given}")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from densevl.cli import app
for words in json.loads(sys.argv[1]):
    try:
        app(words)
    except SystemExit as done:
        assert not done.code, (words, done.code)
"""
SHIPPED = [
    ["segment", "small.png", "--labels", "cat, dog", "--model", "mini", "--out", "segment"],
    ["segment", "small.png", "--labels", "cat, dog", "--model", "mini", "--recipe", "proxyclip", "--proxy", "mini-sam",
     "--out", "proxy"],
    ["regions", "small.png", "--labels", "cat, dog", "--model", "mini", "--proposals", "mini-sam", "--out", "regions"],
    ["classify", "small.png", "--labels", "cat, dog", "--model", "mini", "--out", "classify"],
    ["features", "small.png", "--model", "mini", "--out", "features"],
    ["search", "photos", "--for", "cat", "--model", "mini", "--out", "search", "--index", "index.npz"],
    ["anomaly", "fit", "small.png", "--model", "mini", "--out", "detector"],
    ["anomaly", "score", "small.png", "--detector", "detector.safetensors", "--model", "mini", "--out", "score"],
    ["fewshot", "fit", "classes", "--model", "mini", "--out", "head"],
    ["models"],
    ["models", "show", "mini"],
    ["recipes", "show", "sclip"],
    ["doctor"],
]  # fmt: skip


def _picture(folder: Path) -> str:
    Image.new("RGB", (32, 24), (9, 90, 200)).save(folder / "small.png")
    return str(folder / "small.png")


def test_an_absent_package_is_one_line_that_names_its_extra(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BLOCKED, PACKAGES, _picture(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for extra, said in json.loads(done.stdout.splitlines()[-1]).items():
        assert f"densevl[{extra}]" in said, (extra, said)
        assert "\n" not in said.strip()


def test_every_hint_names_an_extra_that_there_is() -> None:
    """And every extra for users is named by one, but those whose packages are read as they are, or stand for others."""
    setup = {
        ast.unparse(node.targets[0]): node.value
        for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
    }
    table = ast.literal_eval(setup["EXTRAS"])
    extras = {name: [one.split(">")[0] for one in packages] for name, (_, packages) in table.items()}
    named: dict[str, set[str]] = {}
    for path in (ROOT / "densevl").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "MissingExtraError(" in text else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "MissingExtraError":
                package, extra = node.args[:2]
                if isinstance(extra, ast.Constant):
                    named.setdefault(extra.value, set())
                    if isinstance(package, ast.Constant):
                        named[extra.value].add(package.value)
    for extra, packages in named.items():
        wanted = {one.partition("[")[0] for one in extras[extra]}
        assert packages <= wanted | {"opencv-python"}, extra
    kept = {"photo-affinity", "export"} | ast.literal_eval(setup["FOR_WORK_ON_DENSEVL"])
    assert set(extras) - set(named) <= kept


def test_all_that_ships_works_without_a_network(tmp_path: Path) -> None:
    """Sockets of Python refuse; where the system lets us, the process has no network at all either."""
    picture = Path(_picture(tmp_path))
    for place in ("photos", "classes/one", "classes/two"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "x.png").write_bytes(picture.read_bytes())
    alone = ["unshare", "--user", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        alone = []
    command = [*alone, sys.executable, "-c", OFFLINE, json.dumps(SHIPPED)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in (
        "segment/small.png",
        "proxy/small.png",
        "regions/small.json",
        "classify/small.json",
        "score/small.json",
    ):
        assert (tmp_path / name).exists(), name


@pytest.mark.parametrize("words", [["--help"], ["segment", "--help"], ["--version"]])
def test_help_takes_less_than_a_second(words: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-m", "densevl", *words], capture_output=True, check=True)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 1
