"""Banks beside a `Segmenter`: what regions of other photos that look alike say of those of a photo (CorrCLIP v2).

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
"""CorrCLIP's: what the banks count beside the photo's own scores, and how many regions are asked."""


class Banks:
    """One bank or several, each with the models that made it.

    Attributes: share: of the banks in the scores, 0..1. neighbours: regions asked for each segment.
    """

    def __init__(
        self, spec: BankSpec, share: float, neighbours: int, backbone: Backbone, recipe: Recipe | None, proxy: Any
    ) -> None:
        """Open banks and load what they need.

        Args:
            spec: folders of banks, or banks. backbone, recipe, proxy: the segmenter's own, used where a bank was made
                with the same.

        Raises:
            BankError: no bank, an empty one, one named twice, or one of models other than those of its names.
            RecipeError: a recipe whose scores are no cosines.
            OptionError: a share outside 0..1, or neighbours below 1.
        """
        if not 0 <= share <= 1 or neighbours < 1:
            raise OptionError(f"bank_share={share!r}, neighbours={neighbours!r}: give a share of 0..1, and at least 1")
        if not has_features(recipe):
            what = f"recipe '{recipe.name}'" if recipe is not None else f"model '{backbone.name}'"
            raise RecipeError(f"{what} does not score by cosines, which a bank's are; take another, such as corrclip")
        given = [spec] if isinstance(spec, (str, os.PathLike, Bank)) else list(spec)
        self.share, self.neighbours = share, neighbours
        self.banks = [bank if isinstance(bank, Bank) else Bank.load(bank) for bank in given]
        if not given:
            raise BankError("there is no bank in the list; name one, or leave bank out")
        places = [bank.path.resolve() for bank in self.banks]
        if twice := next((place for place in places if places.count(place) > 1), None):
            raise BankError(f"bank '{twice}' is named twice, and would count twice; name it once")
        empty = next((bank for bank in self.banks if not len(bank)), None)
        if empty is not None:  # an empty one is also false
            raise BankError(f"bank '{empty.path}' holds no regions; add photos with 'densevl bank build'")
        self._proxies = [_proxy(bank, proxy, str(backbone.device)) for bank in self.banks]
        self.backbones = [_backbone(bank, backbone) for bank in self.banks]

    def facts(self) -> dict[str, Any]:
        """What decides a result, ready for JSON."""
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
        """Scores with the banks' share in them: (1, Y, X, T).

        Every segment has the score of the mean value of its neighbours, as does all that lies in no segment, together;
        a token has that of what it covers.

        Args:
            windows: of the scores. segments: of the uint8 RGB photo. texts: unit rows (T, E) for each bank.
        """
        regions = Proposals.from_segments((segments.ids - min(0, int(segments.ids.min())) + 1).numpy())
        said_RT = torch.stack([
            bank.support(region_keys(proxy, rgb, regions).to(text.device), self.neighbours) @ text.mT
            for bank, proxy, text in zip(self.banks, self._proxies, texts, strict=True)
        ]).mean(dim=0)  # fmt: skip
        cover_RYX = pull(regions, *token_plan(windows, regions.size))
        cover_RYX = cover_RYX / cover_RYX.sum(dim=0).clamp(min=1e-6)  # a window may reach beyond the photo
        painted_YXT = torch.einsum("ryx,rt->yxt", cover_RYX.to(said_RT), said_RT)
        return (1 - self.share) * scores_1YXT + self.share * painted_YXT.to(scores_1YXT)


def _proxy(bank: Bank, own: Any, device: str) -> Proxy:
    """The proxy whose keys a bank holds."""
    wanted, source = bank.facts["keys"], bank.facts["proxy"]
    if own is not None and _same(fitted.identity(own), wanted):
        return own
    try:
        found = load_proxy(source, device=device)
    except ModelError as error:
        raise BankError(f"bank '{bank.path}' has keys of '{source}', which cannot be loaded: {error}") from error
    if not _same(fitted.identity(found), wanted):
        raise BankError(f"bank '{bank.path}' was made with another proxy of the name '{source}'; build it anew")
    return found


def _backbone(bank: Bank, own: Backbone) -> Backbone:
    """The model whose words a bank's values are compared with."""
    made = bank.facts["values"]
    if fitted.fingerprint(own) == made["weights"]:
        return own
    if made["model"] == own.name:
        raise BankError(
            f"bank '{bank.path}' was made with other weights of '{own.name}' than those that are loaded; give those "
            "(--weights), or build it anew"
        )
    try:
        other = load_backbone(made["model"], device=str(own.device))
    except DensevlError as error:
        raise BankError(
            f"bank '{bank.path}' was made with model '{made['model']}' (weights {made['weights'][:12]}), not "
            f"'{own.name}'; name the model it was made with, or build it anew"
        ) from error
    if fitted.fingerprint(other) != made["weights"]:
        raise BankError(f"bank '{bank.path}' was made with other weights of '{made['model']}'; build it anew")
    return other


def _same(one: Any, other: Any) -> bool:
    return bool(json.loads(json.dumps(one, default=str)) == other)
