"""A release is refused where its version is said in two ways, or its wheel lacks a file."""

from __future__ import annotations

import subprocess
import zipfile

import pytest

from densevl import digest
from tools.release import contradictions, missing


@pytest.fixture
def tree(tmp_path):
    """A repository that is ready for version 1.2.0."""
    (tmp_path / "CITATION.cff").write_text("version: 1.2.0\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0 - 2026-12-01\n\n## 1.1.0 - 2026-11-01\n")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *who, "commit", "-qm", "ready"], cwd=tmp_path, check=True)
    return tmp_path


def test_a_tree_that_is_ready_is_released(tree) -> None:
    assert not list(contradictions(tree, "1.2.0"))


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("CITATION.cff", "version: 1.1.0\n", "CITATION.cff does not say version 1.2.0"),
        ("CHANGELOG.md", "## 1.2.0 (unreleased)\n", "CHANGELOG.md begins with '1.2.0 (unreleased)'"),
        ("CHANGELOG.md", "", "CHANGELOG.md begins with ''"),
        ("new.py", "", "not committed, such as new.py"),
    ],
)
def test_what_contradicts_is_named(tree, file, text, said) -> None:
    (tree / file).write_text(text)
    assert any(said in sentence for sentence in contradictions(tree, "1.2.0"))


def test_a_wheel_that_lacks_or_changes_a_file_is_found(tmp_path) -> None:
    wheel = tmp_path / "densevl.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("densevl/a.json", "{}")
        archive.writestr("densevl/b.json", "other")
    known = digest.of_bytes(b"{}")
    sums = "".join(
        f"{known}  {name}\n" for name in ("densevl/a.json", "densevl/b.json", "densevl/c.json", "demo/d.png")
    )
    assert missing(wheel, sums) == ["densevl/b.json", "densevl/c.json"]
