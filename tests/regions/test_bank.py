"""A bank on disk: exact search by loops, what it does with few, equal or empty rows, and damaged files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densevl.errors import DensevlError
from densevl.regions.bank import AT_ONCE, Bank, BankError
from densevl.regions.index import Photo

FACTS = {"values": {"model": "mini"}, "keys": {"name": "mini-sam"}, "proxy": "mini-sam"}


def rows(generator: torch.Generator, count: int, width: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=1)


def bank_of(path, counts, seed=0, widths=(5, 7)) -> Bank:
    generator = torch.Generator().manual_seed(seed)
    bank = Bank.create(path, {**FACTS, "widths": list(widths)})
    for number, part in enumerate(counts):
        photos = [
            (Photo(f"{number}-{i}.png", (4, 6), 10, i), rows(generator, n, widths[0]), rows(generator, n, widths[1]))
            for i, n in enumerate(part)
        ]
        bank = bank.with_photos(photos)
    return bank


def by_loops(bank: Bank, query: np.ndarray, count: int) -> np.ndarray:
    """CorrCLIP v2's retrieval, a region at a time, in double precision."""
    keys = np.concatenate([part.keys.double().numpy() for part in bank.parts])
    values = np.concatenate([part.values.double().numpy() for part in bank.parts])
    found = []
    for row in query.astype(np.float64):
        products = [float(sum(a * b for a, b in zip(row, key, strict=True))) for key in keys]
        best = sorted(range(len(keys)), key=lambda n: (-products[n], n))[:count]
        mean = np.mean([values[n] for n in best], axis=0)
        length = np.linalg.norm(mean)
        found.append(mean / length if length > 1e-12 else mean)
    return np.array(found)


@pytest.mark.parametrize("counts", [[[3]], [[1, 2], [4]], [[30, 1], [2], [9]]], ids=str)
@pytest.mark.parametrize("neighbours", [1, 3, 100])
def test_support_is_the_mean_value_of_the_nearest(tmp_path, counts, neighbours) -> None:
    bank = Bank.load(bank_of(tmp_path / "bank", counts).path)
    query = rows(torch.Generator().manual_seed(9), 6, 5)
    want = by_loops(bank, query.numpy(), neighbours)
    np.testing.assert_allclose(bank.support(query, neighbours).numpy(), want, atol=1e-5)


@given(count=st.integers(1, 12), neighbours=st.integers(1, 15), seed=st.integers(0, 99))
def test_of_equal_keys_the_first_are_taken(tmp_path_factory, count, neighbours, seed) -> None:
    bank = Bank.create(tmp_path_factory.mktemp("bank"), {**FACTS, "widths": [2, 3]})
    keys = torch.tensor([[1.0, 0.0]]).expand(count, 2)
    values = rows(torch.Generator().manual_seed(seed), count, 3)
    bank = bank.with_photos([(Photo("a.png", (4, 6), 1, 1), keys, values)])
    numbers = bank.nearest(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), neighbours)
    assert numbers.tolist() == [list(range(min(count, neighbours)))] * 2


def test_the_best_are_kept_over_blocks_and_parts(tmp_path, monkeypatch) -> None:
    bank = bank_of(tmp_path / "bank", [[40], [25, 13]])
    query = rows(torch.Generator().manual_seed(3), 4, 5)
    whole = bank.nearest(query, 7)
    monkeypatch.setattr("densevl.regions.bank.AT_ONCE", 6)
    assert AT_ONCE > 78
    assert torch.equal(bank.nearest(query, 7), whole)


def test_values_that_cancel_out_say_nothing(tmp_path) -> None:
    bank = Bank.create(tmp_path / "bank", {**FACTS, "widths": [2, 2]})
    keys, values = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    bank = bank.with_photos([(Photo("a.png", (4, 6), 1, 1), keys, values)])
    assert bank.support(torch.tensor([[1.0, 0.0]]), 2).tolist() == [[0.0, 0.0]]


def test_empty_regions_are_left_out(tmp_path) -> None:
    bank = Bank.create(tmp_path / "bank", {**FACTS, "widths": [2, 2]})
    keys, values = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0], [1, 0], [0, 0]])
    bank = bank.with_photos([(Photo("a.png", (4, 6), 1, 1), keys, values)])
    assert (len(bank), bank.parts[0].counts) == (1, (1,))


def test_photos_are_dropped_with_their_regions(tmp_path) -> None:
    bank = bank_of(tmp_path / "bank", [[2, 3], [1]])
    kept = bank.parts[0].keys[2:].clone()
    less = bank.without(["0-0.png", "1-0.png"])
    again = Bank.load(tmp_path / "bank")
    for found in (less, again):
        assert [photo.path for photo in found.photos] == ["0-1.png"]
        assert torch.equal(found.parts[0].keys, kept)


def test_a_new_bank_holds_nothing_of_the_old(tmp_path) -> None:
    bank_of(tmp_path / "bank", [[2]])
    Bank.create(tmp_path / "bank", {**FACTS, "widths": [5, 7]})
    assert len(Bank.load(tmp_path / "bank")) == 0


def test_arrays_are_mapped_and_not_read(tmp_path) -> None:
    """A bank larger than memory can be opened: opening it takes no more than its names."""
    bank_of(tmp_path / "bank", [[50]])
    bank = Bank.load(tmp_path / "bank")
    assert bank.parts[0].keys.dtype == torch.float16
    assert bank.parts[0].keys.untyped_storage().nbytes() >= 50 * 5 * 2


def test_a_copy_that_lacks_a_part_is_noticed(tmp_path) -> None:
    bank = bank_of(tmp_path / "bank", [[2], [1], [3]])
    less = bank.without(["1-0.png"])
    assert len(Bank.load(less.path)) == 5
    less.parts[1].path.unlink()
    with pytest.raises(BankError, match=r"lacks 1 of its 2 part files, part-000002\.safetensors first"):
        Bank.load(less.path)


def _no_facts(folder) -> None:
    (folder / "bank.json").unlink()


def _other_version(folder) -> None:
    facts = json.loads((folder / "bank.json").read_text())
    (folder / "bank.json").write_text(json.dumps({**facts, "version": 99}))


def _other_widths(folder) -> None:
    facts = json.loads((folder / "bank.json").read_text())
    (folder / "bank.json").write_text(json.dumps({**facts, "widths": [5, 8]}))


def _cut(folder) -> None:
    part = next(folder.glob("part-*"))
    part.write_bytes(part.read_bytes()[:-9])


def _other_weights(folder) -> None:
    from safetensors.torch import save_file

    save_file({"keys": torch.zeros(2, 5)}, next(folder.glob("part-*")))


def _lies(folder) -> None:
    (folder / "bank.json").write_text('{"version": 1, "widths": "many"}')


def _no_maker(folder) -> None:
    facts = json.loads((folder / "bank.json").read_text())
    (folder / "bank.json").write_text(json.dumps({**facts, "proxy": None}))


@pytest.mark.parametrize("spoil", [_no_maker, _no_facts, _other_version, _other_widths, _cut, _other_weights, _lies])
def test_a_damaged_bank_is_refused_in_a_line(tmp_path, spoil) -> None:
    bank_of(tmp_path / "bank", [[2]])
    spoil(tmp_path / "bank")
    with pytest.raises(DensevlError) as caught:
        Bank.load(tmp_path / "bank")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_bank_says_how_to_make_one(tmp_path) -> None:
    with pytest.raises(BankError, match="densevl bank build"):
        Bank.load(tmp_path)
