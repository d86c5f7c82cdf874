"""Tokenizers of text sides: open_clip's own, or those whose files are in a model's folder or on the hub.

Code in a repository is never run: transformers would offer to when it finds the config.json, so tokenizers are read
without that file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from densevl.errors import WeightsError
from densevl.saved import Kind, read_json
from densevl.weights.facts import Form
from densevl.weights.forms.heads import GIVEN
from densevl.weights.hub import WORDS

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
FILE = Kind("tokenizer", WeightsError, "download it again")
SPECIAL = 49406
"""Size of CLIP's vocabulary without the start and end marks, whose names vary between programs."""
PIECES = "vocab.txt"
"""A BERT's vocabulary, which is its whole tokenizer."""


class WordPieces:
    """The tokenizer of a lower-case BERT from its vocabulary alone, as in Chinese-CLIP's program."""

    def __init__(self, vocabulary: Path, context_length: int) -> None:
        from tokenizers import BertWordPieceTokenizer

        self.context_length = context_length
        self._tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
        self._tokenizer.enable_truncation(context_length)
        self._tokenizer.enable_padding(length=context_length)

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([row.ids for row in self._tokenizer.encode_batch(list(texts))])


def has_tokenizer(folder: Path | None) -> bool:
    """Whether a folder holds the files of a tokenizer."""
    return folder is not None and any((folder / file).is_file() for file in TOKENIZERS)


def as_its_folder(text: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The text_cfg of a transformers model, changed if its folder's tokenizer is not the usual one.

    Args:
        text: open_clip's text_cfg.

    Raises:
        WeightsError: a tokenizer's file cannot be read.
    """
    found = dict(text)
    settings = folder / TOKENIZERS[1]
    kind = str(read_json(settings, FILE).get("tokenizer_class")) if settings.is_file() else ""
    if "hf_tokenizer_name" not in text and has_tokenizer(folder) and not _is_of_clip(folder):
        found["hf_tokenizer_name"] = "folder"
    if kind and not kind.startswith(("Siglip", "Gemma")):
        found.pop("tokenizer_kwargs", None)  # lower-casing and stripping are for SigLIP's own tokenizers only
    elif kind.startswith(("Siglip2", "Gemma")) and "tokenizer_kwargs" in text:
        found["tokenizer_kwargs"] = {**text["tokenizer_kwargs"], "clean": "lower"}  # SigLIP 2 keeps punctuation
    return found


def _is_of_clip(folder: Path) -> bool:
    from open_clip.tokenizer import SimpleTokenizer

    words: Any = None
    if (folder / TOKENIZERS[0]).is_file():
        model = read_json(folder / TOKENIZERS[0], FILE).get("model")
        words = model.get("vocab") if isinstance(model, dict) else None
    elif (folder / "vocab.json").is_file():
        words = read_json(folder / "vocab.json", FILE)
    elif not (folder / PIECES).is_file():
        return True  # settings only
    own = {word: index for word, index in SimpleTokenizer().encoder.items() if index < SPECIAL}
    return isinstance(words, dict) and all(words.get(word) == index for word, index in own.items())


@lru_cache(maxsize=4)
def _shared(length: Any) -> Callable[[list[str]], torch.Tensor]:
    """The tokenizer of open_clip, made once: reading its words takes longer than loading a small model."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=length)


def tokenizer_of(text: Mapping[str, Any], form: Form, folder: Path | None) -> Callable[[list[str]], torch.Tensor]:
    """The tokenizer of a text side; one in the model's folder is preferred to the hub's.

    Args:
        text: open_clip's text_cfg. form: of the weights. folder: of the model.

    Raises:
        WeightsError: the text side needs its own tokenizer, and there is none.
    """
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    length, settings = text.get("context_length", 77), text.get("tokenizer_kwargs") or {}
    named = text.get("hf_tokenizer_name")
    if form.text == GIVEN or (not named and not form.text):
        return SimpleTokenizer(context_length=length, **settings) if settings else _shared(length)
    settings = {**settings, "context_length": length, "tokenizer_mode": text.get("tokenizer_mode")}
    settings["trust_remote_code"] = False
    if folder is None or not has_tokenizer(folder):
        if form.text or named == "folder":
            raise WeightsError(
                f"{form.name}: its text side needs its own tokenizer: put {' or '.join(TOKENIZERS)} beside the weights"
            )
        return HFTokenizer(named, **settings)
    if not any((folder / file).is_file() for file in TOKENIZERS[:2]):
        return WordPieces(folder / PIECES, length)
    with tempfile.TemporaryDirectory() as apart:
        for name in WORDS:
            if (folder / name).is_file():
                Path(apart, name).write_bytes((folder / name).read_bytes())
        found = HFTokenizer(apart, **settings)
    if found.tokenizer.pad_token is None:
        raise WeightsError(f"{form.name}: its tokenizer does not say how it pads: put {TOKENIZERS[1]} beside it")
    return found


def files_of(tokenizer: Any, folder: Path | None) -> dict[str, bytes]:
    """The files of a tokenizer, from its folder or as it saves itself; open_clip's own has none."""
    if folder is not None and has_tokenizer(folder):
        return {name: (folder / name).read_bytes() for name in WORDS if (folder / name).is_file()}
    own = getattr(tokenizer, "tokenizer", None)
    if own is None or not hasattr(own, "save_pretrained"):
        return {}
    with tempfile.TemporaryDirectory() as made:
        own.save_pretrained(made)
        return {path.name: path.read_bytes() for path in Path(made).iterdir() if path.is_file()}
