"""R7: killed at any change of a file, and started again, a run leaves the files of one that was never stopped.

The kills here are in this process; `python -m tools.kills` does it with SIGKILL.
"""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from densevl.errors import OutputError
from densevl.files import Hold, atomic_write, atomic_write_all
from densevl.pipelines.regions.banking import BankBuilder
from densevl.vocabulary.text_cache import TextCache
from tests.attacks.interfering import changes, killed_at
from tests.attacks.long_work import GROWING, RUNS, Kind, bank, classifier, content, make_photos, proxy
from tools import kills


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos"))


@pytest.mark.parametrize("kind", RUNS.values(), ids=RUNS)
def test_a_kill_at_any_moment_leaves_no_trace(kind: Kind, photos, tmp_path) -> None:
    def work(name: str) -> Callable[[], None]:
        return lambda: kind.work(photos, tmp_path / name)

    moments = changes(tmp_path / "whole", work("whole"))
    whole = {name: data for name, data in content(tmp_path / "whole").items() if not name.startswith(kind.own)}
    assert moments > 1
    for moment in range(moments):
        out = tmp_path / str(moment)
        killed_at(moment, out, work(str(moment)))
        for name, data in content(out).items():
            if Path(name).name.startswith(".densevl-"):
                continue
            if name.endswith(GROWING):
                [json.loads(row) for row in (data.splitlines() if name.endswith("l") else [data])]
            elif name.endswith(".npz"):
                assert np.load(io.BytesIO(data)).files
            else:
                assert data == whole.get(name, data), (moment, name)
        work(str(moment))()
        end = content(out)
        assert [name for name in end if Path(name).name.startswith(".densevl-")] == [], moment
        assert {name: data for name, data in end.items() if not name.startswith(kind.own)} == whole, moment


@pytest.mark.timeout(600)  # processes that load a model: long where many share the cores
def test_the_command_killed_by_the_system_loses_nothing() -> None:
    row = kills.killed("segment", 2, random.Random(0))
    assert row["read"] > 0
    assert (row["cut"], row["left"], row["differ"], set(row["exit"])) == ([], [], [], {3})
    assert row["again"] <= 1


# Two at once ---------------------------------------------------------------------------------------------------------


def test_files_of_two_writers_are_one_or_the_other(tmp_path) -> None:
    other = b"b" * 50_000

    def pieces():
        yield b"a" * 10_000
        atomic_write(tmp_path / "cached", other)  # another process, meanwhile
        assert (tmp_path / "cached").read_bytes() == other
        yield b"a" * 10_000

    atomic_write(tmp_path / "cached", pieces())
    assert content(tmp_path) == {"cached": b"a" * 20_000}


def test_what_was_left_of_a_file_is_taken_over_and_links_are_not_followed(tmp_path) -> None:
    places = {tmp_path / "x.png": b"new", tmp_path / "x.json": b"{}"}
    killed_at(0, tmp_path, lambda: atomic_write_all(places))
    killed_at(1, tmp_path, lambda: atomic_write_all(places))
    left = set(content(tmp_path))
    assert left
    atomic_write_all(places)
    assert content(tmp_path) == {"x.png": b"new", "x.json": b"{}"}
    (tmp_path / "theirs").write_bytes(b"theirs")
    for name in left:
        (tmp_path / name).symlink_to(tmp_path / "theirs")
    atomic_write_all(places)
    assert (tmp_path / "theirs").read_bytes() == b"theirs"


def test_two_builds_of_one_bank_are_refused_and_a_later_one_knows_of_the_other(photos, tmp_path) -> None:
    early = BankBuilder(tmp_path / "bank", classifier(), proxy())
    bank(photos / "deep", tmp_path / "bank")
    late = BankBuilder(tmp_path / "bank", classifier(), proxy())
    bank(photos / "0.png", tmp_path / "bank")
    with Hold(tmp_path / "bank") as other:
        other.take()
        for builder in (early, late):
            with pytest.raises(OutputError, match="another run is writing"):
                builder.build(photos / "1.png")
    assert len(late.build(photos / "1.png").added) == 1
    assert late.bank is not None
    assert len(late.bank.photos) == 3


def in_processes(count: int, work: Callable[[int], Any]) -> None:
    """Do work in so many processes at once; each must end well."""
    children = []
    for number in range(count):
        if not (child := os.fork()):
            try:
                work(number)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * count


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_processes_that_share_a_cache_of_texts_find_what_is_right(tmp_path) -> None:
    def vector(text: int) -> np.ndarray:
        return np.random.default_rng(text).normal(size=64).astype(np.float32)

    def work(number: int) -> None:
        cache = TextCache("model", ["a photo of {}"], tmp_path / "text.sqlite")
        for start in range(0, 60, 10):
            texts = range(start + number, start + number + 10)  # overlapping with those of the others
            cache.put({str(text): vector(text) for text in texts})
            found = cache.get([str(text) for text in texts])
            assert all(np.array_equal(found[str(text)], vector(text)) for text in texts)

    in_processes(4, work)
    found = TextCache("model", ["a photo of {}"], tmp_path / "text.sqlite").get([str(text) for text in range(63)])
    assert set(found) == {str(text) for text in range(63)}
    assert all(np.array_equal(row, vector(int(text))) for text, row in found.items())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_processes_that_write_one_file_leave_it_whole_at_every_moment(tmp_path) -> None:
    def work(number: int) -> None:
        for _ in range(20):
            atomic_write(tmp_path / "cached", bytes([number]) * 200_000)
            seen = (tmp_path / "cached").read_bytes()
            assert len(seen) == 200_000
            assert len(set(seen)) == 1

    in_processes(4, work)
    assert set(content(tmp_path)) == {"cached"}
