"""Images and results at addresses, and images in tar archives: the same results as from and in a folder."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from densevl.cli import app
from densevl.errors import ImageError, MissingExtraError, OptionError, OutputError
from densevl.images import find_images, read_image
from densevl.pipelines.folder import gathered
from densevl.pipelines.folder.loop import to_files
from densevl.pipelines.folder.tasks import Segmenting
from densevl.vocabulary import LabelSet

fsspec = pytest.importorskip("fsspec")
NAMES = ("a.png", "deep/b.png", "deep/c.png")
WORK = Segmenting(LabelSet.parse("cat, dog"), {"model": "mini", "device": "cpu"})


@pytest.fixture
def photos() -> dict[str, bytes]:
    found = {}
    for name in NAMES:
        buffer = io.BytesIO()
        Image.fromarray(np.random.randint(0, 255, (96, 96, 3), np.uint8)).save(buffer, "PNG")
        found[name] = buffer.getvalue()
    return found | {"deep/bad.png": b"no image", "notes.md": b"", ".hidden.png": b""}


@pytest.fixture
def memory(photos):
    """The file system in memory, holding the photos."""
    files = fsspec.filesystem("memory")
    for name, data in photos.items():
        files.pipe_file(f"/photos/{name}", data)
    yield files
    files.rm("/", recursive=True)
    files.store.clear()


def labels(read, place: str) -> list[bytes]:
    return [read(f"{place}/{name}") for name in ("a.png", "deep/b.png", "deep/c.png")]


def test_an_address_to_an_address_is_as_a_folder_to_a_folder(memory, photos, tmp_path) -> None:
    for name, data in photos.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    task = WORK.task()
    to_files(task, find_images(tmp_path / "photos"), tmp_path / "here")
    for out in ("memory://out", "memory://photos/inside"):  # the results' own folder is left out
        for fresh in (3, 0):
            found = find_images("memory://photos", skip=out)
            assert (len(found.paths), found.left_out) == (4, {".md": 1})
            report = to_files(task, found, out)
            assert (report.fresh, len(report.errors)) == (fresh, 1)
        place = out.removeprefix("memory:/")
        assert labels(memory.cat_file, place) == labels(lambda path: Path(path).read_bytes(), str(tmp_path / "here"))
        assert memory.cat_file(f"{place}/errors.jsonl").count(b"\n") == 1
        assert b"memory:" in memory.cat_file(f"{place}/densevl.json")
    memory.pipe_file("/photos/a.png", photos["deep/b.png"])
    assert to_files(task, find_images("memory://photos", skip=out), out).fresh == 1, "it changed"
    other = Segmenting(LabelSet.parse("house"), WORK.options).task()
    with pytest.raises(OutputError, match="labels"):
        to_files(other, found, out)


def test_addresses_are_read_and_told_of_in_one_line(memory, photos, tmp_path, monkeypatch) -> None:
    assert [path[-5:] for path in find_images("memory://photos/deep/*.png").paths] == ["b.png", "d.png", "c.png"]
    assert read_image("memory://photos/a.png").shape == (96, 96, 3)
    (tmp_path / "x.png").write_bytes(photos["a.png"])
    assert read_image(f"file://{tmp_path}/x.png").shape == (96, 96, 3)
    for address, said in (
        ("memory://photos/none.png", "does not exist"),
        ("memory://photos/deep/bad.png", "not an image"),
        ("nonsense://x.png", "cannot be read"),
        ("https://example.org/x.png", "download it"),
    ):
        with pytest.raises(ImageError, match=said):
            read_image(address)
    monkeypatch.setitem(__import__("sys").modules, "fsspec.core", None)
    with pytest.raises(MissingExtraError, match=r"densevl\[remote\]"):
        read_image("memory://photos/a.png")


def test_images_of_tar_archives_go_to_folders_of_their_names(photos, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        with tarfile.open(f"photos-{number:04d}.tar", "w") as archive:
            for name, data in photos.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    found = find_images("photos-{0000..0001}.tar")
    assert found.paths == find_images("*.tar").paths
    assert found.paths[0] == "tar://a.png::photos-0000.tar"
    assert (len(found.paths), found.left_out[".md"]) == (8, 2)
    command = ["segment", "photos-{0000..0001}.tar", "--labels", "cat,dog", "--model", "mini", "--out", "out"]
    for again in range(2):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 3, done.output
        assert again or "a.png: " in done.output, "the image is told of, not the archive"
    assert "6 of 8 images are done" in done.output
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*_overlay.png")}
    assert names == {f"photos-000{n}/{name[:-4]}_overlay.png" for n in range(2) for name in NAMES}
    (tmp_path / "cut.tar").write_bytes((tmp_path / "photos-0000.tar").read_bytes()[:100])
    for source, said in (("cut.tar", "damaged"), ("none-{0..1}.tar", "does not exist")):
        done = CliRunner().invoke(app, ["segment", source, "--labels", "cat", "--model", "mini", "--out", "new"])
        assert done.exit_code == 2
        assert said in done.output


@pytest.mark.parametrize("ending", [".tar", ".parquet"])
def test_packed_results_are_those_of_a_folder_and_a_killed_run_goes_on(photos, tmp_path, ending) -> None:
    for number in range(70):  # a shard of 64, and the rest
        Image.new("RGB", (96, 96), (number, 90, 90)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "05.png").write_bytes(b"no image")
    task, found, out = WORK.task(), find_images(tmp_path), tmp_path / "packed" / f"results{ending}"
    to_files(task, found, tmp_path / "folder")
    report = to_files(task, found, out)
    assert (len(report.done), report.fresh, len(report.places)) == (69, 69, 2)
    names = {path.name for path in out.parent.iterdir()}
    assert names == {f"results-00000{n}{ending}" for n in range(2)} | {"results.json", "results.errors.jsonl"}
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    second = out.parent / f"results-000001{ending}"
    if ending == ".tar":
        with tarfile.open(second) as archive:
            assert archive.extractfile("66.png").read() == (tmp_path / "folder" / "66.png").read_bytes()
            assert "66.overlay.png" in archive.getnames()
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        row = parquet.read_table(second).to_pylist()[2]
        assert (row["name"], row["error"]) == ("66", None)
        assert row["png"] == (tmp_path / "folder" / "66.png").read_bytes()
        assert parquet.read_table(out.parent / f"results-000000{ending}")["error"].null_count == 63
    second.unlink()  # as if the run had been killed
    (out.parent / "results.errors.jsonl").unlink()
    again = to_files(task, found, out)
    assert (again.fresh, again.errors) == (6, report.errors)
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before
    with pytest.raises(OutputError, match=r"another run .images"):
        to_files(task, find_images(tmp_path / "00.png"), out)
    to_files(task, find_images(tmp_path / "00.png"), out, overwrite=True)
    assert {path.name for path in out.parent.iterdir()} == {f"results-000000{ending}", "results.json"}
    (out.parent / f"theirs-000000{ending}").write_bytes(b"theirs")
    with pytest.raises(OutputError, match="not written by densevl"):
        to_files(task, found, out.with_name(f"theirs{ending}"))
    with pytest.raises(OptionError, match="need a folder"):
        to_files(task, found, out, together=[gathered.Sheet("_overlay.png")])


def test_packed_results_may_be_at_an_address(memory) -> None:
    report = to_files(WORK.task(), find_images("memory://photos"), "memory://packed/results.tar")
    assert report.places == ["memory://packed/results-000000.tar"]
    assert memory.cat_file("/packed/results.errors.jsonl").count(b"\n") == 1


def test_a_folder_may_be_given_by_its_address(photos, tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(photos["a.png"])
    assert find_images(f"file://{tmp_path}").paths == find_images(tmp_path).paths
    with pytest.raises(OutputError, match="would be taken for its images"):
        find_images(tmp_path, skip=f"file://{tmp_path}")
