"""The rules of the house that a reader of one file cannot see: floors, safe loading, no asserts, no prints."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
BEGIN, END = "<!-- rooms: python tests/test_house.py -->\n", "<!-- /rooms -->"
PACKAGE = Path(__file__).parents[1] / "densevl"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {
    # From the ground up: a room imports only rooms before it, for type checking too. What it holds is CONTRIBUTING's
    # table, which `python tests/test_house.py` writes.
    "__init__": "the public names, loaded when first used",
    "errors": "every error a user can cause",
    "rle": "run lengths, as COCO has them",
    "cache": "where files are cached",
    "lazy": "torch when it is first used",
    "digest": "SHA-256 of texts, files and tensors",
    "stacking": "which mask is on top",
    "devices": "where models run",
    "files": "files written whole or not at all, and never over others",
    "saved": "files of densevl read again, within limits",
    "weights": "weights read as data",
    "shipped": "the files that the package carries",
    "drawing": "overlays, legends, contact sheets",
    "images": "any source to uint8 RGB",
    "fitted": "what was fitted on a model, on disk",
    "results": "what all results share, and `SegmentationResult`",
    "kernels": "one file an operator, Triton beside it",
    "refine": "scores and labels sharpened",
    "concepts": "models that judge each text for itself",
    "proposals": "an image to masks; `sam/` is Segment Anything",
    "recipes": "methods as data, and the engine; `parts/` one file a kind of operation, `catalogue/` the papers",
    "backbones": "models behind one contract; `towers/`, `photo/`, `proxies/`",
    "vocabulary": "words to embeddings",
    "exporting": "models as files that other programs run",
    "inference": "windows, the one loop over them, stitching, decoding to labels",
    "regions": "the arithmetic of regions: embedded, named, resolved, exported; `operators/` from masks to vectors",
    "explaining": "the arithmetic of where a score comes from: patches, heads, words and patches together",
    "anomaly": "the arithmetic of anomaly maps: words, windows, memories, scores",
    "fewshot": "the arithmetic of classes by example",
    "pipelines": "one folder a use; `folder/` is the loop from many images to files",
    "integrations": "other people's detectors and result types",
    "benchmarking": "time on this machine",
    "serving": "the pipelines over HTTP, and `page/`, one page over the same API",
    "diagnosis": "what `densevl doctor` looks at",
    "evaluation": "an experiment from data to report; `benchmarks/`, `metrics/`, `report/`",
    "tuning": "settings chosen for the user's own pictures, by cross-validation",
    "cli": "the command, no logic; `options.py` has each shared option once",
    "__main__": "`python -m densevl`",
}
ORDER = list(ROOMS)
LARGEST = 19
"""Files of Python in one folder: more are rooms within the room."""


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in FILES}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _imports(path: Path) -> set[str]:
    """Modules of densevl that a file imports, inside functions and for type checking too."""
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "densevl":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in names if name in MODULES} or {node.module}
    return found


def _room(module: str) -> str:
    return [*module.split("."), "__init__"][1]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_below_it(path) -> None:
    own = _room(_module(path))
    if own == "__init__":
        return  # the public face: what it offers is loaded when asked for
    for module in _imports(path):
        assert _room(module) == own or ORDER.index(_room(module)) < ORDER.index(own), f"imports {module}"


def test_every_room_is_listed_and_exists() -> None:
    there = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert there == set(ROOMS)


def test_no_folder_is_too_full_to_be_read() -> None:
    full = Counter(path.parent for path in FILES)
    assert not {str(folder): count for folder, count in full.items() if count > LARGEST}


def test_the_table_of_rooms_in_contributing_is_the_one_that_is_tested() -> None:
    assert contributing() == CONTRIBUTING.read_text(encoding="utf-8")


def test_what_every_command_loads_needs_no_extra() -> None:
    extras = (
        "cv2 segment_anything mmengine diffusers trimesh zarr skimage matplotlib fastapi onnx rasterio av tokenizers"
    )
    code = f"""
import sys
sys.modules.update(dict.fromkeys({extras.split()!r}))  # None: cannot be imported
import densevl.pipelines.folder.gathered, densevl.backbones.proxies, densevl.concepts, densevl.pipelines.points
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {name: _imports(path) & set(MODULES) for name, path in MODULES.items() if path.stem != "__init__"}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_asserts_prints_pickles_or_unsafe_loads(path) -> None:
    for node in ast.walk(_tree(path)):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: assert"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name != "print", f"line {node.lineno}: print"
            assert not name.startswith(("pickle.", "dill.", "joblib.")), f"line {node.lineno}: {name}"
            if name == "torch.load":
                settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert settings.get("weights_only") == "True", f"line {node.lineno}: torch.load without weights_only"
            if name == "np.load":
                settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert settings.get("allow_pickle") == "False", f"line {node.lineno}: np.load with pickles"


def contributing() -> str:
    """CONTRIBUTING.md with the table of rooms, from the top of the house to the ground."""
    head, rest = CONTRIBUTING.read_text(encoding="utf-8").split(BEGIN)
    rows = [
        f"| `{room}{'/' if (PACKAGE / room).is_dir() else '.py'}` | {holds} |"
        for room, holds in reversed(ROOMS.items())
    ]
    return head + BEGIN + "\n".join(["| room | holds |", "|---|---|", *rows]) + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    CONTRIBUTING.write_text(contributing(), encoding="utf-8")
