"""Score segments of a photo by similar regions of other photos, stored in banks (CorrCLIP v2).

Shape letters: R segments of the photo, T texts, P width of keys, Y/X tokens of all windows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from densevl import fitted
from densevl.backbones import Backbone, load_backbone
from densevl.backbones.proxies import Proxy, load_proxy
from densevl.errors import DensevlError, ModelError, OptionError, RecipeError
from densevl.inference.windows import WindowGrid
from densevl.pipelines.segmentation.segments import Segments
from densevl.proposals.base import Proposals
from densevl.recipes import Recipe
from densevl.regions.bank import Bank, BankError
from densevl.regions.keys import region_keys
from densevl.regions.operators.dense import has_features
from densevl.regions.operators.pull import pull, token_plan

BankSpec = str | os.PathLike[str] | Bank | Sequence[str | os.PathLike[str] | Bank]
SHARE, NEIGHBOURS = 0.5, 20
"""CorrCLIP's values: the weight of the banks against the photo's own scores, and regions looked up per segment."""


class Banks:
    """One or several banks, each with the models that made it.

    Attributes: share: weight of the banks in the scores, 0..1. neighbours: regions looked up for each segment.
    """

    def __init__(
        self, spec: BankSpec, share: float, neighbours: int, backbone: Backbone, recipe: Recipe | None, proxy: Any
    ) -> None:
        """Open banks and load what they need.

        Args:
            spec: folders of banks, or banks. backbone, recipe, proxy: those of the segmenter, used for banks that were
                made with the same.

        Raises:
            BankError: If there is no bank, one is empty or named twice, or one was made with other models of that name.
            RecipeError: If the recipe's scores are not cosines.
            OptionError: If the share is outside 0..1, or neighbours below 1.
        """
        if not 0 <= share <= 1 or neighbours < 1:
            raise OptionError(f"bank_share={share!r}, neighbours={neighbours!r}: give a share of 0..1, and at least 1")
        if not has_features(recipe):
            what = f"recipe '{recipe.name}'" if recipe is not None else f"model '{backbone.name}'"
            raise RecipeError(f"{what} does not score by cosines, as banks do; take another, such as corrclip")
        given = [spec] if isinstance(spec, (str, os.PathLike, Bank)) else list(spec)
        self.share, self.neighbours = share, neighbours
        self.banks = [bank if isinstance(bank, Bank) else Bank.load(bank) for bank in given]
        if not given:
            raise BankError("there is no bank in the list; name one, or leave bank out")
        places = [bank.path.resolve() for bank in self.banks]
        if twice := next((place for place in places if places.count(place) > 1), None):
            raise BankError(f"bank '{twice}' is named twice, and would count twice; name it once")
        empty = next((bank for bank in self.banks if not len(bank)), None)
        if empty is not None:  # not a truth test: an empty bank is false
            raise BankError(f"bank '{empty.path}' holds no regions; add photos with 'densevl bank build'")
        self._proxies = [_proxy(bank, proxy, str(backbone.device)) for bank in self.banks]
        self.backbones = [_backbone(bank, backbone) for bank in self.banks]

    def facts(self) -> dict[str, Any]:
        """Return everything that affects a result, ready for JSON."""
        banks = [
            {"bank": str(b.path), "photos": len(b.photos), "regions": len(b), "fingerprint": b.fingerprint}
            for b in self.banks
        ]
        return {"banks": banks, "share": self.share, "neighbours": self.neighbours}

    def mix(
        self,
        scores_1YXT: torch.Tensor,
        windows: WindowGrid,
        rgb: np.ndarray,
        segments: Segments,
        texts: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Return scores with the banks' share mixed in: (1, Y, X, T).

        Each segment gets the score of the mean value of its neighbours. The area outside all segments counts as one
        more segment. A token gets the scores of what it covers.

        Args:
            windows: windows of the scores. segments: of the uint8 RGB photo. texts: unit rows (T, E) for each bank.
        """
        regions = Proposals.from_segments((segments.ids - min(0, int(segments.ids.min())) + 1).numpy())
        bank_RT = torch.stack([
            bank.support(region_keys(proxy, rgb, regions).to(text.device), self.neighbours) @ text.mT
            for bank, proxy, text in zip(self.banks, self._proxies, texts, strict=True)
        ]).mean(dim=0)  # fmt: skip
        cover_RYX = pull(regions, *token_plan(windows, regions.size))
        cover_RYX = cover_RYX / cover_RYX.sum(dim=0).clamp(min=1e-6)  # a window may reach beyond the photo
        painted_YXT = torch.einsum("ryx,rt->yxt", cover_RYX.to(bank_RT), bank_RT)
        return (1 - self.share) * scores_1YXT + self.share * painted_YXT.to(scores_1YXT)


def _proxy(bank: Bank, own: Any, device: str) -> Proxy:
    """Return the proxy whose keys a bank stores."""
    wanted, source = bank.facts["keys"], bank.facts["proxy"]
    if own is not None and _same(fitted.identity(own), wanted):
        return own
    try:
        found = load_proxy(source, device=device)
    except ModelError as error:
        raise BankError(f"bank '{bank.path}' has keys of '{source}', which cannot be loaded: {error}") from error
    if not _same(fitted.identity(found), wanted):
        raise BankError(f"bank '{bank.path}' was made with another proxy named '{source}'; build it again")
    return found


def _backbone(bank: Bank, own: Backbone) -> Backbone:
    """Return the model whose words are compared with a bank's values."""
    made = bank.facts["values"]
    if fitted.fingerprint(own) == made["weights"]:
        return own
    if made["model"] == own.name:
        raise BankError(
            f"bank '{bank.path}' was made with weights of '{own.name}' other than the loaded ones; give those "
            "(--weights), or build it again"
        )
    try:
        other = load_backbone(made["model"], device=str(own.device))
    except DensevlError as error:
        raise BankError(
            f"bank '{bank.path}' was made with model '{made['model']}' (weights {made['weights'][:12]}), not "
            f"'{own.name}'; name the model it was made with, or build it again"
        ) from error
    if fitted.fingerprint(other) != made["weights"]:
        raise BankError(f"bank '{bank.path}' was made with other weights of '{made['model']}'; build it again")
    return other


def _same(one: Any, other: Any) -> bool:
    return bool(json.loads(json.dumps(one, default=str)) == other)
