"""SHA-256 of texts, files and tensors: one way each, so that equal content has the same digest everywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def of_bytes(data: bytes) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def of_text(*parts: str) -> str:
    """Of texts in UTF-8 with a null character between them."""
    return of_bytes("\0".join(parts).encode(errors="surrogatepass"))


def of_file(path: Path) -> str:
    """Of a file's content, read in pieces.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Of named tensors in the order given, on any device: their names, shapes and bytes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
