"""Read a transform of any kind from the tensors of a file."""

from __future__ import annotations

import os

from densevl.errors import OptionError
from densevl.vocabulary.transforms.base import TextTransform
from densevl.vocabulary.transforms.content import ContentTransfer
from densevl.vocabulary.transforms.linear import LinearText
from densevl.vocabulary.transforms.memory import Memory
from densevl.weights import read_checkpoint
from densevl.weights.reading import bad_file

KINDS: tuple[type[TextTransform], ...] = (LinearText, ContentTransfer, Memory)
"""The kinds of transform; each recognises its own tensors."""


def load_transform(spec: str | os.PathLike[str] | TextTransform) -> TextTransform:
    """Read a text transform from a file.

    It holds `LinearText`'s "linear.weight", as `LinearText.save` and LABCLIP's authors write it, a `Memory`, or MAFT+'s
    model, whose content transfer is used as in its semantic model.

    Raises:
        WeightsError: the file is missing, damaged, or of another kind.
        OptionError: it is neither a path nor a transform.
    """
    if isinstance(spec, TextTransform):
        return spec
    if not isinstance(spec, (str, os.PathLike)):
        raise OptionError(f"a text transform is a {type(spec).__name__}; give a file, or a TextTransform")
    found = read_checkpoint(spec)
    for kind in KINDS:
        if (transform := kind.from_state(found.tensors, found.path)) is not None:
            return transform
    raise bad_file(found.path, "holds no text transform: a matrix 'linear.weight', a memory, or MAFT+'s transfer")
