"""The pages: whatever a name, a title or a path holds, they stay text, need no other file, no network and no script."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from densevl.evaluation import Experiment, run
from densevl.evaluation.analyses import Analyses, Analysis, Chart, Finding, Left
from densevl.evaluation.predictors import Clock, Prediction
from densevl.evaluation.report import analyses as analyses_report
from densevl.evaluation.report import results as report
from densevl.evaluation.report.charts import heat
from densevl.evaluation.report.page import page

EVIL = '<script>alert("1")</script>'
TAGS = {
    *("html", "meta", "title", "style", "h1", "h2", "p", "table", "tr", "th", "td", "div", "figure", "img", "code"),
    "h3",
    *("figcaption", "svg", "text", "rect", "title", "circle", "line", "polyline"),
}


class Reader(HTMLParser):
    """Collects tags, what attributes load, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loaded: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href") or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def _harmless(html: str) -> Reader:
    read = Reader(html)
    assert read.tags <= TAGS
    assert "script" not in read.tags
    assert all(value.startswith("data:image/jpeg;base64,") for value in read.loaded)
    assert not re.search(r"https?:|@import|url\(", html)
    return read


class Dummy:
    """Finds random classes; its model is called badly."""

    def __init__(self) -> None:
        self.clock = Clock()

    def facts(self) -> dict[str, str]:
        return {"model": EVIL + "model", "recipe": EVIL + "recipe", "background": EVIL + "background"}

    def __call__(self, rgb: np.ndarray) -> Prediction:
        return Prediction((rgb[..., 0] % 3).astype(np.int16) - 1, rgb[..., 1].astype(np.float32) / 255)


@pytest.fixture
def evil(tmp_path):
    """A dataset whose folders, files and classes are scripts."""
    root, rng = tmp_path / "<script>", np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / kind / "<img src=x onerror=alert(1)>").mkdir(parents=True)
    for number in range(4):
        name = f"<img src=x onerror=alert(1)>/<script>{number}.png"
        Image.fromarray(rng.integers(0, 256, (8, 9, 3), np.uint8)).save(root / "images" / name)
        Image.fromarray(rng.integers(0, 2, (8, 9), np.uint8)).save(root / "labels" / name)
    (root / "names.txt").write_text(f"{EVIL}cat\ndog & <b>\n")
    return root


def test_names_titles_and_paths_are_text_on_the_page(evil, tmp_path) -> None:
    outcome = run(Experiment("folder", root=str(evil), strings="names", seed=3), predictor=Dummy())
    html = report.write(outcome, tmp_path / "out", Dummy())[0].read_text()
    read = _harmless(html)
    said = "".join(read.texts)
    assert read.texts.count(f"{EVIL}recipe on folder") == 2  # title and heading
    for text in (
        f"model {EVIL}model",
        f"{EVIL}cat",
        "dog & <b>",
        "<img src=x onerror=alert(1)>/<script>0",
        "background",
    ):
        assert text in said
    assert len(read.loaded) == 4 * 3


def test_analyses_are_text_on_their_page(tmp_path) -> None:
    rows = [{EVIL: EVIL, "IoU": 0.25, "count": 7, "none": float("nan")}]
    chart = Chart({EVIL: [(0.0, 0.5), (1.0, 0.25), (2.0, float("nan"))]}, EVIL, EVIL, {0.0: EVIL})
    done = Analysis("name", EVIL, {"": rows, EVIL: rows}, [chart], [Finding(EVIL, EVIL), Finding(EVIL)])
    found = Analyses(f"{EVIL}title", EVIL, (done,), (Left(EVIL, EVIL),))
    read = _harmless(analyses_report.write(found, tmp_path)[0].read_text())
    assert read.texts.count(f"{EVIL}title") == 2
    for text in (EVIL, "25.0", "7", "n/a"):
        assert text in read.texts


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_page_shows_the_pictures_it_is_given(count) -> None:
    pictures = [(f"{EVIL}{number}", np.full((3, 4, 3), 99, np.uint8)) for number in range(count)]
    facts = {name: {} for name in ("used", "measures", "paper", "delta", "times", "protocol", "experiment", "versions")}
    example = SimpleNamespace(key="a/b", score=0.5, pictures=pictures)
    read = _harmless(
        page(
            "results", **facts, title="t", images=[], explained={}, matrix=None, worst=[example], bars="", bar_rows=[]
        ).decode()
    )
    assert len(read.loaded) == count
    assert "a/b: 50.0" in read.texts
    assert [f"{EVIL}{number}" in read.texts for number in range(count)] == [False, *[True] * (count - 1)]


def test_a_name_that_is_no_text_in_utf8_is_written_too() -> None:
    assert b"\\udcff.png" in page("analyses", title="\udcff.png", analyses=[])


def test_the_confusion_matrix_shows_classes_that_were_never_found() -> None:
    matrix = np.array([[5, 0, 0, 2], [3, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    texts = Reader(heat(matrix, ["cat", "dog", "cow", "nothing"])).texts
    assert [texts.count(name) for name in ("cat", "dog", "cow", "nothing")] == [2, 2, 0, 1]
