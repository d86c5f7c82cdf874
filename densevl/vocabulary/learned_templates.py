"""`LearnedTemplate`: a template whose words are vectors that few-shot head "prompt" learned (CoOp), not text.

It is used like any template, for any labels; several are averaged as templates are. Shape letters: n words, W their
width.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from densevl import digest
from densevl.errors import WeightsError

if TYPE_CHECKING:
    import torch

FORMAT = "densevl-fewshot-1"
"""The kind of files that hold them: fitted few-shot heads."""
ENDING = ".safetensors"
NAMED = re.compile(r"learned [0-9a-f]{16} \{\}")
"""A pattern of its name where only text is kept, as in the facts of a result."""
_WORDS, _BEFORE, _SIDE = "template words", "template before", "text side"


class LearnedTemplate(str):
    """Words around a label, as vectors. As a string it is a hash of its content, with "{}" for the label.

    Attributes:
        words: float32 (n, W). before: how many of them precede the label.
        side: the `text_fingerprint` of the model that they were learned on; they mean nothing to others.
    """

    words: npt.NDArray[np.float32]
    before: int
    side: str

    def __new__(cls, words: npt.NDArray[np.float32], before: int, side: str) -> LearnedTemplate:
        """Name the content."""
        data = np.ascontiguousarray(words, np.float32)
        stamp = digest.of_text(digest.of_bytes(data.tobytes()), str(data.shape), str(before), side)
        made = super().__new__(cls, f"learned {stamp[:16]} {{}}")
        made.words, made.before, made.side = data, before, side
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.words, self.before, self.side

    def __deepcopy__(self, memo: Any) -> LearnedTemplate:
        return self


NET = "net "  # prefix of the tensors of a network that makes words depend on the image
TOKENS = "image tokens"  # those that words go with in the image tower


def to_state(templates: tuple[str, ...]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and facts for `from_state`; none for templates of text."""
    import torch

    own = [one for one in templates if isinstance(one, LearnedTemplate)]
    if not own:
        return {}, {}
    tensors = {f"{_WORDS} {number}": torch.from_numpy(one.words.copy()) for number, one in enumerate(own)}
    return {**tensors, _BEFORE: torch.tensor([one.before for one in own])}, {_SIDE: own[0].side}


def from_state(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> tuple[LearnedTemplate, ...]:
    """The templates in a state from `to_state`, which may hold other things too; possibly none.

    Raises:
        KeyError, ValueError: the state is damaged.
    """
    if _BEFORE not in tensors:
        return ()
    words = [tensors[f"{_WORDS} {number}"] for number in range(len(tensors[_BEFORE]))]
    fronts = tensors[_BEFORE].tolist()
    if any(one.ndim != 2 or not 0 <= before <= len(one) for one, before in zip(words, fronts, strict=True)):
        raise ValueError("learned words of another shape")
    found = zip(words, fronts, strict=True)
    return tuple(LearnedTemplate(one.float().cpu().numpy(), before, str(facts[_SIDE])) for one, before in found)


def load(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The templates of a saved few-shot head "prompt", or the given ones if training kept those.

    Raises:
        WeightsError: the file is missing, damaged, or another head, which learns no templates.
    """
    from densevl import fitted

    kind = fitted.kind_of("few-shot head")
    tensors, facts = fitted.read(Path(path), FORMAT, kind)
    with kind.sense(path):
        if facts["head"] != "prompt":
            raise WeightsError(f"few-shot head {path} is '{facts['head']}'; only head 'prompt' learns templates")
        (part,) = facts["heads"]
        own = {key.removeprefix(f"{part}/"): value for key, value in tensors.items() if key.startswith(f"{part}/")}
        if any(key.startswith(NET) for key in own):
            raise WeightsError(f"the contexts of few-shot head {path} depend on each image: it has no fixed templates")
        if TOKENS in own:
            raise WeightsError(
                f"the context of few-shot head {path} goes with tokens in the image tower: it has no fixed templates"
            )
        return from_state(own, facts["heads"][part]) or tuple(map(str, facts["templates"]))
