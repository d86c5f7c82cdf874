"""torch and scipy's ndimage, imported on first use. For modules that most commands load and few commands run.

`densevl recipes`, `--help` and the message about a mistyped name then need not wait seconds for torch. Importing
ndimage takes a third as long.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


class _Later:
    """A module that is imported when one of its names is first used. Names found are kept."""

    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = name

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(import_module(self._name), attribute)
        self.__dict__[attribute] = found
        return found


if TYPE_CHECKING:
    import torch as torch
    from scipy import ndimage as ndimage
    from torch.nn import functional as F
else:
    torch, F, ndimage = _Later("torch"), _Later("torch.nn.functional"), _Later("scipy.ndimage")

__all__ = ["F", "ndimage", "torch"]
