"""SHA-256 of texts, files and tensors, each computed in one way, so that equal content always has the same digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def of_bytes(data: bytes) -> str:
    """Return the SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def of_text(*parts: str) -> str:
    """Return the SHA-256 of texts, encoded in UTF-8 and separated by null characters."""
    return of_bytes("\0".join(parts).encode(errors="surrogatepass"))


def of_file(path: Path) -> str:
    """Return the SHA-256 of a file, which is read in pieces.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return the SHA-256 of the names, shapes and bytes of tensors on any device, in the order given."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
