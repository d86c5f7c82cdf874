"""R16: hostile archives are refused in one line, take no memory, and nothing is written outside of where results go."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from attacks.pictures import encoded, photo
from attacks.spending import spending
from densevl.cli import app
from densevl.errors import DensevlError, ImageError, OutputError, WeightsError
from densevl.images import find_images, read_image
from densevl.pipelines.folder.packing import errors_of
from densevl.saved import Kind, read_arrays
from densevl.weights import read_checkpoint

PNG = encoded(photo(8, 8), "PNG")
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, data: bytes = PNG, size: int | None = None, **facts: object) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(data) if size is None else size
    for fact, value in facts.items():
        setattr(info, fact, value)
    return info, data


def tar(*members: Member, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    for info, data in members:
        buffer.write(info.tobuf(form) + data + bytes(-len(data) % 512))
    return buffer.getvalue() + bytes(1024)


def sparse(size: int) -> Member:
    """A file of so many bytes of which the archive holds none."""
    facts = {"major": "0", "minor": "1", "name": "a.png", "realsize": str(size), "map": "0,0"}
    return member("a.png", b"", pax_headers={f"GNU.sparse.{name}": value for name, value in facts.items()})


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "above": (lambda: tar(member("../../evil.png")), "leads outside"),
    "above, by detour": (lambda: tar(member("a/../../evil.png")), "leads outside"),
    "above, as Windows writes it": (lambda: tar(member("..\\evil.png")), "leads outside"),
    "absolute": (lambda: tar(member("/tmp/evil.png")), "leads outside"),
    "a name twice": (lambda: tar(member("a.png"), member("./a.png")), "is in it twice"),
    "1000 to 1": (lambda: gzip.compress(tar(member("a.png", bytes(10**7)))), "it is compressed"),
    "an end before its beginning": (
        lambda: tar(member("a.png"), member("b.png", b"", size=-512), form=tarfile.GNU_FORMAT),
        "a negative size",
    ),
    "a header of less than no bytes": (
        lambda: tar(member("a.png"), member("b.png", b"", size=-512, type=tarfile.XHDTYPE), form=tarfile.GNU_FORMAT),
        "is damaged",
    ),
    "names upon names": (
        lambda: tar(*[member("x", b"y" * 9, type=tarfile.GNUTYPE_LONGNAME)] * 2000, member("a.png")),
        "is damaged",
    ),
    "cut": (lambda: tar(member("a.png"))[:700], "damaged"),
    "more than there is": (lambda: tar(member("a.png", size=2**40), form=tarfile.GNU_FORMAT)[:-1024], "damaged"),
    "links alone": (
        lambda: tar(
            member("a.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
            member("b.png", b"", type=tarfile.LNKTYPE, linkname="../../etc/passwd"),
            member("c.png", b"", type=tarfile.FIFOTYPE),
            member("d.png", b"", type=tarfile.CHRTYPE),
        ),
        "no images in",
    ),
    "a file of nothing that is huge": (lambda: tar(sparse(2**40)), "no images in"),
    "no archive": (lambda: PNG, "not a tar archive"),
    "nothing": (lambda: b"", "not a tar archive"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_archive_of_photos_is_one_line_and_writes_nothing(name: str, tmp_path: Path, monkeypatch) -> None:
    make, said = REFUSED[name]
    place = tmp_path / "one" / "two"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    Path("x.tar").write_bytes(make())
    with spending(seconds=1, megabytes=50), pytest.raises(DensevlError) as error:
        find_images("x.tar")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    done = CliRunner().invoke(app, ["segment", "x.tar", "--labels", "cat", "--model", "mini", "--out", "out"])
    assert done.exit_code == 2, done.output
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["x.tar"]


def test_many_entries_are_listed_soon(tmp_path: Path) -> None:
    """They are many, and no bomb: each takes half a kilobyte of the file as well."""
    path = tmp_path / "many.tar"
    header = member("00000.png", b"")[0].tobuf(tarfile.USTAR_FORMAT)
    free = sum(header) - sum(header[:5]) - sum(header[148:156]) + 8 * 32
    names = [f"{number:05d}".encode() for number in range(20_000)]
    path.write_bytes(
        b"".join(name + header[5:148] + b"%06o\0 " % (free + sum(name)) + header[156:] for name in names) + bytes(1024)
    )
    with spending(seconds=2, megabytes=50):
        assert len(find_images(path).paths) == 20_000


def packed(path: Path, size: int, how: int = zipfile.ZIP_DEFLATED) -> str:
    """The address of a picture in a zip file, with zeros behind it up to a size."""
    with zipfile.ZipFile(path, "w", how) as archive, archive.open("x.png", "w", force_zip64=True) as file:
        file.write(PNG)
        for start in range(len(PNG), size, 2**20):
            file.write(bytes(min(2**20, size - start)))
    return f"zip://x.png::{path}"


@pytest.mark.parametrize(
    ("size", "how", "said"),
    [
        (2**25, zipfile.ZIP_DEFLATED, "over the limit of 200 to 1"),
        (2**25, zipfile.ZIP_LZMA, "over the limit of 200 to 1"),
        (2**21, zipfile.ZIP_DEFLATED, "over the limit of 1,000,000"),
    ],
)
def test_a_bomb_in_a_zip_file_is_one_line_and_is_not_unpacked(size, how, said, tmp_path, monkeypatch) -> None:
    if "1,000,000" in said:
        monkeypatch.setattr("densevl.images.addresses.MOST_UNPACKED", 10**6)
    pytest.importorskip("fsspec", reason="needs the extra remote")
    address = packed(tmp_path / "x.zip", size, how)
    with spending(seconds=1, megabytes=10), pytest.raises(ImageError, match=said) as error:
        read_image(address)
    assert "\n" not in str(error.value)
    done = CliRunner().invoke(
        app, ["segment", address, "--labels", "a", "--model", "mini", "--out", str(tmp_path / "o")]
    )
    assert done.exit_code == 2, done.output
    assert said in done.stderr


@pytest.mark.parametrize("kinds", [("zip", "zip"), ("tar", "zip"), ("zip", "tar"), ("tar", "tar")])
def test_an_archive_within_another_is_one_line(kinds, tmp_path) -> None:
    inner, outer = kinds
    with pytest.raises(ImageError, match="an archive within an archive"):
        read_image(f"{inner}://x.png::{outer}://inner::{tmp_path / 'outer'}")


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_picture_in_a_zip_file_is_read(how, tmp_path) -> None:
    pytest.importorskip("fsspec", reason="needs the extra remote")
    assert np.array_equal(read_image(packed(tmp_path / "x.zip", 0, how)), read_image(PNG))
    assert len(find_images(f"zip://*.png::{tmp_path / 'x.zip'}").paths) == 1


@pytest.mark.parametrize("folder", ["..", "a/../..", "/tmp/x", "..\\x"])
def test_names_of_an_object_store_lead_to_nothing_outside(folder: str, monkeypatch) -> None:
    """There ".." is a name like any other."""
    monkeypatch.setattr("densevl.images.listing._expanded", lambda *given: [("s3://b/x.png", folder, "x.png")])
    with pytest.raises(DensevlError, match="outside of their folder"):
        find_images("s3://b")


# Archives of densevl and of torch ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [tar(member("x.png")), tar(member("errors.jsonl", b"[5]")), tar(sparse(2**40)), b"", gzip.compress(tar()), PNG],
    ids=["no errors", "a number", "sparse", "empty", "compressed", "a picture"],
)
@pytest.mark.parametrize("ending", [".tar", ".parquet"])
def test_a_hostile_shard_of_results_is_one_line(data: bytes, ending: str) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    with spending(seconds=2, megabytes=50), pytest.raises(OutputError, match="is not a shard of results") as error:
        errors_of(f"results-000000{ending}", data)
    assert "\n" not in str(error.value)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(*members: tuple[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


ONE = npy(np.zeros(3))
ZIPS: dict[str, Callable[[], bytes]] = {
    "1000 to 1": lambda: zipped(("x/data.pkl", bytes(10**7)), ("x.npy", bytes(10**7)), how=zipfile.ZIP_DEFLATED),
    "a name twice": lambda: zipped(("x.npy", ONE), ("x.npy", ONE)),
    "100,000 entries": lambda: (
        zipped(*[("x.npy", b"")] * 3)[:-22] + b"PK\5\6\0\0\0\0" + b"\xff" * 4 + (2**20).to_bytes(4, "little") + bytes(6)
    ),
    "above": lambda: zipped(("../../evil", b"x")),
    "absolute": lambda: zipped(("/tmp/evil", b"x")),
    "a link": lambda: zipped(("link", b"/etc/passwd")),
    "an array of objects": lambda: zipped(("x.npy", npy(np.zeros(1)).replace(b"'<f8'", b"'|O' "))),
    "more than there is": lambda: zipped(("x.npy", ONE.replace(b"(3,), }      ", b"(3000000,), }"))),
    "cut": lambda: zipped(("x.npy", ONE))[:-30],
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ZIPS)
def test_a_hostile_zip_is_one_line_whoever_reads_it(name: str, tmp_path: Path) -> None:
    place = tmp_path / "in"
    place.mkdir()
    (place / "x.npz").write_bytes(ZIPS[name]())
    (place / "x.pt").write_bytes(ZIPS[name]())
    with spending(seconds=1, megabytes=50):
        with pytest.raises(OutputError) as error:
            read_arrays(place / "x.npz", Kind("state", OutputError, "make it anew"))
        with pytest.raises(WeightsError) as other:
            read_checkpoint(place / "x.pt")
    assert "\n" not in f"{error.value}{other.value}"
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["x.npz", "x.pt"]


def test_the_table_of_shards_is_read_where_it_is_sound() -> None:
    row = {"image": "x.png", "error": "no image"}
    assert errors_of("r.tar", tar(member("errors.jsonl", json.dumps(row).encode()))) == {"x.png": "no image"}
