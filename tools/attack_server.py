"""Send the hostile requests of the tests, each of up to 10 MB, to `densevl serve` with its own limits.

    python -m tools.attack_server --page docs/serve.md

Each is sent in turn by `--clients` clients at once. Prints one row per kind: how many were sent, how many got the right
answer, the longest time to answer, and how much memory grew. Meanwhile a separate process asks for /healthz. The first
round warms up and is not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from densevl.files import atomic_write
from tests.attacks.hostile_requests import FORMS, HTTP, PATHS, PICTURES, WORDS, Attack, exchange, form, request, told
from tools.arguments import COUNT, Parser
from tools.bench_serve import process, resident, spread
from tools.pages import replaced

KINDS = {"forms": FORMS, "words": WORDS, "pictures": PICTURES, "addresses": PATHS, "HTTP": HTTP}


def attacked(address: str, size: int, attack: Attack) -> tuple[str, float]:
    """Return what is wrong with the answer, and the seconds until it came."""
    data = attack.data(size)
    since = time.perf_counter()
    answer = exchange(address, data)
    return told(attack, answer), time.perf_counter() - since


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module text. The exit code is 1 if an answer is wrong."""
    parser = Parser(prog="python -m tools.attack_server", description=__doc__)
    parser.add_argument("--size", type=COUNT, default=10_000_000, help="bytes of a request, where it may have any")
    parser.add_argument("--clients", type=COUNT, default=4)
    parser.add_argument("--page", type=Path, help="a page to write the table into")
    given = parser.parse_args(arguments)
    lines = ["| requests | sent | answered as required | longest, s | memory, MB |", "|---|---|---|---|---|"]
    wrong: list[str] = []
    with process("--model", "mini", log=subprocess.DEVNULL) as (address, pid):
        exchange(address, request(form()))
        command = [sys.executable, "-m", "tools.bench_serve", "--watch", address]
        for round_ in range(2):
            with (
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as watcher,
                ThreadPoolExecutor(given.clients) as pool,
            ):
                watcher.stdout.readline()  # type: ignore[union-attr]
                for kind, attacks in KINDS.items():
                    before = resident(pid)
                    found = list(pool.map(partial(attacked, address, given.size), attacks.values()))
                    said = [f"{name}: {what}" for name, (what, _) in zip(attacks, found, strict=True) if what]
                    if round_:
                        wrong += said
                        took, grown = max(seconds for _, seconds in found), resident(pid) - before
                        lines.append(
                            f"| {kind} | {len(found)} | {len(found) - len(said)} | {took:.1f} | {grown:+.0f} |"
                        )
                answers, late = json.loads(watcher.communicate("")[0])
    table = "\n".join(lines)
    health = f"Meanwhile, {len(answers)} requests of `/healthz`: {spread(answers)}. The process that sent them was "
    health += f"itself woken late by {spread(late)}."
    print(table, health, *wrong, sep="\n")
    if given.page is not None:
        start, end = "<!-- attacks: python -m tools.attack_server -->", "<!-- /attacks -->"
        text = given.page.read_text(encoding="utf-8")
        part = f"{start}\n\n{table}\n\n{health}\n\n{end}"
        atomic_write(given.page, replaced(text, part, start, end).encode())
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
