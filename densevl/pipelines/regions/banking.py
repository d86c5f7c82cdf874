"""`BankBuilder`: build a bank of the regions of photos; see `regions.bank`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from densevl import fitted
from densevl.backbones.proxies import Proxy, load_proxy
from densevl.files import Hold
from densevl.images.listing import Sources
from densevl.pipelines.folder.errors import ErrorList
from densevl.pipelines.folder.storing import open_store
from densevl.pipelines.folder.watch import Watch
from densevl.pipelines.regions.classifier import RegionClassifier
from densevl.pipelines.regions.filling import Built, Taking, fill, settled
from densevl.regions.bank import BANK, FACTS, Bank, BankError, Photo
from densevl.regions.keys import region_keys

ERRORS = "errors.jsonl"


class BankBuilder:
    """Build a bank of the regions of photos.

    Examples:
        >>> values = RegionClassifier("ViT-B-16/openai", "pool", recipe="corrclip", proposals="mini-sam")
        >>> BankBuilder("photos.bank", values, "radio_b").build("photos")
    """

    def __init__(
        self, path: str | os.PathLike[str], classifier: RegionClassifier, proxy: Proxy | str, *, overwrite: bool = False
    ) -> None:
        """Open or create a bank.

        Args:
            path: its folder. classifier: finds regions and embeds them by one operator; these are the values.
            proxy: computes the keys: a name or weights file for `load_proxy`, from which a `Segmenter` can load it
                again, or a loaded one, if it can be loaded again by its name.
            overwrite: start over, discarding the bank's content.

        Raises:
            OptionError: If the classifier has several operators, or keeps no vectors.
            ModelError: If the proxy cannot be loaded.
            BankError: If the bank is damaged or was made with other models.
        """
        self.operator, values = settled(classifier, "a bank")
        self.classifier, self._path = classifier, Path(path)
        self.proxy = proxy if isinstance(proxy, Proxy) else load_proxy(proxy, device=str(classifier.backbone.device))
        source = self.proxy.name if isinstance(proxy, Proxy) else proxy
        self._source = str(Path(source).resolve()) if Path(source).is_file() else source
        self._facts = json.loads(json.dumps({"values": values, "keys": fitted.identity(self.proxy)}, default=str))
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
        """Add photos that are new or changed. Unreadable photos are listed in the report, and the others are added.

        Arguments, result and errors are those of `RegionSearch.build`; also OutputError if another build is running.
        """
        how = Taking(forget=forget, skip=skip, strict=strict, watch=watch or Watch())
        with Hold(self._path) as self._hold:
            if self.bank is not None:
                self._hold.take()
                if self.bank.outdated:  # another build changed it since it was opened
                    self.bank = Bank.load(self._path)
            known = self.bank.photos if self.bank is not None else ()
            return self._built(fill(photos, known, self._look, self._take, self._drop, None, how))

    def _built(self, built: Built) -> Built:
        """Finish the folder, as a build that was never interrupted does. It is only created if it has content."""
        if self.bank is not None:
            self.bank.record()
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
            self._hold.take()
            widths = [int(side.shape[1]) for side in new[0][1]]
            self.bank = Bank.create(self._path, {**self._facts, "proxy": self._source, "widths": widths})
        self._drop([photo.path for photo, _ in new])
        self.bank = self.bank.with_photos([(photo, keys, values) for photo, (keys, values) in new])

    def _drop(self, paths: Sequence[str]) -> None:
        if self.bank is not None:
            self.bank = self.bank.without(paths)
