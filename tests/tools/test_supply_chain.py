"""What is shipped is what is listed, what is pinned is looked up and said honestly, and weights import nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools.audit import audit, report
from tools.shipped_sums import SUMS, shipped, sums

FAULT = {"id": "PYSEC-1", "fix_versions": ["2.1"], "aliases": [], "description": ""}
SOUND, BAD = {"name": "a", "version": "1", "vulns": []}, {"name": "b", "version": "2", "vulns": [FAULT]}
UNKNOWN = {"name": "c", "skip_reason": "not found"}
LOADING = """
import json, sys
from densevl.backbones import load_backbone
from densevl.proposals import load_proposer
from densevl.weights import read_checkpoint
import torch, safetensors.torch, numpy
from pathlib import Path
before = set(sys.modules)
for path in sys.argv[1:]:
    read_checkpoint(Path(path))
of_files = set(sys.modules) - before
load_backbone("mini", device="cpu")
of_models = set(sys.modules) - before
packages = lambda names: sorted({name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"densevl"})
print(json.dumps([packages(of_files), packages(of_models)]))
"""


def test_what_is_shipped_is_what_is_listed() -> None:
    """Changed on purpose: python -m tools.shipped_sums."""
    assert SUMS.read_text(encoding="utf-8") == sums()


def test_the_list_names_weights_tables_and_examples() -> None:
    names = {path.as_posix() for path in shipped()}
    assert {"densevl/weights/mini.safetensors", "densevl/weights/mini_sam.safetensors"} <= names
    assert {"densevl/backbones/photo/wordnet.json", "densevl/vocabulary/words/nouns.txt"} <= names
    assert {"densevl/serving/page/examples/cat.jpg", "demo/images/cat.jpg"} <= names


def test_a_changed_or_a_further_file_changes_the_list(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "a.json").write_text("1")
    first = sums(tmp_path)
    (tmp_path / "demo" / "b.png").write_text("1")
    second = sums(tmp_path)
    (tmp_path / "demo" / "a.json").write_text("2")
    assert len({first, second, sums(tmp_path)}) == 3


@pytest.mark.parametrize(
    ("rows", "said", "code"),
    [
        ([SOUND, SOUND], "audit: 0 known faults in 2 pinned packages", 0),
        ([SOUND, BAD, UNKNOWN], "b 2: PYSEC-1, mended in 2.1|audit: 1 known faults in 2 .*; 1 could not be", 1),
        ([UNKNOWN, UNKNOWN], "audit: none of 2 pinned packages could be looked up here", 0),
    ],
    ids=["sound", "a fault", "nothing known"],
)
def test_an_audit_says_what_it_looked_up(rows, said, code) -> None:
    lines, found = report({"dependencies": rows})
    assert found == code
    parts = said.split("|")
    assert len(lines) == len(parts)
    for line, part in zip(lines, parts, strict=True):
        assert line.startswith(part.partition(".*")[0])


@pytest.mark.parametrize("program", ["/no/such/pip-audit", "false"])
def test_an_audit_that_cannot_be_done_is_one_line_and_no_failure(program) -> None:
    lines, code = audit(program, "requirements/tested.txt")
    assert (len(lines), code) == (1, 0)
    assert lines[0].startswith("audit: not done")


def test_reading_weights_imports_no_package(tmp_path: Path) -> None:
    """A file of torch and one of safetensors import nothing at all; the shipped model, what its words need."""
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    shipped_weights = Path(__file__).parents[2] / "densevl" / "weights" / "mini.safetensors"
    command = [sys.executable, "-c", LOADING, str(tmp_path / "a.pt"), str(shipped_weights)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    of_files, of_models = json.loads(done.stdout)
    assert of_files == []
    assert set(of_models) <= {"ftfy", "regex", "wcwidth", "open_clip", "torch"}  # torch has parts that come late
