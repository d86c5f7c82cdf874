"""A bank on disk: regions of many photos, each with a vision-only model's features and CLIP's.

CorrCLIP's second version (https://github.com/zdk258/CorrCLIP) labels a region by similar regions of other photos. Keys,
from a vision-only model, find them; the mean of their values, CLIP's own features, is compared with words. Photos of
the same kind of scene help most; they need no labels.

A bank is a folder. bank.json lists what made it and its parts. Each part (safetensors) holds the float16 arrays "keys"
(N, P) and "values" (N, E) of some photos, whose names are in its header. The arrays are memory-mapped.
Search is exact. Shape letters: N regions of the bank, R query regions, K neighbours, P width of keys, E of values.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from densevl import digest, fitted
from densevl.errors import DensevlError
from densevl.files import atomic_write, json_text, renew, shown
from densevl.regions.index import Photo
from densevl.saved import Kind, parse_json, read_json
from densevl.weights import read_checkpoint

VERSION = 1
FACTS, PARTS = "bank.json", "part-*.safetensors"
FORM = {"values": dict, "keys": dict, "proxy": str}
AT_ONCE = 1 << 16  # keys compared at a time


class BankError(DensevlError):
    """A bank cannot be read, or was made by other models."""


BANK = Kind("bank", BankError, "build it anew")


@dataclass(frozen=True, eq=False)
class Part:
    """Some photos of a bank.

    Attributes:
        path: its file. photos: the photos. counts: the number of regions of each, in the order of the arrays.
        keys: float16 (n, P) unit rows. values: float16 (n, E) unit rows.
    """

    path: Path
    photos: tuple[Photo, ...]
    counts: tuple[int, ...]
    keys: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True, eq=False)
class Bank:
    """Regions of many photos.

    Attributes:
        path: its folder. facts: what made keys and values, ready for JSON: "values" identifies the `RegionClassifier`,
            "keys" the proxy, "proxy" is the name that `load_proxy` takes, "widths" is [P, E].
        parts: the files of the bank.
    """

    path: Path
    facts: Mapping[str, Any]
    parts: tuple[Part, ...] = ()

    @classmethod
    def create(cls, path: str | os.PathLike[str], facts: Mapping[str, Any]) -> Bank:
        """Create an empty bank in a folder and replace any bank that is there.

        Raises:
            OutputError: the folder cannot be written.
        """
        for old in Path(path).glob(PARTS) if (Path(path) / FACTS).exists() else ():
            old.unlink()
        made = cls(Path(path), facts)
        made.record()
        return made

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Bank:
        """Open a bank.

        Raises:
            BankError: it is missing, damaged or not a bank.
            WeightsError: a part is damaged.
        """
        folder = BANK.path(path)
        if not (folder / FACTS).is_file():
            raise BankError(f"{shown(folder)} is not a bank: it has no {FACTS}; make one with 'densevl bank build'")
        facts = read_json(folder / FACTS, BANK)
        with BANK.sense(folder / FACTS):
            if facts.pop("version") != VERSION:
                raise BANK.bad(folder / FACTS, f"is of another version than {VERSION}")
            widths = tuple(int(width) for width in facts["widths"])
            if not all(isinstance(facts[key], kind) for key, kind in FORM.items()):
                raise ValueError("it does not say what made it")
            listed = [str(name) for name in facts.pop("parts")]
        found = sorted(folder.glob(PARTS))
        if absent := sorted(set(listed) - {file.name for file in found}):
            raise BankError(
                f"bank {shown(folder)} lacks {len(absent)} of its {len(listed)} part files, {absent[0][:80]} first: "
                "copy them too, or rebuild it with 'densevl bank build --overwrite'"
            )
        return cls(folder, facts, tuple(_part(file, widths) for file in found))

    def __len__(self) -> int:
        return sum(len(part.keys) for part in self.parts)

    def __repr__(self) -> str:
        return f"Bank({shown(self.path)}, {len(self.photos)} photos, {len(self)} regions)"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what made it and of its photos' paths, sizes and modification times."""
        photos = [[p.path, p.bytes, p.changed] for p in self.photos]
        return digest.of_text(json.dumps([dict(self.facts), photos], sort_keys=True))

    @property
    def outdated(self) -> bool:
        """Whether the folder's part files have changed since this bank was opened."""
        return sorted(self.path.glob(PARTS)) != sorted(part.path for part in self.parts)

    @property
    def photos(self) -> tuple[Photo, ...]:
        """The photos, in the order of their regions."""
        return tuple(photo for part in self.parts for photo in part.photos)

    def with_photos(self, found: Sequence[tuple[Photo, torch.Tensor, torch.Tensor]]) -> Bank:
        """Write the keys (n, P) and values (n, E) of more photos as one more part, and return the bank with it.

        Regions that have no key or no value (empty ones) are left out.

        Raises:
            OutputError: the part cannot be written.
        """
        rows = [(keys.norm(dim=1) > 0) & (values.norm(dim=1) > 0) for _, keys, values in found]
        pairs = [(keys[own], values[own]) for (_, keys, values), own in zip(found, rows, strict=True)]
        keys, values = (F.normalize(torch.cat(side).float(), dim=1).half() for side in zip(*pairs, strict=True))
        number = 1 + max((int(part.path.stem.split("-")[1]) for part in self.parts), default=-1)
        path = self.path / f"part-{number:06d}.safetensors"
        photos = tuple(photo for photo, _, _ in found)
        part = Part(path, photos, tuple(int(own.sum()) for own in rows), keys, values)
        _write(part)
        more = Bank(self.path, self.facts, (*self.parts, part))
        more.record()
        return more

    def without(self, paths: Sequence[str]) -> Bank:
        """Return the bank without the photos at some paths; parts that hold them are rewritten.

        Raises:
            OutputError: a part cannot be written.
        """
        gone = set(paths)
        parts, empty = [], []
        for part in self.parts:
            stays = [photo.path not in gone for photo in part.photos]
            if all(stays):
                parts.append(part)
                continue
            rows = torch.repeat_interleave(torch.tensor(stays), torch.tensor(part.counts))
            left = Part(
                part.path,
                tuple(photo for photo, stay in zip(part.photos, stays, strict=True) if stay),
                tuple(count for count, stay in zip(part.counts, stays, strict=True) if stay),
                part.keys[rows],
                part.values[rows],
            )
            if left.photos:
                _write(left)
                parts.append(left)
            else:
                empty.append(part.path)
        less = Bank(self.path, self.facts, tuple(parts))
        if empty:
            less.record()  # first: every part that is listed must exist
        for path in empty:
            path.unlink()
        return less

    def record(self) -> None:
        """Write what made the bank and the names of its parts. A killed build may leave a part unlisted."""
        content = {"version": VERSION, **self.facts, "parts": [part.path.name for part in self.parts]}
        renew(self.path / FACTS, json_text(content, indent=1).encode())

    def nearest(self, query_RP: torch.Tensor, count: int) -> torch.Tensor:
        """Indices (R, K) of the regions whose keys have the largest inner products; ties go to the first.

        Args:
            query_RP: unit rows. count: K, at most the number of regions in the bank.
        """
        scores = query_RP.new_empty(len(query_RP), 0, dtype=torch.float32)
        numbers = torch.empty(len(query_RP), 0, dtype=torch.int64, device=query_RP.device)
        first = 0
        for part in self.parts:
            for keys_nP in part.keys.split(AT_ONCE):
                found = query_RP.float() @ keys_nP.to(query_RP.device).float().mT
                own = torch.arange(first, first + len(keys_nP), device=query_RP.device).expand(len(query_RP), -1)
                scores, numbers = torch.cat([scores, found], dim=1), torch.cat([numbers, own], dim=1)
                order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
                scores, numbers = scores.gather(1, order), numbers.gather(1, order)
                first += len(keys_nP)
        return numbers

    def support(self, query_RP: torch.Tensor, count: int) -> torch.Tensor:
        """The mean value of the nearest regions, as unit rows (R, E) float32; zeros where they cancel out."""
        numbers_RK = self.nearest(query_RP, count)
        wanted, place = numbers_RK.unique(return_inverse=True)
        rows = torch.zeros(len(wanted), int(self.facts["widths"][1]), device=query_RP.device)
        first = 0
        for part in self.parts:
            own = (wanted >= first) & (wanted < first + len(part.values))
            rows[own] = part.values[(wanted[own] - first).cpu()].to(rows)
            first += len(part.values)
        return F.normalize(rows[place].mean(dim=1), dim=1)


def _write(part: Part) -> None:
    photos = [[p.path, *p.size, p.bytes, p.changed, n] for p, n in zip(part.photos, part.counts, strict=True)]
    header = {"kind": f"densevl bank {VERSION}", "photos": json.dumps(photos)}
    arrays = {"keys": part.keys.contiguous(), "values": part.values.contiguous()}
    atomic_write(part.path, fitted.to_bytes(arrays, header))


def _part(path: Path, widths: tuple[int, ...]) -> Part:
    file = read_checkpoint(path)
    with BANK.sense(path):
        if file.header.get("kind") != f"densevl bank {VERSION}":
            raise ValueError("it is not part of a bank")
        rows = parse_json(file.header["photos"].encode())
        photos = tuple(Photo(str(p), (int(h), int(w)), int(b), int(t)) for p, h, w, b, t, _ in rows)
        part = Part(path, photos, tuple(int(row[5]) for row in rows), file.tensors["keys"], file.tensors["values"])
        shapes = tuple(tuple(array.shape) for array in (part.keys, part.values))
        if shapes != tuple((sum(part.counts), width) for width in widths) or min(part.counts, default=0) < 0:
            raise ValueError("its arrays do not fit its photos or the other parts")
        if {part.keys.dtype, part.values.dtype} != {torch.float16}:
            raise ValueError("its arrays are not in half precision")
    return part
