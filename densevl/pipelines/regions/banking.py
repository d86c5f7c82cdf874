"""`BankBuilder`: photos to a bank of their regions; see `regions.bank` for what that is."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from densevl import fitted
from densevl.backbones.proxies import Proxy
from densevl.errors import OptionError
from densevl.images.listing import Sources
from densevl.pipelines.folder.errors import ErrorList
from densevl.pipelines.folder.storing import open_store
from densevl.pipelines.folder.watch import Watch
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.regions.filling import Built, Taking, fill
from densevl.pipelines.regions.search import WORDS
from densevl.regions.bank import BANK, FACTS, Bank, BankError, Photo
from densevl.regions.keys import region_keys

ERRORS = "errors.jsonl"


class BankBuilder:
    """Photos to a bank of their regions.

    >>> values = RegionClassifier("ViT-B-16/openai", "pool", recipe="corrclip", proposals="mini-sam")
    >>> BankBuilder("photos.bank", values, load_proxy("radio_b")).build("photos")
    """

    def __init__(
        self, path: str | os.PathLike[str], classifier: RegionClassifier, proxy: Proxy, *, overwrite: bool = False
    ) -> None:
        """Open or begin a bank.

        Args:
            path: its folder. classifier: finds regions and embeds them by one operator, the values. proxy: the keys.
            overwrite: begin anew, whatever the bank holds.

        Raises:
            OptionError: the classifier has several operators. BankError: a bank that is damaged or of other models.
        """
        if len(classifier.operators) != 1:
            raise OptionError(
                f"a bank holds one vector a region, and the operators are {'+'.join(classifier.operators)}; take one, "
                "RegionClassifier(model, 'pool')"
            )
        self.classifier, self.proxy, self._path = classifier, proxy, Path(path)
        self.operator = next(iter(classifier.operators))
        values = {key: value for key, value in classifier.facts().items() if key not in WORDS}
        self._facts = json.loads(json.dumps({"values": values, "keys": fitted.identity(proxy)}, default=str))
        self.bank: Bank | None = None
        if (self._path / FACTS).exists() and not overwrite:
            self.bank = Bank.load(self._path)
            made = {key: self.bank.facts.get(key) for key in self._facts}
            if made != self._facts:
                with BANK.sense(self._path):
                    settings = fitted.differing(made, self._facts)
                raise BankError(
                    f"bank {str(self._path)!r} was made with other settings ({settings}); use those, name another "
                    "folder, or start over with --overwrite"
                )

    def build(
        self,
        photos: Sources,
        *,
        forget: bool = False,
        skip: str | os.PathLike[str] | None = None,
        strict: bool = False,
        watch: Watch | None = None,
    ) -> Built:
        """Add photos that are new or changed; a bad one is named in the report, and the others are taken.

        Arguments, result and errors as those of `RegionSearch.build`.
        """
        known = self.bank.photos if self.bank is not None else ()
        how = Taking(forget=forget, skip=skip, strict=strict, watch=watch or Watch())
        built = fill(photos, known, self._look, self._take, self._drop, None, how)
        if self.bank is not None:  # a folder is made only for something to be in it
            listed = ErrorList(open_store(self._path), ERRORS)
            for path, reason in built.failed.items():
                listed.add(path, reason)
            listed.close([*built.kept, *built.added, *built.failed], built.failed)
        return built

    def _look(self, path: str) -> tuple[tuple[int, int], tuple[torch.Tensor, torch.Tensor]]:
        found = self.classifier.embed(path)
        keys = region_keys(self.proxy, found.image, found.regions)
        return found.regions.size, (keys.cpu(), found.vectors[self.operator].cpu())

    def _take(self, new: Sequence[tuple[Photo, tuple[torch.Tensor, torch.Tensor]]]) -> None:
        if self.bank is None:
            keys, values = new[0][1]
            self.bank = Bank.create(self._path, {**self._facts, "widths": [int(keys.shape[1]), int(values.shape[1])]})
        self._drop([photo.path for photo, _ in new])
        self.bank = self.bank.with_photos([(photo, keys, values) for photo, (keys, values) in new])

    def _drop(self, paths: Sequence[str]) -> None:
        if self.bank is not None:
            self.bank = self.bank.without(paths)
