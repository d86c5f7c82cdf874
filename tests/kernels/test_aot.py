"""The compile gate: the recorded table is of these kernels and within its bars, and a sample compiles to the same."""

from __future__ import annotations

import pytest
import torch

triton = pytest.importorskip("triton", reason="this torch comes without triton")

from densevl.kernels.decode import MOST_TAPS
from densevl.kernels.triton.configs import dense, whole
from tools.kernels import aot
from tools.kernels.launches import ARCHITECTURES, MODULES, UNALIGNED, launches, unaligned
from tools.kernels.page import read_record

pytestmark = pytest.mark.skipif(not (aot.TOOLS / "ptxas").exists(), reason="this triton comes without ptxas")
RECORD = read_record()["aot"]
ROWS = {(row["name"], row["arch"]): row for row in RECORD["rows"]}
SAMPLE = [
    ("decode lse 64 taps", 80),
    ("attention gaussian narrow d64 lse fp16", 90),
    ("attention rel wide d80 lse bf16", 80),
    ("affinity cut floor fp16", 90),
    ("mix rel d64 fp16", 80),
    ("nearest D=768 bf16", 90),
]


def test_the_record_is_of_these_kernels() -> None:
    assert RECORD["sources"] == aot.fingerprint(), "kernels changed: run python tools/kernels/aot.py --write"


def test_every_launch_is_recorded() -> None:
    names = {name for name, _ in ROWS}
    assert all(f"decode {what} {taps} taps" in names for what in ("best", "lse") for taps in (16, 32, 64, MOST_TAPS))
    assert {(launch.name, launch.arch) for launch in launches()} == set(ROWS)


def test_what_lies_at_odd_addresses_is_copied_before_a_launch() -> None:
    names = {name for name, _ in ROWS if name.endswith(UNALIGNED)}
    assert {name.split()[0] for name in names} == set(MODULES)
    for name in names:
        launch = next(launches(name.__eq__))
        read = [arg for arg in launch.args.values() if isinstance(arg, torch.Tensor)]
        assert all(tensor.data_ptr() % 16 == 0 for tensor in read), name
        promised = {launch.kernel.params[place].name for (place,) in launch.signature()[2]}
        assert {key for key, value in launch.args.items() if key.endswith("_row") and value != 1} <= promised, name


def test_a_tensor_is_copied_only_where_it_must_be() -> None:
    even = torch.zeros(2, 3, 5, 32)
    assert dense(even) is even
    assert dense(even.transpose(1, 2)[:, 1:]).data_ptr() == even.transpose(1, 2)[:, 1:].data_ptr()
    for odd in (even[..., 1:], even.mT, unaligned(even), torch.zeros(4, 31)):
        assert dense(odd) is not odd
        assert torch.equal(dense(odd), odd)
    assert whole(even) is even
    assert whole(even[:, 1:]).is_contiguous()


@pytest.mark.parametrize("key", list(ROWS), ids=lambda key: f"{key[0]} sm_{key[1]}".replace(" ", "-"))
def test_no_spills_and_shared_memory_within_bars(key) -> None:
    assert aot.faults(ROWS[key]) == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "arch"), SAMPLE)
def test_a_sample_compiles_to_what_is_recorded(name, arch, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    assert arch in ARCHITECTURES
    launch = next(launch for launch in launches(name.__eq__) if launch.arch == arch)
    row, recorded = aot.compile_launch(launch), ROWS[name, arch]
    assert aot.faults(row) == []
    if triton.__version__ == RECORD["triton"]:
        assert abs(row["loop"] - recorded["loop"]) <= 0.1 * recorded["loop"]
        assert row["shared"] == recorded["shared"]


def test_faults_are_named() -> None:
    row = next(row for key, row in ROWS.items() if key[1] == 90)
    bad = row | {"stack": 8, "shared": 2**20, "tensor": 0, "warpgroup": 0, "exp_per_entry": 2.0}
    assert len(aot.faults(bad)) == 4
    assert any("products" in fault for fault in aot.faults(row | {"tensor": row["tensor"] + 1}))
