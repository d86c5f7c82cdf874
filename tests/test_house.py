"""The rules of the house that a reader of one file cannot see: floors, safe loading, no asserts, no prints."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "densevl"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = {
    "cli": 6,
    "__main__": 7,
    "diagnosis": 5,
    "evaluation": 5,
    "benchmarking": 5,
    "integrations": 5,
    "pipelines": 4,
    "backbones": 3,
    "recipes": 2,
    "anomaly": 2,
    "fewshot": 2,
    "inference": 2,
    "regions": 2,
    "proposals": 1,
    "kernels": 1,
    "vocabulary": 1,
    "refine": 1,
    "results": 1,
    "drawing": 1,
    "rle": 1,
    "images": 1,
    "files": 1,
    "cache": 1,
    "shipped": 1,
    "fitted": 1,
    "weights": 1,
    "devices": 1,
    "errors": 0,
    "digest": 0,
    "stacking": 0,
    "__init__": 0,  # for its version; what it offers is loaded when asked for
}


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def _imports(node: ast.AST) -> list[str]:
    """Modules of densevl that run-time code imports, inside functions too, but not for type checking."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return []
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "densevl":
        if node.module == "densevl":
            return [f"densevl.{name.name}" if name.name in FLOORS else "densevl" for name in node.names]
        return [node.module]
    return [module for child in ast.iter_child_nodes(node) for module in _imports(child)]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_floor_imports_only_floors_below_it(path) -> None:
    relative = path.relative_to(PACKAGE)
    room = relative.parts[0].removesuffix(".py")
    room = "__main__" if room == "__init__" else room
    for module in _imports(ast.parse(path.read_text(encoding="utf-8"))):
        if _room(module) != room:
            assert FLOORS[_room(module)] <= FLOORS[room], f"{relative} imports {module}"


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
