"""The heads by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from densevl.errors import DensevlError, OptionError, WeightsError, suggest
from densevl.fewshot.head import Head
from densevl.fewshot.heads.adapter import Adapter
from densevl.fewshot.heads.ape import Ape
from densevl.fewshot.heads.exemplars import Exemplars
from densevl.fewshot.heads.gda import Gda
from densevl.fewshot.heads.linear import LinearProbe
from densevl.fewshot.heads.nearest import Nearest
from densevl.fewshot.heads.prolip import ProLip
from densevl.fewshot.heads.tip import TipAdapter
from densevl.fewshot.heads.tipx import TipX
from densevl.fewshot.prompts.head import PromptLearner
from densevl.fewshot.settings import require_known

HEADS: Mapping[str, type[Head]] = MappingProxyType(
    {
        head.name: head
        for head in (Nearest, Exemplars, TipAdapter, TipX, Ape, Gda, LinearProbe, Adapter, ProLip, PromptLearner)
    }
)


def build(name: str, **settings: Any) -> Head:
    """A head by its name, not fitted yet.

    Raises:
        OptionError: no such head, or settings it does not take.
    """
    if name not in HEADS:
        raise OptionError(f"no few-shot head '{name}'{suggest(name, HEADS)}; known: {', '.join(HEADS)}")
    kind = HEADS[name]
    require_known([own for own in settings if own not in kind.parts], name, kind.rules)
    return kind(**settings)


def restore(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> Head:
    """The head whose `state()` this is.

    Raises:
        WeightsError: something is missing or spoiled.
    """
    try:
        return HEADS[facts["head"]].restore(tensors, facts)
    except (KeyError, TypeError, ValueError, RuntimeError, DensevlError) as error:
        raise WeightsError(f"a saved few-shot head lacks or spoils {error}; fit and save it again") from error
