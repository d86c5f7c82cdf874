"""R17: no output takes another's name, or leaves its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from densevl.cli import app
from densevl.files import OVERLAY_MARK, unique_stems


@pytest.mark.parametrize(
    ("paths", "stems"),
    [
        (["a/x.jpg", "a/y.png"], ["x", "y"]),
        (["a/x.jpg", "b/x.jpg", "c/z.jpg"], ["a_x", "b_x", "z"]),
        (["a/Фото 1.jpg", "b/東京.png"], ["Фото 1", "東京"]),
        (["two.dots.jpg", "none"], ["two.dots", "none"]),
        (["../x.jpg"], ["x"]),
        ([".hidden.jpg", "..", "a/..."], ["hidden", "image_", "a_"]),
        (["con.jpg", "a:b?.jpg", "lone\udcff.jpg"], ["con_", "a_b_", "lone_"]),
        (["x.jpg", "x_overlay.jpg"], ["x", "x_overlay-2"]),
        ([], []),
    ],
)
def test_output_names(paths: list[str], stems: list[str]) -> None:
    assert unique_stems(paths) == stems


def test_same_names_in_one_folder_differ_and_stay_the_same_between_runs() -> None:
    paths = ["a/x.jpg", "a/x.png", "a/X.JPG", "b/a/x.jpg", "a/x.jpg"]
    stems = unique_stems(paths)
    assert len({stem.casefold() for stem in stems}) == 5
    assert stems == unique_stems(paths)
    assert all(stem.lower().startswith(("x-", "a_x")) for stem in stems)


def test_long_names_are_cut_but_stay_different() -> None:
    stems = unique_stems(["長" * 300 + "1.jpg", "長" * 300 + "2.jpg"])
    assert len(set(stems)) == 2
    assert all(len(stem.encode()) <= 150 for stem in stems)


odd_paths = st.lists(
    st.text(st.sampled_from("xXéß_.-/ \\:\0\udcff\ud800東") | st.characters(), max_size=12)
    | st.sampled_from(["x", "x_overlay", "x_overlay_overlay", "../x", "/x", "a/x.png", "a_x", "CON", "X" * 300]),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(odd_paths)
def test_no_two_outputs_ever_collide_or_escape(paths: list[str]) -> None:
    stems = unique_stems(paths)
    assert len(stems) == len(paths)
    written = [(stem + mark).casefold() for stem in stems for mark in ("", OVERLAY_MARK)]
    assert len(set(written)) == len(written)
    for stem in stems:
        assert stem
        assert stem[0] != "."
        assert not set(stem) & set('/\\:\0<>|?*"')
        assert len(stem.encode()) <= 170
        assert Path("out", f"{stem}.png").parent == Path("out")


ODD = ["a/x.jpg", "b/x.jpg", "x.jpg", "x.png", "x_overlay.png", "Ünï 東京.png", "-x.png", "a b.png", "densevl.png"]


def test_a_command_writes_a_result_for_each_odd_name_and_nothing_elsewhere(tmp_path: Path, monkeypatch) -> None:
    place = tmp_path / "work"
    for name in [*ODD, "長" * 80 + ".png", "../outside/x.jpg", "new\nline.png"]:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (len(name), 90, 200)).save(place / name)
    monkeypatch.chdir(place)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    given = ["segment", ".", "../outside/x.jpg", "--labels", "cat", "--model", "mini", "--out", "out"]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    fresh = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all((place / "out") in path.parents for path in fresh)
    assert len([path for path in fresh if path.suffix == ".json"]) == len(before) + 1  # and that of the run
