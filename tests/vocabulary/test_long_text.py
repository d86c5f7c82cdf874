"""Windows over long text: none too long for the tokenizer, no word lost, short labels untouched."""

from __future__ import annotations

from itertools import pairwise

import open_clip
import pytest

from densevl.vocabulary.long_text import budget, tokens_at_most, windows

PROSE = "The quick brown fox jumps over the lazy dog, and nobody knows why; it might be hungry (or bored). "


@pytest.mark.parametrize("room", [8, 20, 66])
@pytest.mark.parametrize(
    "text",
    [
        PROSE * 50,
        "x" * 5000,
        "\u732b" * 900,
        "!" * 900,
        "qzjx" * 400,
        "\u00fcn\u00efc\u00f6de " * 90,
        "{} " * 400,
        "7 1984 " * 90,
    ],
    ids=["prose", "letters", "han", "marks", "gibberish", "accents", "braces", "numbers"],
)
def test_no_window_is_longer_than_the_context(text, room) -> None:
    tokenizer = open_clip.SimpleTokenizer()
    found = windows(text, room)
    assert len(found) > 1
    assert max(len(tokenizer.encode(part)) for part in found) <= room


def test_windows_overlap_and_lose_no_word() -> None:
    words = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(200)]
    found = [part.split() for part in windows(" ".join(words), 20)]
    assert [word for word in words if not any(word in part for part in found)] == []
    for left, right in pairwise(found):
        assert left[-5:] == right[:5]
        assert len(left) == 20


def test_ordinary_labels_are_read_whole() -> None:
    room = budget(77, ["a photo of the hard to see {}."])
    for text in ("cat", "person wearing a red high-visibility jacket and a white helmet", "{} {0}", PROSE):
        assert windows(text, room) == [text]
    assert tokens_at_most("cat") == 1


def test_a_template_longer_than_the_context_leaves_room_for_the_label() -> None:
    assert budget(20, ["{} " + "word " * 50]) == 8
