"""Does anything grow? Thousands of requests to one server, and thousands of images in one process.

    python -m tools.soak --requests 6000 --images 2000 --page docs/serve.md --json docs/soak.json --chart docs/soak.svg

Requests use all routes and formats, including sessions and mistakes, two at a time; at the same time images go through
`Segmenter`, `RegionClassifier`, `AnomalyDetector` and `FewShot` in turn. Sizes and words vary. Each process is measured
through /proc, and its temporary files lie in a separate folder. The first fifth fills caches; a line fitted to the
memory of the rest gives the growth over 2,000 requests or images. Exit code 1 if that is 1 % or more, or if files,
threads or temporary files are left over.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from densevl.evaluation.report.charts import lines
from densevl.files import atomic_write
from tools.arguments import Parser, number
from tools.bench_serve import SIZES, WORDS, photo, private, process
from tools.pages import replaced

WARM = 0.2  # share of the run until caches are full
EACH = 2000  # requests or images
MOST = 1.0  # per cent that memory may grow over so many
HELD = ("MB", "files", "threads", "temporary")
Row = tuple[int, float, int, int, int]
"""The amount of work so far, and the process's holdings; see HELD."""


def held(done: int, pid: int, temporary: str) -> Row:
    """Format a row."""
    files, threads = (len(os.listdir(f"/proc/{pid}/{kind}")) for kind in ("fd", "task"))
    return done, round(private(pid), 1), files, threads, sum(len(names) for _, _, names in os.walk(temporary))


# The server ----------------------------------------------------------------------------------------------------------


def kinds(client: httpx.Client) -> list[tuple[str, dict[str, Any]]]:
    """The requests in turn: routes, and fields beside image and labels."""
    formats = client.get("/v1/models").json()["formats"]
    asked: list[tuple[str, dict[str, Any]]] = [
        ("segment", {"background": "none"}),
        ("regions", {"boxes": "[[8, 8, 40, 40]]", "points": "[[20, 20]]"}),
        ("regions", {"objects": "true"}),
        ("anomaly", {"item": "tile"}),
        ("classify", {}),
        ("session", {}),
        ("segment", {"labels": ""}),  # refused
        ("segment", {"image": b"no photo"}),  # also refused
    ]
    return asked + [(route, {"format": one}) for route in ("segment", "regions", "anomaly") for one in formats[route]]


def ask(client: httpx.Client, turn: int, kind: tuple[str, dict[str, Any]]) -> int:
    """Send one request, with the photo and words of this turn; return the number of requests that it took."""
    route, fields = kind
    image = photo(turn, SIZES[turn % len(SIZES)])
    own: dict[str, Any] = {"labels": words(turn), **fields}
    if route == "anomaly":
        own.pop("labels")
    if route != "session":
        answer = client.post(f"/v1/{route}", files={"image": own.pop("image", image)}, data=own)
        assert answer.status_code == (422 if {"labels", "image"} & set(fields) else 200), answer.text
        return 1
    data = {"session": client.post("/v1/session", data=own).json()["session"]}
    steps: list[tuple[str, dict[str, Any]]] = [
        ("photo", {}), ("labels", {"photo": 0}), ("correct", {"photo": 0, "name": "mug", "box": "[8, 8, 40, 40]"}),
        ("confirm", {"photo": 0}), ("undo", {}), ("coco", {}), ("end", {}),
    ]  # fmt: skip
    for step, more in steps:
        files = {"image": image} if step == "photo" else None
        client.post(f"/v1/session/{step}", files=files, data=data | more).raise_for_status()
    return 1 + len(steps)


def words(turn: int) -> str:
    """Return some labels."""
    return ", ".join(islice(cycle(WORDS), turn % 7, turn % 7 + 2 + turn % 3))


def requests(count: int, temporary: str) -> Iterator[Row]:
    """Yield rows of a server under that many requests."""
    with process("--model", "mini", TMPDIR=temporary) as (address, pid):
        sent = turn = 0
        anew = httpx.Limits(max_keepalive_connections=0)  # an idle one may be closed just as it is used again
        with httpx.Client(base_url=address, timeout=300, limits=anew) as client, ThreadPoolExecutor(2) as pool:
            asked = kinds(client)
            while sent < count:
                sent += sum(pool.map(partial(ask, client, turn), asked))
                turn += 1
                yield held(sent, pid, temporary)


# A process -----------------------------------------------------------------------------------------------------------


def images(count: int, temporary: str) -> Iterator[Row]:
    """Yield rows of this process over that many images."""
    from densevl import AnomalyDetector, FewShot, RegionClassifier, Segmenter, load_backbone
    from densevl.images import read_image
    from densevl.vocabulary import LabelSet

    backbone = load_backbone("mini")
    segment, few = Segmenter(backbone), FewShot(backbone)
    name, detect = RegionClassifier(backbone, proposals="grid"), AnomalyDetector(backbone, item="tile")
    for turn in range(count):
        rgb, labels = read_image(photo(turn, SIZES[turn % len(SIZES)])), words(turn // 4)
        if turn % 4 == 0:
            result: Any = segment(rgb, labels)
        elif turn % 4 == 1:
            result = name(rgb, labels)
        elif turn % 4 == 2:
            result = detect(rgb)
        else:
            result = few(rgb, LabelSet.parse(labels))
        if turn % 50 < 4:
            result.save(Path(temporary) / f"{turn}.png" if turn % 4 in (0, 2) else Path(temporary) / f"{turn}.json")
            for path in Path(temporary).glob(f"{turn}*"):
                path.unlink()
        if turn % 20 == 19 or turn == count - 1:
            yield held(turn + 1, os.getpid(), temporary)


@contextmanager
def elsewhere(count: int, temporary: str) -> Iterator[Iterator[Row]]:
    """Run `images` in a separate process."""
    command = [sys.executable, "-m", "tools.soak", "--child", str(count), temporary]
    environment = {**os.environ, "TMPDIR": temporary}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as own:
        try:
            yield (tuple(json.loads(line)) for line in own.stdout)  # type: ignore[union-attr]
        finally:
            own.terminate()  # if it was not awaited


# Results ----------------------------------------------------------------------------------------------------


def judged(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the figures of a run: growth over `EACH` in per cent, and the surplus over the state once warm."""
    count = rows[-1][0]
    later = [row for row in rows if row[0] >= WARM * count]
    if len(later) < 5:
        raise SystemExit(f"too short a run to tell: {len(rows)} rows")
    numbers, megabytes = np.array([row[:2] for row in later]).T
    slope = float(np.polyfit(numbers, megabytes, 1)[0])
    early = later[: max(1, len(later) // 4)]
    left = {kind: later[-1][at] - max(row[at] for row in early) for at, kind in enumerate(HELD, start=1) if at > 1}
    return {
        "count": count,
        "warm": later[0][1],
        "end": later[-1][1],
        "most": max(row[1] for row in rows),
        "growth": round(100 * slope * EACH / float(megabytes.mean()), 2) + 0.0,
        "left": left,
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return one row per run."""
    rows = [
        "| | MB once warm | MB at the end | grows over 2,000 by | files left | threads left | temporary files left |"
    ]
    rows.append("|---|---|---|---|---|---|---|")
    for name, one in found.items():
        left = " | ".join(str(max(0, value)) for value in one["left"].values())
        rows.append(
            f"| {one['count']:,} {name} | {one['warm']:,.0f} | {one['end']:,.0f} | {one['growth']} % | {left} |"
        )
    return "\n".join(rows)


def chart(rows: dict[str, list[Row]]) -> str:
    """Draw memory by amount of work, as an SVG file."""
    most = {name: max(row[1] for row in own) for name, own in rows.items()}
    series = {
        f"{name}, of {most[name]:,.0f} MB": [(row[0], row[1] / most[name]) for row in own[:: max(1, len(own) // 50)]]
        for name, own in rows.items()
    }
    start = '<svg xmlns="http://www.w3.org/2000/svg" style="background:#fff;font:13px sans-serif" '
    return lines(series, "requests or images", "memory, of the most it had,").replace("<svg ", start, 1)


def run(name: str, count: int, end: float) -> list[Row]:
    """Yield the rows of one of the two, until `end` by the clock, with its own temporary folder."""
    with tempfile.TemporaryDirectory() as temporary:
        if name == "requests":
            return list(_told(name, requests(count, temporary), end))
        with elsewhere(count, temporary) as rows:
            return list(_told(name, rows, end))


def _told(name: str, rows: Iterator[Row], end: float) -> Iterator[Row]:
    for row in rows:
        held_now = ", ".join(f"{value:,.0f} {kind}" for value, kind in zip(row[1:], HELD, strict=True))
        print(f"{name} {row[0]}: {held_now}", flush=True)
        yield row
        if time.monotonic() > end:
            break


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module text."""
    parser = Parser(prog="python -m tools.soak", description=__doc__)
    parser.add_argument("--requests", type=number(int, 0), default=2000, help="0 leaves the server out")
    parser.add_argument("--images", type=number(int, 0), default=2000, help="0 leaves the process out")
    parser.add_argument("--minutes", type=number(float, above=0), default=600, help="after which both stop")
    parser.add_argument("--page", type=Path, help="a page to write the table into")
    parser.add_argument("--json", type=Path, help="a file of all figures")
    parser.add_argument("--chart", type=Path, help="an SVG of the memory")
    parser.add_argument("--child", nargs=2, metavar=("IMAGES", "FOLDER"), help="for this tool itself")
    given = parser.parse_args(arguments)
    if given.child:
        for row in images(int(given.child[0]), given.child[1]):
            print(json.dumps(row), flush=True)
        return 0
    counts = {name: count for name, count in (("requests", given.requests), ("images", given.images)) if count}
    with ThreadPoolExecutor(2) as pool:
        end = time.monotonic() + 60 * given.minutes
        rows = dict(zip(counts, pool.map(partial(run, end=end), counts, counts.values()), strict=True))
    found = {name: judged(own) for name, own in rows.items()}
    print(table(found))
    if given.json:
        atomic_write(given.json, json.dumps({name: {**found[name], "rows": rows[name]} for name in rows}).encode())
    if given.chart:
        atomic_write(given.chart, chart(rows).encode())
    if given.page:
        start, end = "<!-- soak: python -m tools.soak -->", "<!-- /soak -->"
        text = given.page.read_text(encoding="utf-8")
        atomic_write(given.page, replaced(text, f"{start}\n\n{table(found)}\n\n{end}", start, end).encode())
    wrong = [one for one in found.values() if one["growth"] >= MOST or any(value > 0 for value in one["left"].values())]
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
