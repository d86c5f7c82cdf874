"""The text side of a CLIP for `second_order`: a caption's words, and its tokens before a block.

Shape letters: S tokens up to the end of the text, D width, E joint space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from densevl.backbones import Backbone
from densevl.backbones.text.clip_tokenizer import LAST, byte_names, vocabulary
from densevl.errors import LabelError, ModelError, OptionError, RecipeError
from densevl.explaining.second_order import CausalBlocks
from densevl.recipes.blocks import view

TOKENIZERS = ("SimpleTokenizer", "ClipTokenizer")
PAD = 0
ALIKE = 1e-4
"""Of an embedding's norm, between the text side's own embedding and the one read here."""


@dataclass(frozen=True, eq=False)
class Caption:
    """A caption before a block of the text side.

    Attributes:
        words: of the caption, punctuation too. owners: (S,) for each token the number of its word, -1 for the marks of
            start and end.
        x_SD, reference_SD: tokens of the caption, and of a text of one padding token, at the same places.
        read: the blocks from there on, read at the caption's end.
    """

    words: tuple[str, ...]
    owners: tuple[int, ...]
    x_SD: torch.Tensor
    reference_SD: torch.Tensor
    read: CausalBlocks


@torch.no_grad()
def read_caption(backbone: Backbone, text: str, block: int = -1) -> Caption:
    """Tokens of a caption before a block of the text side.

    Args:
        block: 1 is the first, -1 the last.

    Raises:
        OptionError: no such block.
        LabelError: no words, or more than the text side reads.
        ModelError: the text side is of another kind.
    """
    model, name = getattr(backbone, "model", None), backbone.name
    side = getattr(model, "text", model)
    blocks = getattr(getattr(side, "transformer", None), "resblocks", None)
    tokenizer = getattr(backbone, "tokenizer", None)
    if blocks is None or type(tokenizer).__name__ not in TOKENIZERS or getattr(backbone, "words", None) is not None:
        raise _other(name, "it is no transformer of CLIP with CLIP's tokenizer")
    if not _is_block(block, len(blocks)):
        raise OptionError(f"the text side of model '{name}' has no block {block!r}; give 1 to {len(blocks)}, or -1")
    start = int(block) - 1 if block > 0 else int(block)
    tokens = tokenizer([text]).to(backbone.device)  # type: ignore[misc]
    place = int(tokens[0].argmax())
    words, owners = _words(tokens[0, 1:place].tolist())
    if not words:
        raise LabelError(f"the caption {text[:40]!r} has no words; describe the image, as in 'a red cat'")
    if place + 1 == tokens.shape[1] and _length(tokenizer, text) > place - 1:
        raise LabelError(
            f"the caption is longer than the {tokens.shape[1]} tokens that model '{name}' reads; shorten it"
        )
    reference = torch.full_like(tokens, PAD)
    reference[0, 0], reference[0, 2] = tokens[0, 0], tokens[0, place]
    try:
        views = [view(own) for own in list(blocks)[start:]]
    except RecipeError as error:
        raise _other(name, str(error).split("; ")[0]) from error
    x_SD, reference_SD = (_before(model, blocks[start], row)[: place + 1] for row in (tokens, reference))
    read = CausalBlocks(views, _Readout(side))
    found, own = read(x_SD), model.encode_text(tokens)[0]  # type: ignore[union-attr]
    if not float((found - own).norm()) <= ALIKE * float(own.norm()):
        raise _other(name, "its embedding is not read from the mark of the end")
    return Caption(words, (-1, *owners, -1), x_SD, reference_SD, read)


def _is_block(block: Any, depth: int) -> bool:
    return isinstance(block, int) and not isinstance(block, bool) and block != 0 and -depth <= block <= depth


def _other(name: str, reason: str) -> ModelError:
    return ModelError(
        f"the text side of model '{name}' cannot be explained: {reason}; take ViT-B-16/openai or its like"
    )


class _Readout:
    """The last norm and the projection of a text side."""

    def __init__(self, side: Any) -> None:
        self._side = side

    def __call__(self, y_1SD: torch.Tensor) -> torch.Tensor:
        y_1SD, projection = self._side.ln_final(y_1SD), self._side.text_projection
        if projection is None:
            return y_1SD
        return projection(y_1SD) if isinstance(projection, torch.nn.Module) else y_1SD @ projection


def _before(model: Any, block: torch.nn.Module, tokens_1N: torch.Tensor) -> torch.Tensor:
    """What enters a block of the text side: (N, D)."""
    seen: list[torch.Tensor] = []
    hook = block.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        model.encode_text(tokens_1N)
    finally:
        hook.remove()
    return seen[0].reshape(tokens_1N.shape[1], -1)  # of one text, whichever axis comes first


def _words(tokens: Sequence[int]) -> tuple[tuple[str, ...], list[int]]:
    """Words whose parts are joined, and for each token the number of its word."""
    texts = {token: text for text, token in vocabulary()[0].items()}
    bytes_of = {name: byte for byte, name in enumerate(byte_names())}
    words, owners = [b""], []
    for token in tokens:
        part = texts[token]
        owners.append(len(words) - 1)
        words[-1] += bytes(bytes_of[letter] for letter in part.removesuffix(LAST))
        if part.endswith(LAST):
            words.append(b"")
    return tuple(word.decode(errors="replace") for word in words if word), owners


def _length(tokenizer: Any, text: str) -> int:
    return len(tokenizer.encode(text))
