"""torch and scipy's ndimage, imported when first used: for modules that most commands load and few of them run.

`densevl recipes`, a mistyped name and `--help` answer without the seconds that importing torch takes; ndimage takes a
third of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


class _Later:
    """A module that is imported when one of its names is first asked for; the names found are kept."""

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
