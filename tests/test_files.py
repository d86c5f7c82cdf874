"""Outputs are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from densevl import devices, digest
from densevl.cli import app
from densevl.errors import DensevlError, OptionError, OutputError
from densevl.files import atomic_write, atomic_write_all, guard


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_writing_makes_folders_and_replaces_files(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "x.bin"
    assert atomic_write(path, b"one") == path
    assert atomic_write(str(path), b"two") == path
    assert tree(tmp_path) == {os.path.join("new", "deep", "x.bin"): b"two"}


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_written_files_have_the_usual_permissions_not_those_of_temporary_files(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    atomic_write(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


class _Full:
    """An opened file on a disk that fills up: half of the bytes arrive."""

    def __init__(self, path: Path, real_open: object) -> None:
        self.file = real_open(path, "wb")  # type: ignore[operator]

    def __enter__(self) -> _Full:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_names_path_and_size_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic_write(tmp_path / "a.png", b"old a")
    real_open, calls = open, []

    def open_second_full(path: Path, mode: str) -> object:
        calls.append(path)
        return _Full(path, real_open) if len(calls) == 2 else real_open(path, mode)

    monkeypatch.setattr("densevl.files.open", open_second_full, raising=False)
    with pytest.raises(OutputError) as error:
        atomic_write_all({tmp_path / "a.png": b"new a", tmp_path / "a.json": b"12345678"})
    assert "a.json" in str(error.value)
    assert "8 bytes" in str(error.value)
    assert "No space left" in str(error.value)
    assert tree(tmp_path) == {"a.png": b"old a"}


def test_ctrl_c_while_writing_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "x", b"data")
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    "name", ["folder", "file/below.png", "nul\0.png", "x" * 300 + ".png"], ids=["folder", "in file", "nul", "long"]
)
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError) as error:
        atomic_write(tmp_path / name, b"data")
    assert "\n" not in str(error.value)
    assert tree(tmp_path) == {"file": b""}


# Content in pieces, and its digest -----------------------------------------------------------------------------------


def test_pieces_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    assert atomic_write(tmp_path / "a.bin", (bytes([n]) * 3 for n in range(3))).read_bytes() == b"\0\0\0\1\1\1\2\2\2"

    def breaking_off() -> Iterator[bytes]:
        yield b"half"
        raise DensevlError("the server went away")

    with pytest.raises(DensevlError, match="went away"):
        atomic_write(tmp_path / "a.bin", breaking_off())
    assert (tmp_path / "a.bin").read_bytes() == b"\0\0\0\1\1\1\2\2\2"
    assert len(list(tmp_path.iterdir())) == 1


def test_digests_are_sha256_and_tell_apart_what_differs(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 3_000_000)
    assert digest.of_file(tmp_path / "big") == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    assert digest.of_text("a", "b") == hashlib.sha256(b"a\0b").hexdigest()
    assert digest.of_text("\udcff")  # an undecodable byte in a file name
    ones, one = torch.ones(2, 3), torch.ones(())
    cases = [[("a", ones)], [("a", ones.mT)], [("b", ones)], [("a", ones.half())], [("a", one)], []]
    assert len({digest.of_tensors(case) for case in cases}) == len(cases)
    strided = torch.arange(12.0).view(3, 4)[:, ::2]
    assert digest.of_tensors([("a", strided)]) == digest.of_tensors([("a", strided.contiguous().requires_grad_())])


def test_memory_is_kept_by_commands_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[int, int] = {}
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=asked.__setitem__))
    CliRunner().invoke(app, ["recipes"])
    assert asked == {-3: 2**30, -1: 2**30}  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: SimpleNamespace())  # musl
    devices.keep_memory()


def test_a_device_is_the_one_asked_for_or_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.choose("cpu") == devices.choose(torch.device("cpu")) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.choose() == devices.default(3) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [devices.default(rank) for rank in (None, 0, 1, 2)] == ["cuda", "cuda:0", "cuda:1", "cuda:0"]
    for device in ("cuda:99", "gpu"):
        with pytest.raises(OptionError, match=f"device '{device}' cannot be used here .*; take 'cpu'"):
            devices.choose(device)


@pytest.mark.parametrize(
    ("there", "target"),
    [
        ({"x.png": "theirs"}, "x.png"),
        ({"x.png": "theirs", "x.json": '{"names": []}'}, "x.png"),
        ({"x.json": '{"names": []}'}, "x.json"),
        ({"x.png": "photo", "x.json": '{\n "densevl": "1",\n "regions": []\n}'}, "x.png"),
        ({"x_labels.png": "theirs", "x.json": '{"densevl": "1"}'}, "x_labels.png"),
        ({"detector.safetensors": "theirs"}, "detector.safetensors"),
        ({"scores.csv": "theirs", "densevl.json": '{"densevl": "1"}'}, "scores.csv"),
        ({"report.html": "<html>theirs</html>"}, "report.html"),
    ],
)
def test_a_file_of_somebody_else_is_replaced_only_if_asked(tmp_path: Path, there: dict[str, str], target: str) -> None:
    for name, text in there.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(OutputError, match=r"not written by densevl .*--overwrite"):
        guard([tmp_path / target])
    guard([tmp_path / target], overwrite=True)


@pytest.mark.parametrize(
    ("there", "target"),
    [
        ({}, "x.png"),
        ({"x.png": "ours", "x.json": '{"meta": {"densevl": "1"}}'}, "x.png"),
        ({"x_overlay.png": "ours", "x.json": '{"meta": {"versions": {"densevl": "1"}}}'}, "x_overlay.png"),
        ({"x.json": '{"meta": {"densevl": "1"}}'}, "x.json"),
        ({"x_overlay.png": "ours", "x.json": '{\n "densevl": "1",\n "regions": []\n}'}, "x_overlay.png"),
        ({"x_overlay.png": "ours", "x_overlay.json": '{"densevl": "1"}'}, "x_overlay.png"),
        ({"x_labels.zip": "ours", "x.json": '{"densevl": "1"}'}, "x_labels.zip"),
        ({"det.safetensors": "ours", "det.json": '{"format": "densevl-anomaly-1"}'}, "det.safetensors"),
        ({"scores.csv": "ours", "densevl.json": '{"densevl": "1", "files": ["scores.csv"]}'}, "scores.csv"),
        ({"report.html": "<html><p>densevl 1</html>"}, "report.html"),
    ],
)
def test_a_file_of_densevl_may_be_replaced(tmp_path: Path, there: dict[str, str], target: str) -> None:
    for name, text in there.items():
        (tmp_path / name).write_text(text)
    guard([tmp_path / target])


def test_an_input_is_never_replaced_by_whatever_name(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("photo")
    (tmp_path / "link.png").symlink_to(tmp_path / "x.png")
    (tmp_path / "sub").mkdir()
    for name in ("x.png", "link.png", "sub/../x.png"):
        with pytest.raises(OutputError, match="one of the inputs"):
            guard(
                [tmp_path / "new.png", tmp_path / name], inputs=[tmp_path / "x.png", tmp_path / "gone"], overwrite=True
            )
    guard([tmp_path / "new.png"], inputs=[tmp_path / "x.png"])
    with pytest.raises(OutputError, match="is a folder"):
        guard([tmp_path / "sub"], overwrite=True)


def test_an_export_does_not_accuse_its_own_file(tmp_path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    with pytest.raises(
        OutputError, match=r"is there already and would be replaced; name another FILE, or .*--overwrite"
    ):
        guard([tmp_path / "m.onnx"], out="another FILE")
