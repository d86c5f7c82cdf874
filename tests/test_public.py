"""The public face: one table of names, which must not change by accident."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import densevl

STUB = Path(densevl.__file__).with_name("__init__.pyi")
PUBLIC = {
    *("Segmenter", "RegionClassifier", "AnomalyDetector", "FewShot", "Ensemble", "RegionSearch"),
    *("SegmentationResult", "RegionResult", "AnomalyResult", "Classification", "Proposals"),
    *("LabelSet", "TextOptions", "Descriptors", "Recipe", "DensevlError"),
    *("load_backbone", "load_proposer", "load_proxy", "train_adapters"),
    *("backbones", "evaluation", "fewshot", "images", "inference", "integrations", "kernels"),
    *("recipes", "regions", "vocabulary"),
}


def test_the_public_names_are_these() -> None:
    assert set(densevl.__all__) == PUBLIC
    assert set(dir(densevl)) >= PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC | {"__version__"}))
def test_every_public_name_resolves(name) -> None:
    assert getattr(densevl, name) is not None


def test_the_table_names_where_each_is_defined() -> None:
    """Else an editor jumps to a re-export, and a moved class keeps two addresses."""
    for node in ast.parse(STUB.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                assert getattr(densevl, alias.name).__module__ == f"densevl.{node.module}"


def test_everything_can_be_imported_by_a_star() -> None:
    scope: dict[str, object] = {}
    exec("from densevl import *", scope)
    assert scope.keys() >= PUBLIC


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nope"):
        densevl.nope  # noqa: B018


def test_importing_densevl_imports_no_torch() -> None:
    code = "import densevl, sys; dir(densevl); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
