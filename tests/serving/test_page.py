"""The page in Chromium: what people see and do there, and that it asks nobody else."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from conftest import random_clip, wrap
from densevl import Segmenter, load_backbone
from densevl.serving import models as served
from serving.server import EXAMPLES, running
from serving.test_api import decoded, png
from tools.screenshots import browser_path, chromium

pytest.importorskip("playwright", reason="the extra browser is not installed")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(browser_path() is None, reason="no Chromium on the PATH: apt-get install chromium"),
]

LABELS = ["elephant", "fish", "sailboat", "pizza", "sunflower", "house"]
WATER = EXAMPLES / "water.png"
HOSTILE = '<img src=x onerror="window.hacked=1">'


@pytest.fixture(scope="module")
def browser():
    with chromium() as own:
        yield own


@pytest.fixture(scope="module")
def address(models):
    with running(models, body=1, queue=4) as (own, _, _):
        yield own


@pytest.fixture
def open_page(browser, address):
    """Opens the page; at the end it has asked no other host, and its console is empty."""
    opened, troubles, hosts = [], [], set()

    def make(at: str = address, **options):
        context = browser.new_context(**{"viewport": {"width": 1120, "height": 800}} | options)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "//" in request.url else ""))
        page.goto(at)
        page.wait_for_selector("body[data-state=empty]")
        opened.append((context, at))
        return page

    yield make
    for context, _ in opened:
        context.close()
    assert hosts <= {at.removeprefix("http://") for _, at in opened} | {""}
    assert [text for text in troubles if "Failed to load resource: the server responded" not in text] == []


def ask(page, *labels: str, photo=WATER, mode: str = "segment") -> None:
    if mode != "segment":
        page.click(f"#modes [data-mode={mode}]")
    page.set_input_files("#files", photo)
    page.fill("#label", ", ".join(labels))
    page.click("#run")
    page.wait_for_selector("body[data-state=done]")


def said(page) -> str:
    page.wait_for_selector("body[data-state=error]")
    return page.inner_text("#error")


def overlay(page) -> str:
    page.wait_for_timeout(60)  # it is painted with the next frame
    return page.evaluate("document.getElementById('overlay').toDataURL()")


def spot(page, x: float, y: float, size: int = 192) -> tuple[float, float]:
    """Where on the screen a pixel of the photo is."""
    box = page.locator("#overlay").bounding_box()
    return box["x"] + (x + 0.5) * box["width"] / size, box["y"] + (y + 0.5) * box["height"] / size


def percent(share: float) -> str:
    return f"{math.floor(100 * share + 0.5)} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def test_a_photo_some_words_and_what_is_found(open_page, models) -> None:
    page = open_page()
    page.set_input_files("#files", WATER)
    page.wait_for_selector("body[data-state=ready]")
    before = overlay(page)
    with page.expect_response("**/v1/segment") as answered:
        page.fill("#label", ", ".join(LABELS))
        page.click("#run")
    page.wait_for_selector("body[data-state=done]")
    assert overlay(page) != before
    want = Segmenter(models.backbones["mini"])(WATER, LABELS)
    got = page.evaluate(
        "async (map) => { const m = await (await import('/maps.js')).decoded(map); return [[...m.ids], [...m.blue]] }",
        answered.value.json()["map"],
    )
    assert np.array_equal(np.reshape(got[0], (192, 192)), want.labels)
    assert np.array_equal(np.reshape(got[1], (192, 192)), np.rint(want.confidence * 255))

    plain = overlay(page)
    page.fill("#opacity", "90")
    strong = overlay(page)
    page.uncheck("#outline")
    assert len({plain, strong, overlay(page)}) == 3

    rows = {row.split("\n")[0]: row.split("\n")[1] for row in page.locator("#legend li").all_inner_texts()}
    assert rows == {name: percent(share) for name, share in want.fractions().items()}
    for x, y in [(112, 125), (40, 165), (5, 5)]:
        page.mouse.move(*spot(page, x, y))
        label, sure = want.labels[y, x], np.rint(want.confidence[y, x] * 255) / 255
        assert page.inner_text("#tip") == f"{'nothing' if label < 0 else LABELS[label]} {percent(sure)}"

    full = overlay(page)
    page.click("#legend button:has-text('house')")
    isolated = overlay(page)
    assert isolated != full
    assert page.get_attribute("#legend button:has-text('house')", "aria-pressed") == "true"
    page.click("#legend button:has-text('house')")
    page.mouse.move(5, 5)
    assert overlay(page) == full


def test_the_model_and_the_recipe_that_are_chosen_answer(open_page, monkeypatch) -> None:
    """Of two models with two recipes each, the first of both are the defaults."""
    own = {"mini": load_backbone("mini", device="cpu"), "tiny": wrap(random_clip())}
    monkeypatch.setattr(served, "load_backbone", lambda name, **options: own[name])
    recipes = ("maskclip_value", "sclip")
    with running(served.Models(served.Settings(tuple(own), recipes, ("grid",)), "cpu")) as (address, _, _):
        page = open_page(address)
        assert page.locator("#model option").all_inner_texts() == list(own)
        page.click("#settings summary")
        assert page.locator("#recipe option").all_inner_texts() == list(recipes)
        page.set_input_files("#files", WATER)
        page.fill("#label", ", ".join(LABELS))
        found = []
        for model, recipe in [("mini", None), ("mini", "sclip"), ("tiny", "sclip"), ("tiny", "maskclip_value")]:
            page.select_option("#model", model)
            if recipe is not None:
                page.select_option("#recipe", recipe)
            with page.expect_response("**/v1/segment") as answered:
                page.click("#run")
            page.wait_for_selector("body[data-state=done]")
            labels, _ = decoded(answered.value.json()["map"])
            assert np.array_equal(labels, Segmenter(own[model], recipe or recipes[0])(WATER, LABELS).labels)
            found.append(labels.tobytes())
    assert len(set(found)) == 4


def test_a_region_is_picked_named_otherwise_and_taken_along(open_page, models, tmp_path) -> None:
    page = open_page()
    ask(page, *LABELS)
    want = Segmenter(models.backbones["mini"])(WATER, LABELS)
    y, x = (int(n) for n in np.argwhere(want.labels == 0)[40])
    page.mouse.click(*spot(page, x, y))
    assert page.inner_text("#picked-name") == "elephant"
    names = [text.split("\n")[0] for text in page.locator("#alternatives li").all_inner_texts()]
    assert set(names) <= {*LABELS, "nothing"}
    assert len(names) >= 2
    with page.expect_download() as saved:
        page.click("#save-mask")
    saved.value.save_as(tmp_path / "mask.png")
    pieces, _ = ndimage.label(want.labels == 0)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png").convert("L")) > 0, pieces == pieces[y, x])

    page.fill("#new-name", "mammoth")
    page.click("#rename button")
    page.wait_for_selector("#legend :text('mammoth')")
    page.wait_for_selector("body[data-state=done]")
    with page.expect_download() as saved:
        page.click("#downloads [data-format=coco]")
    assert saved.value.suggested_filename == "water_coco.json"
    saved.value.save_as(tmp_path / "coco.json")
    content = json.loads((tmp_path / "coco.json").read_text())
    assert "mammoth" in [row["category_name"] for row in content["annotations"]]
    page.click("#undo")
    page.wait_for_selector("#edits", state="hidden")
    assert page.locator("#legend :text('mammoth')").count() == 0


EXPORTS = ["coco", "panoptic", "labelme", "labelstudio", "yolo", "geojson", "npz", "html"]
FILES = {
    "segment": ["json", "png", "overlay", *EXPORTS, "zip"],
    "regions": ["json", "overlay", *EXPORTS, "zip"],
    "anomaly": ["json", "overlay", "npy", "zip"],
    "classify": ["json", "overlay", "zip"],
    "session": ["json", "png", "overlay", *EXPORTS, "zip"],
}


@pytest.mark.parametrize(
    ("mode", "few"),
    [(mode, slice(first, first + 8)) for mode, files in FILES.items() for first in range(0, len(files), 8)],
    ids=str,
)
def test_every_file_of_every_mode_is_downloaded(open_page, tmp_path, mode, few) -> None:
    """Some at a time: Chromium takes ten downloads of a page in quick succession and asks before more."""
    page = open_page()
    if mode == "anomaly":
        page.click("#modes [data-mode=anomaly]")
        page.set_input_files("#files", WATER)
        page.click("#run")
        page.wait_for_selector("body[data-state=done]")
    else:
        ask(page, "elephant", "house", mode=mode)
    buttons = page.locator("#downloads button")
    assert [button.get_attribute("data-format") for button in buttons.all()] == FILES[mode]
    for button in buttons.all()[few]:
        with page.expect_download() as saved:
            button.click()
        saved.value.save_as(tmp_path / "file")
        assert saved.value.suggested_filename.startswith("water")
        assert (tmp_path / "file").stat().st_size > 100
        page.wait_for_selector("body[data-state=done]")


def test_boxes_and_points_become_named_regions(open_page) -> None:
    page = open_page()
    page.click("#modes [data-mode=regions]")
    page.set_input_files("#files", WATER)
    page.fill("#label", ", ".join(LABELS) + ",")
    page.press("#label", "Enter")
    page.click("#tools button:has-text('Box')")
    page.mouse.move(*spot(page, 86, 92))
    page.mouse.down()
    page.mouse.move(*spot(page, 120, 130))
    page.mouse.move(*spot(page, 139, 151))
    page.mouse.up()
    page.wait_for_selector("#legend :text('elephant')")
    assert re.fullmatch(r"box 8[5-7], 9[1-3], 1(39|4[01]), 15[1-3]", page.inner_text("#prompts li span"))
    page.wait_for_selector("body[data-state=done]")
    page.fill("#prompt", "167 90")
    page.press("#prompt", "Enter")
    page.wait_for_selector("#legend :text('sunflower')")
    page.wait_for_selector("body[data-state=done]")
    assert page.locator("#legend li").count() == 2
    page.click("#legend button:has-text('sunflower')")
    assert page.inner_text("#picked-name") == "sunflower"
    page.fill("#new-name", "daisy")
    page.press("#new-name", "Enter")
    page.wait_for_selector("#legend :text('daisy')")


def test_an_anomaly_is_compared_with_normal_pictures(open_page) -> None:
    page = open_page()
    page.click("#modes [data-mode=anomaly]")
    page.set_input_files("#files", EXAMPLES / "tiles_damaged.png")
    page.set_input_files("#normal-files", EXAMPLES / "tiles_sound.png")
    page.fill("#item", "tile")
    page.click("#run")
    page.wait_for_selector("body[data-state=done]")
    assert re.match(r"Score 0\.\d+: anomalous", page.inner_text("#answer-title"))
    told, drawn = page.inner_text("#summary"), overlay(page)
    page.fill("#limit", "900")
    assert page.inner_text("#summary") != told
    assert overlay(page) != drawn
    page.mouse.move(*spot(page, 110, 60))
    assert float(page.inner_text("#tip")) > 0.3


def test_photos_learn_from_corrections(open_page, tmp_path) -> None:
    page = open_page()
    page.click("#modes [data-mode=session]")
    page.set_input_files("#files", [WATER, EXAMPLES / "wood.png"])
    page.fill("#label", "elephant, fish, sailboat")
    page.click("#run")
    page.wait_for_selector("body[data-state=done]")
    before = overlay(page)

    page.click("#tools button:has-text('Box')")
    page.mouse.move(*spot(page, 14, 132))
    page.mouse.down()
    page.mouse.move(*spot(page, 40, 160))
    page.mouse.move(*spot(page, 60, 184))
    page.mouse.up()
    page.fill("#new-name", "house")
    page.press("#new-name", "Enter")
    page.wait_for_selector("#edits-note:text('One correction.')")
    page.wait_for_selector("body[data-state=done]")
    assert overlay(page) != before
    page.mouse.move(*spot(page, 37, 165))
    assert page.inner_text("#tip") == "house 100 %"
    assert page.locator(".chip > span:text('house')").count() == 1

    page.click("#tools button:has-text('Click')")
    page.mouse.move(*spot(page, 167, 90))
    assert page.inner_text("#tip").startswith("nothing"), "words do not know it"
    page.mouse.click(*spot(page, 167, 90))
    assert re.search(r"this region is [1-9](\.\d)? % of the photo", page.inner_text("#picked-note")), (
        "not all of nothing"
    )
    page.mouse.click(*spot(page, 167, 90))

    page.click("#tools button:has-text('Paint')")
    page.mouse.move(*spot(page, 5, 5))
    page.mouse.down()
    page.mouse.move(*spot(page, 60, 5))
    page.mouse.up()
    page.click("#alternatives button:has-text('nothing')")
    page.wait_for_selector("#edits-note:text('2 corrections.')")
    page.wait_for_selector("body[data-state=done]")
    page.click("#confirm")
    page.wait_for_selector("#strip .current [aria-label$='wood.png']")
    page.wait_for_selector("body[data-state=done]")
    with page.expect_download() as saved:
        page.click("#save-session")
    saved.value.save_as(tmp_path / "session.json")
    said = [row for row in json.loads((tmp_path / "session.json").read_text())["annotations"] if row["corrected"]]
    assert len(said) >= 3
    page.wait_for_selector("body[data-state=done]")

    page.reload()
    page.wait_for_selector("body[data-state=empty]")
    page.click("#modes [data-mode=session]")
    page.set_input_files("#files", [WATER])
    page.fill("#label", "elephant, fish, sailboat")
    page.click("#run")
    page.wait_for_selector("body[data-state=done]")
    page.set_input_files("#session-file", tmp_path / "session.json")
    page.wait_for_selector("body[data-state=error]")
    assert "wood.png" in page.inner_text("#error")
    page.mouse.move(*spot(page, 37, 165))
    assert page.inner_text("#tip") == "house 100 %"


def test_a_whole_photo_gets_its_likeliest_word(open_page) -> None:
    page = open_page()
    ask(page, "pizza", "penguin", mode="classify")
    assert page.locator("#legend li").count() == 2
    assert page.inner_text("#answer-title") in ("pizza", "penguin")


@pytest.mark.parametrize("title", ["A drawing", "Things, named", "Correct, learn", "Damage"])
def test_examples_run(open_page, title) -> None:
    page = open_page()
    page.click(f"#examples button:has-text('{title}')")
    page.wait_for_selector("body[data-state=done]")
    assert page.is_visible("#answer")


def test_what_cannot_be_is_said_in_words(open_page) -> None:
    page = open_page()
    page.fill("#label", "cat")
    page.click("#run")
    assert said(page) == "Drop a photo first."
    page.set_input_files("#files", WATER)
    page.click(".chip button")
    page.click("#run")
    assert said(page) == "Say what to look for first: a word or several."
    page.fill("#label", "cat | dog, dog")
    page.click("#run")
    assert re.match(r"Label 'dog' is given twice", said(page))
    cut = png((64, 64), format="JPEG")[:400]
    page.set_input_files("#files", {"name": "cut.jpg", "mimeType": "image/jpeg", "buffer": cut})
    for _ in range(2):
        page.click(".chip button")
    page.fill("#label", "cat")
    page.click("#run")
    assert "cut.jpg" in said(page)
    page.set_input_files("#files", {"name": "big.png", "mimeType": "image/png", "buffer": b"x" * 1_200_000})
    assert said(page) == "big.png has 1.2 MB; this server takes at most 1 MB."


def test_what_is_no_densevl_answer_is_said_in_words(open_page) -> None:
    page = open_page()
    page.route("**/v1/segment", lambda route: route.fulfill(status=502, body="<html>Bad gateway"))
    page.set_input_files("#files", WATER)
    page.fill("#label", "cat")
    page.click("#run")
    assert said(page) == "The server answered 502."


def test_a_busy_server_is_asked_again(open_page) -> None:
    page, refusals = open_page(), []

    def first_busy(route) -> None:
        if refusals:
            return route.continue_()
        refusals.append(1)
        return route.fulfill(status=503, headers={"retry-after": "1"}, body="{}")

    page.route("**/v1/segment", first_busy)
    page.set_input_files("#files", WATER)
    page.fill("#label", "house")
    page.click("#run")
    page.wait_for_selector("#status:has-text('trying again in 1 s')")
    page.wait_for_selector("body[data-state=done]")


def test_words_and_file_names_are_never_markup(open_page) -> None:
    page = open_page()
    photo = {"name": f"{HOSTILE}.png", "mimeType": "image/png", "buffer": png((64, 64))}
    ask(page, HOSTILE, "<script>window.hacked=2</script>", photo=photo)
    page.click("#settings summary")
    page.mouse.click(*spot(page, 20, 20, 64))
    page.fill("#new-name", HOSTILE.replace("=1", "=3"))
    page.press("#new-name", "Enter")
    page.wait_for_selector("#edits:visible")
    page.wait_for_selector("body[data-state=done]")
    assert HOSTILE in page.locator("#legend .what").all_inner_texts()
    assert page.evaluate("window.hacked ?? null") is None
    assert page.locator("[src=x], script:not([src])").count() == 0


def test_photos_come_by_drop_and_by_paste(open_page) -> None:
    page = open_page()
    for kind, where in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.evaluate(
            """async ([kind, where]) => {
              const data = new DataTransfer(), blob = await (await fetch("/examples/cat.jpg")).blob();
              data.items.add(new File([blob], `${kind}.jpg`, { type: "image/jpeg" }));
              const kinds = { drop: DragEvent, paste: ClipboardEvent };
              window.dispatchEvent(new kinds[kind](kind, { [where]: data }));
            }""",
            [kind, where],
        )
        page.wait_for_selector(f"#strip [aria-label$='{kind}.jpg']")
    page.fill("#label", "cat, dog")
    page.click("#run-all")
    page.wait_for_selector("body[data-state=done]")
    for number in (1, 2):
        page.click(f"#strip [aria-label^='Photo {number}']")
        assert page.is_visible("#answer")
    page.click("#strip [aria-label='Remove drop.jpg']")
    assert page.locator("#strip img").count() == 1


def test_the_keyboard_is_enough(open_page) -> None:
    page = open_page()
    page.set_input_files("#files", WATER)
    page.focus("#label")
    for word in ("elephant", "house", "slip"):
        page.keyboard.type(word)
        page.keyboard.press("Enter")
    page.keyboard.press("Backspace")
    assert page.locator(".chip > span").all_inner_texts() == ["elephant", "house"]
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-state=done]")
    page.focus("#overlay")
    for key in ["ArrowDown"] * 3 + ["ArrowRight"] * 3:
        page.keyboard.press(key)
    assert re.fullmatch(r"elephant \d+ %", page.inner_text("#tip"))
    assert page.inner_text("#status") == page.inner_text("#tip")
    page.keyboard.press("Enter")
    assert page.inner_text("#picked-name") == "elephant"
    page.keyboard.press("Escape")
    assert page.is_hidden("#picked")
    page.focus("#legend button")
    for pressed in ("true", "false"):
        page.keyboard.press("Enter")
        assert page.get_attribute("#legend button:focus", "aria-pressed") == pressed
    page.focus("#modes [aria-selected=true]")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("body", "data-mode") == "regions"


def test_a_phone_shows_all_of_it(open_page) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    ask(page, *LABELS)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    tall = "[...document.querySelectorAll('button')].filter((b) => b.offsetParent && b.offsetHeight < 22).length"
    assert page.evaluate(tall) == 0
    page.touchscreen.tap(*spot(page, 40, 165))
    assert page.inner_text("#picked-name") == "house"


def test_a_phone_keeps_the_photo_and_what_was_picked_in_view(open_page) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    tabs = [tab.bounding_box() for tab in page.locator("#modes button").all()]
    assert all(tab["x"] >= 0 and tab["x"] + tab["width"] <= 390 for tab in tabs)
    ask(page, *LABELS)
    page.touchscreen.tap(*spot(page, 40, 165))
    sheet, photo = page.locator("#picked").bounding_box(), page.locator("#overlay").bounding_box()
    assert sheet["y"] + sheet["height"] <= 845
    assert photo["y"] >= -1
    assert page.locator("#new-name").bounding_box()["y"] < 844


def test_the_photo_stays_in_view_beside_a_long_answer(open_page) -> None:
    page = open_page(viewport={"width": 1120, "height": 600})
    ask(page, *LABELS)
    page.locator("#made").scroll_into_view_if_needed()
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    assert page.evaluate("scrollY") > 50
    assert page.locator("#overlay").bounding_box()["y"] > -50


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground(open_page, scheme) -> None:
    """WCAG's contrast of 4.5 for text, and 3 for large text and buttons."""
    page = open_page(color_scheme=scheme)
    ask(page, *LABELS)

    def light(text: str) -> float:
        rgb = np.array([int(n) / 255 for n in re.findall(r"\d+", text)[:3]])
        return float(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])

    style = "([at, what]) => getComputedStyle(document.querySelector(at))[what]"
    for words, ground in [
        ("#about", ".panel"),
        (".legend .what", ".panel"),
        (".legend .much", ".panel"),
        ("#run", "#run"),
        (".bar label", "body"),
        (".chip", ".chip"),
    ]:
        one, other = (
            light(page.evaluate(style, [at, what])) for at, what in ((words, "color"), (ground, "backgroundColor"))
        )
        assert (max(one, other) + 0.05) / (min(one, other) + 0.05) >= 4.5, words


def test_light_and_dark(open_page) -> None:
    def ground(page) -> list[int]:
        return [int(n) for n in re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))]

    assert min(ground(open_page())) > 200
    page = open_page(color_scheme="dark")
    assert max(ground(page)) < 50
    page.click("#theme")
    assert min(ground(page)) > 200
    page.reload()
    page.wait_for_selector("body[data-state=empty]")
    assert min(ground(page)) > 200


def test_every_control_has_a_name(open_page) -> None:
    """For people who hear the page."""
    page = open_page()
    ask(page, *LABELS)
    named = "one.innerText?.trim() || one.getAttribute('aria-label') || one.labels?.length || one.title"
    unnamed = f"""[...document.querySelectorAll('button, input:not([type=file]), select')]
      .filter((one) => one.offsetParent && !({named})).map((one) => one.outerHTML)"""
    assert page.evaluate(unnamed) == []


def test_the_page_is_small() -> None:
    own = sum(path.stat().st_size for path in Path(EXAMPLES).parent.iterdir() if path.is_file())
    assert own < 100_000


def test_a_session_that_ended_begins_again_with_what_was_corrected(browser, models) -> None:
    with running(models) as (own, _, service):
        page = browser.new_page()
        page.goto(own)
        page.wait_for_selector("body[data-state=empty]")
        ask(page, "elephant", "fish", photo=WATER, mode="session")
        page.mouse.click(*spot(page, 167, 90))
        page.fill("#new-name", "house")
        page.press("#new-name", "Enter")
        page.wait_for_selector("#edits-note:text('One correction.')")
        page.wait_for_selector("body[data-state=done]")
        before = overlay(page)
        for key in list(service.sessions._open):
            service.sessions.end(key)
        page.click("#run")
        page.wait_for_timeout(100)
        page.wait_for_selector("body[data-state=done]")
        assert page.inner_text("#edits-note") == "One correction."
        assert overlay(page) == before
        page.close()


@pytest.mark.parametrize(("mode", "button"), [("session", "#run"), ("segment", "#run-all")])
def test_a_photo_that_cannot_be_read_is_named_and_the_others_go_on(open_page, mode, button) -> None:
    page = open_page()
    page.click(f"#modes [data-mode={mode}]")
    cut = {"name": "cut.jpg", "mimeType": "image/jpeg", "buffer": png((64, 64), format="JPEG")[:400]}
    page.set_input_files("#files", [cut])
    page.wait_for_selector("#strip .thumb")
    page.set_input_files("#files", WATER)
    page.wait_for_selector("#strip .thumb >> nth=1")
    page.fill("#label", "elephant, fish")
    page.click(button)
    assert "cut.jpg" in said(page)
    assert page.is_visible("#legend :text('elephant')")


def test_a_double_click_stops_nothing_and_what_is_no_picture_is_told_at_once(open_page) -> None:
    page = open_page()
    page.set_input_files("#files", {"name": "list.txt", "mimeType": "text/plain", "buffer": b"cat"})
    assert said(page) == "list.txt is no picture; add a photo."
    page.set_input_files("#files", WATER)
    page.fill("#label", "elephant, fish")
    page.dblclick("#run")
    page.wait_for_selector("body[data-state=done]")
    assert page.is_visible("#legend :text('elephant')")


def test_many_words_scroll_in_their_field(open_page) -> None:
    page = open_page()
    page.fill("#label", ", ".join(f"word{number}" for number in range(300)) + ",")
    page.press("#label", "Enter")
    page.wait_for_selector(".chip >> nth=299")
    assert page.evaluate("document.getElementById('chips').getBoundingClientRect().height") < 300
