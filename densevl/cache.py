"""The cache folder. It holds only what densevl can compute again: text embeddings and derived tables."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return (and create) the cache folder: $DENSEVL_CACHE, else $XDG_CACHE_HOME/densevl, else ~/.cache/densevl."""
    named = os.environ.get("DENSEVL_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "densevl"
    base.mkdir(parents=True, exist_ok=True)
    return base
