"""The page of all results in Chromium: it shows what was found, obeys no label, and asks nobody."""

from __future__ import annotations

import numpy as np
import pytest

from densevl.regions.exports.kinds import open_export
from densevl.results import SegmentationResult
from tools.screenshots import browser_path, chromium

pytest.importorskip("playwright", reason="the extra browser is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(browser_path() is None, reason="no Chromium on the PATH: apt-get install chromium"),
]

HOSTILE = ("</script><script>window.hacked=1</script>", '<img src=x onerror="window.hacked=1">', "{{data}}{{script}}")
NAMES = (*HOSTILE, "日本語", *(f"class {number}" for number in range(300)))


def result(*numbers: int, warnings: tuple[str, ...] = ()) -> SegmentationResult:
    """Stripes of classes, left to right."""
    labels = np.repeat(np.array(numbers, np.int16), 8)[None].repeat(20, axis=0)
    photo = np.full((*labels.shape, 3), 128, np.uint8)
    return SegmentationResult(labels, NAMES, np.ones(labels.shape, np.float32), photo, warnings=warnings)


def test_labels_are_looked_at_one_by_one_and_none_of_them_is_obeyed(tmp_path) -> None:
    export = open_export("html", tmp_path, NAMES)
    export.add("photos/<b>a</b>.png", result(0, 303, -1))
    export.add("photos/b.png", result(1, 2, 3, warnings=("<i>dark</i>",)))
    export.add("photos/empty.png", result(-1))
    (path,) = export.close()
    asked, said = [], []
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_selector("canvas[data-painted='null 50']")
        assert page.locator("#legend button span").all_inner_texts() == [*NAMES[:4], NAMES[303]]
        assert page.locator("h2").all_inner_texts() == ["<b>a</b>.png", "b.png", "empty.png"]
        assert page.locator("li").all_inner_texts() == ["<i>dark</i>"]
        assert page.inner_text(".found >> nth=0") == f"{NAMES[0]} 33 %, {NAMES[303]} 33 %"
        pixel = "x => [...document.querySelector('canvas').getContext('2d').getImageData(x, 9, 1, 1).data]"
        assert [page.evaluate(pixel, x)[3] for x in (4, 12, 20)] == [127, 127, 0]
        page.fill("#search", "299")
        page.click("#legend button:visible")
        page.wait_for_selector("canvas[data-painted='303 50']")
        assert page.inner_text("#count") == "1 of 3 photos"
        assert [page.evaluate(pixel, x)[:3] for x in (4, 20)] == [[0, 0, 0]] * 2
        page.fill("#opacity", "100")
        page.wait_for_selector("canvas[data-painted='303 100']")
        assert page.evaluate(pixel, 12)[3] == 255
        page.click("#legend button:visible")
        page.check("#warned")
        assert page.inner_text("#count") == "1 of 3 photos"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        shape = "[...document.querySelectorAll('img')].map((i) => i.clientWidth / i.clientHeight)"
        page.uncheck("#warned")
        assert page.evaluate(shape) == pytest.approx([24 / 20, 24 / 20, 8 / 20], rel=0.02)
        assert page.evaluate("window.hacked") is None
    assert [text for text in said if "readback" not in text] == []  # the test itself reads back
    assert [url for url in asked if not url.startswith(("data:", "blob:", path.as_uri()))] == []
