"""The rules of the house that a reader of one file cannot see: floors, safe loading, no asserts, no prints."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "densevl"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = (
    # from the ground up: a room imports only rooms before it, for type checking too
    "__init__", "errors", "rle", "cache", "lazy", "digest", "stacking", "devices", "files", "weights", "shipped",
    "drawing", "images", "fitted", "results", "kernels", "refine", "proposals", "recipes", "backbones",
    "vocabulary", "inference", "regions", "anomaly", "fewshot", "pipelines", "integrations", "benchmarking",
    "diagnosis", "evaluation", "cli", "__main__",
)  # fmt: skip


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in FILES}


def _imports(path: Path) -> set[str]:
    """Modules of densevl that a file imports, inside functions and for type checking too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
        assert _room(module) == own or ROOMS.index(_room(module)) < ROOMS.index(own), f"imports {module}"


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {name: _imports(path) & set(MODULES) for name, path in MODULES.items() if path.stem != "__init__"}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_asserts_prints_pickles_or_unsafe_loads(path) -> None:
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
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
