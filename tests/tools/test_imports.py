"""Every tool and demo finds what it takes from densevl: nothing that it imports has moved."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted((ROOT / "tools").rglob("*.py"))]


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__init__")])
def test_a_tool_imports(module) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in ("densevl", "tools"):
            raise
        pytest.skip(f"{error.name} is not installed")
