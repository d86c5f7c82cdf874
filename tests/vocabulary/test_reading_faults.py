"""What is wrong inside a labels file is told with the name of the file."""

from __future__ import annotations

import pytest

from densevl import LabelSet
from densevl.errors import LabelError


@pytest.mark.parametrize(
    ("content", "fault"),
    [('["cat", ""]', "an empty"), ("cat\ncat\n", "twice")],
    ids=["empty", "twice"],
)
def test_a_fault_within_a_file_names_the_file(tmp_path, content, fault) -> None:
    path = tmp_path / "classes"
    path.write_text(content)
    with pytest.raises(LabelError, match=rf"labels file .*classes.*: .*{fault}"):
        LabelSet.parse(path)
    with pytest.raises(LabelError) as caught:
        LabelSet.parse(["cat", "cat"])
    assert "file" not in str(caught.value)
