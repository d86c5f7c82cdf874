"""Labels as people write them: class files of other projects, lists pasted from elsewhere."""

from __future__ import annotations

from pathlib import Path

from case import Case, cases

from densevl import LabelSet


def _names(folder: Path, name: str, content: str) -> list[str]:
    (folder / name).write_text(content, encoding="utf-8")
    return list(LabelSet.parse(str(folder / name)).names)


TABLE = (
    Case(
        "a file of classes, one a line",
        "a labels argument that is a file",
        lambda folder: _names(folder, "classes.txt", "cat\ndog\n"),
        right=lambda names: names == ["cat", "dog"],
    ),
)


@cases(*TABLE)
def test_labels_are_what_was_meant_or_refused(case: Case, tmp_path: Path) -> None:
    case.hold(tmp_path)
