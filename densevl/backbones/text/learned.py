"""Texts in which some words are vectors, read by a model's own text tower (CoOp; Zhou et al., IJCV 2022).

Words before a noun may be deep (MaPLe, Khattak et al., CVPR 2023; its text side): their hidden states are replaced too,
at the inputs of the blocks after the first. Such a word has d times W numbers, W for each of the first d blocks.
Shape letters: T texts, N tokens, n words that are vectors, W width of a word, D joint space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from densevl.errors import ModelError

PLACEHOLDER = "x"  # one token in every vocabulary; replaced by a vector
BATCH = 256  # texts per pass
POOLS = ("argmax", "eos")  # a text's row is read at its end token, so later tokens are never read


class WordVectors:
    """The words of a text tower as vectors: its own, and texts in which given vectors replace words."""

    def __init__(self, model: Any, tokenizer: Callable[[list[str]], torch.Tensor], length: int, name: str) -> None:
        """Inspect a model of open_clip, or of `towers.clip`.

        Args:
            tokenizer: texts to (T, N) tokens, padded. length: N. name: of the model, for messages.

        Raises:
            ModelError: its text side has no table of words.
        """
        self._model, self._tokenizer, self._length, self._name = model, tokenizer, length, name
        sides = [side for side in (model, getattr(model, "text", None)) if side is not None]
        found = [side for side in sides if isinstance(getattr(side, "token_embedding", None), nn.Embedding)]
        if not found:
            raise ModelError(f"model '{name}' has no table of words to learn others beside; train without prompts")
        self._side = found[0]
        self._table: nn.Embedding = self._side.token_embedding

    @property
    def width(self) -> int:
        """W."""
        return int(self._table.weight.shape[1])

    def of(self, text: str) -> torch.Tensor:
        """The vectors (n, W) float32 of a text's tokens; none for an empty text.

        Raises:
            ModelError: the text is longer than the tower reads.
        """
        first = self._first()
        end = int(self._ends([text])[0])
        tokens = self._tokenizer([text])[0, first:end].to(self._table.weight.device)
        return self._table(tokens).detach().float()

    def encode(self, words_TnW: torch.Tensor, nouns: Sequence[str], before: int) -> torch.Tensor:
        """Encode texts to (T, D) float32, not normalised: `before` of the n words, the noun, and the other words.

        Args:
            words_TnW: for each text, or (1, n, W) for all; gradients reach them. With d times W numbers they are deep;
                after the noun only the first W are read.

        Raises:
            ModelError: a text is longer than the tower reads, or words have another width.
        """
        count, first = words_TnW.shape[1], self._first()
        self._require_depth(words_TnW.shape[2] / self.width)
        nouns_T = self._ends(nouns) - first
        used = first + count + int(nouns_T.max()) + 1
        if used > self._length:
            longest = nouns[int(nouns_T.argmax())]
            raise ModelError(
                f"{count} learned words and '{longest[:40]}' take {used} tokens, and '{self._name}' reads "
                f"{self._length}; take at most {max(0, self._length - used + count)} words, or a shorter name"
            )
        own = [PLACEHOLDER] * count
        texts = [" ".join([*own[:before], noun, *own[before:]]) for noun in nouns]
        columns_Tn = torch.arange(count).repeat(len(nouns), 1) + first
        columns_Tn[:, before:] += nouns_T[:, None]
        words = words_TnW.expand(len(nouns), -1, -1)
        tokens = self._tokenizer(texts)[:, : used if self._short() else None]
        parts = zip(tokens.split(BATCH), columns_Tn.split(BATCH), words.split(BATCH), strict=True)
        return torch.cat([self._run(*part, before) for part in parts])

    @torch.no_grad()
    def deep(self, words_nW: torch.Tensor, before: int, depth: int) -> torch.Tensor:
        """Turn words (n, W) into deep ones (n, depth * W) with the same effect: the W numbers for a block are the
        tower's own hidden state at its input.

        Raises:
            ModelError: the tower has fewer blocks, or is not causal, so that the states depend on the noun.
        """
        self._require_depth(depth)
        found = [words_nW]
        first = self._first()

        def keep(module: Any, given: Any) -> None:
            found.append(self._upright(given[0])[0, first : first + len(words_nW)].to(words_nW))

        hooks = [block.register_forward_pre_hook(keep) for block in self._deeper[: depth - 1]]
        try:
            self.encode(words_nW[None], [PLACEHOLDER], before)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(found, dim=1)

    def _run(
        self, tokens_TN: torch.Tensor, columns_Tn: torch.Tensor, words_TnW: torch.Tensor, before: int
    ) -> torch.Tensor:
        device = self._table.weight.device
        columns_Tn1 = columns_Tn.to(device)[:, :, None]
        own, *deeper = words_TnW.split(self.width, dim=2)

        def put(found: torch.Tensor, words: torch.Tensor, count: int | None) -> torch.Tensor:
            places = columns_Tn1[:, :count].expand(-1, -1, found.shape[2])
            return found.scatter(1, places, words[:, :count].to(found))

        def learned(module: Any, given: Any, found: torch.Tensor) -> torch.Tensor:
            return put(found, own, None)

        def replaced(module: Any, given: Any, words: torch.Tensor) -> tuple[Any, ...]:
            return self._upright(put(self._upright(given[0]), words, before)), *given[1:]

        hooks = [self._table.register_forward_hook(learned)]
        for block, words in zip(self._deeper, deeper, strict=False):
            hooks.append(block.register_forward_pre_hook(partial(replaced, words=words)))
        try:
            found_TD = _encode(self._model, self._side, tokens_TN.to(device))
            return found_TD if found_TD.dtype == torch.float64 else found_TD.float()
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def _deeper(self) -> list[nn.Module]:
        """The blocks after the first; empty if they are not in one list."""
        return list(getattr(getattr(self._side, "transformer", None), "resblocks", ()))[1:]

    def _upright(self, x: torch.Tensor) -> torch.Tensor:
        """Convert a block's input to (T, N, W), and back."""
        return x if getattr(self._side.transformer, "batch_first", True) else x.transpose(0, 1)

    def _require_depth(self, depth: float) -> None:
        """Refuse words that are deeper than the tower, or whose width is not a multiple of W.

        Raises:
            ModelError: they are.
        """
        if depth == 1:
            return
        most = len(self._deeper) + 1 if self._short() else 1
        if depth != int(depth) or not 1 <= depth <= most:
            why = f"deep words go through at most {most} blocks" if most > 1 else "its text tower takes no deep words"
            raise ModelError(f"words {depth:g} blocks deep: of model '{self._name}' {why}")

    def _first(self) -> int:
        """Number of tokens before the words of a text.

        Raises:
            ModelError: the placeholder is not one token.
        """
        one, two = self._ends([PLACEHOLDER, f"{PLACEHOLDER} {PLACEHOLDER}"]).tolist()
        if two - one != 1 or one < 1:
            raise ModelError(f"model '{self._name}' has a tokenizer that learned words have no place in; take a CLIP")
        return int(one) - 1

    def _ends(self, texts: Sequence[str]) -> torch.Tensor:
        """(T,) int64: where the words of each text end, found as the first place that one more word changes.

        Raises:
            ModelError: a text is as long as the tower reads, so that something may have been cut.
        """
        alone, longer = (self._tokenizer([text + more for text in texts]).cpu() for more in ("", f" {PLACEHOLDER}"))
        differ_TN = alone != longer
        full = (~differ_TN.any(dim=1)).nonzero().flatten().tolist()
        if full:
            raise ModelError(
                f"'{texts[full[0]][:40]}' is longer than the {self._length} tokens that '{self._name}' reads; "
                "learned words need room beside it"
            )
        return differ_TN.int().argmax(dim=1)

    def _short(self) -> bool:
        """Whether tokens after the last end may be dropped: nothing attends to them, and positions are a table."""
        pool = getattr(self._side, "pool_type", None) or getattr(self._side, "text_pool_type", "argmax")
        causal = not hasattr(self._side, "attn_mask") or self._side.attn_mask is not None
        table = getattr(self._side, "positional_embedding", None)
        return causal and pool in POOLS and table is not None and getattr(self._side, "cls_emb", None) is None


class _Text(nn.Module):
    """A model's text side as a callable module."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model.encode_text(tokens, normalize=False)
        return found


def _encode(model: Any, side: Any, tokens_TN: torch.Tensor) -> torch.Tensor:
    """Rows (T, D) of tokens, which may be fewer than the tower reads; its positions and mask are cut to them."""
    count = tokens_TN.shape[1]
    above = "model." if side is model else "model.text."
    own: dict[str, torch.Tensor] = {}
    if (table := getattr(side, "positional_embedding", None)) is not None and len(table) > count:
        own[f"{above}positional_embedding"] = table[:count]
        if getattr(side, "attn_mask", None) is not None:
            own[f"{above}attn_mask"] = side.attn_mask[:count, :count]
    return functional_call(_Text(model), own, (tokens_TN,))
