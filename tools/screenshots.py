"""Screenshots of the page of `densevl serve`, for docs and for review: python -m tools.screenshots OUT

Needs the extras serve and browser, and a Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, product
from pathlib import Path
from typing import Any

ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
WIDTHS = {390: 844, 1120: 800, 1600: 1000}
SHOTS = ("empty", "segment", "picked", "regions", "anomaly", "classify", "correct", "error")
PHONES = ((390, "light", "segment"), (390, "dark", "regions"), (390, "light", "classify"))
SHEET = (((1120, "light", "picked"), (1120, "light", "correct")), ((1120, "dark", "anomaly"), *PHONES))
"""The screenshots of docs/serve.jpg, by row."""
PLACES = {"segment": (0.2, 0.82), "picked": (0.2, 0.82), "regions": (0.6, 0.62)}
"""Where the pointer rests, or clicks, as shares of the photo."""


def browser_path() -> str | None:
    """Return the path of a Chromium, if there is one."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in found if path), None)


@contextmanager
def chromium() -> Iterator[Any]:
    """Open a browser of Playwright with a new user folder."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def server(*models: str) -> Iterator[str]:
    """Run a server in a thread; yield its address."""
    import uvicorn

    from densevl.serving.app import create_app
    from densevl.serving.models import Models
    from densevl.serving.service import Service
    from densevl.serving.settings import Limits, Settings

    service = Service([Models(Settings(models), "cpu")], Limits())
    running = uvicorn.Server(uvicorn.Config(create_app(service), port=0, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    thread.join(20)


def pose(page: Any, shot: str) -> None:
    """Bring the freshly loaded page to the state of a screenshot."""
    if shot == "empty":
        return
    if shot == "error":
        page.set_input_files("#files", {"name": "holiday.jpg", "mimeType": "image/jpeg", "buffer": b"not a photo"})
        page.fill("#label", "beach, sea")
        page.click("#run")
        page.wait_for_selector("body[data-state=error]")
        return
    if shot == "classify":
        page.click("#modes [data-mode=classify]")
        page.set_input_files("#files", Path(__file__).parents[1] / "demo" / "scenes" / "snow.png")
        page.fill("#label", "car, pizza, elephant, house")
        page.click("#run")
    elif shot == "correct":
        page.click("#modes [data-mode=session]")
        scenes = Path(__file__).parents[1] / "demo" / "scenes"
        page.set_input_files("#files", [scenes / f"{name}.png" for name in ("water", "wood", "snow")])
        page.fill("#label", "elephant, fish, sailboat, penguin")
        page.click("#run")
        page.wait_for_selector("body[data-state=done]", timeout=120_000)
        page.fill("#prompt", "10, 130, 60, 190")
        page.press("#prompt", "Enter")
        page.fill("#new-name", "house")
        page.press("#new-name", "Enter")
        page.wait_for_selector("#edits:visible", timeout=120_000)
    else:
        titles = {"segment": "A drawing", "picked": "A drawing", "regions": "Things, named", "anomaly": "Damage"}
        page.click(f"#examples button:has-text('{titles[shot]}')")
    page.wait_for_selector("body[data-state=done]", timeout=120_000)
    if shot in PLACES:
        box = page.locator("#overlay").bounding_box()
        x, y = (box["x"] + PLACES[shot][0] * box["width"], box["y"] + PLACES[shot][1] * box["height"])
        page.mouse.click(x, y) if shot == "picked" else page.mouse.move(x, y)


def main() -> None:
    """Write OUT/SHOT-WIDTH-THEME.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", action="append", help="as densevl serve has it; mini alone if left out")
    parser.add_argument("--shots", default=",".join(SHOTS))
    parser.add_argument("--widths", default=",".join(map(str, WIDTHS)))
    parser.add_argument("--themes", default="light,dark")
    parser.add_argument("--sheet", type=Path, help="also write one picture of some of them, as docs/serve.jpg is")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    asked = product(map(int, given.widths.split(",")), given.themes.split(","), given.shots.split(","))
    wanted = dict.fromkeys([*asked, *(chain(*SHEET) if given.sheet else ())])
    with server(*(given.model or ["mini"])) as address, chromium() as browser:
        for width, theme, shot in wanted:
            view = {"width": width, "height": WIDTHS[width]}
            page = browser.new_page(viewport=view, color_scheme=theme, device_scale_factor=1)
            page.on("console", lambda message: print("console:", message.text))
            page.on("pageerror", lambda error: print("error:", error))
            page.goto(address)
            page.wait_for_selector("body:not([data-state=loading])")
            pose(page, shot)
            page.wait_for_timeout(250)
            page.screenshot(path=given.out / f"{shot}-{width}-{theme}.png", full_page=width < 900)
            page.close()
    if given.sheet:
        sheet(given.out, given.sheet)
        print(f"wrote {given.sheet}")


def sheet(shots: Path, out: Path) -> None:
    """Put the screenshots of SHEET into rows of equal width."""
    from PIL import Image, ImageOps

    across, gap, down = 1660, 20, 586
    page = Image.new("RGB", (across, len(SHEET) * (down + gap) - gap), "white")
    for number, row in enumerate(SHEET):
        left = 0
        for width, theme, shot in row:
            size = (820 if width > 900 else 260, down)  # two windows, or one and three phones
            picture = Image.open(shots / f"{shot}-{width}-{theme}.png").convert("RGB")
            fitted = ImageOps.fit(picture, size, Image.Resampling.LANCZOS, centering=(0.5, 0))
            page.paste(fitted, (left, number * (down + gap)))
            left += size[0] + gap
    out.parent.mkdir(parents=True, exist_ok=True)
    page.save(out, quality=82, optimize=True)


if __name__ == "__main__":
    main()
