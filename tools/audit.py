"""Ask pip-audit for known vulnerabilities of the pinned versions, and report how many it could check.

    make audit      # or: python -m tools.audit PIP_AUDIT requirements/tested.txt

By itself, pip-audit says "No known vulnerabilities found" even if its service knows none of the packages, as behind a
mirror. The exit code is 1 if a pinned version is vulnerable. Without a network, a line says so and the exit code is 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SECONDS = 300


def report(told: Mapping[str, Any]) -> tuple[list[str], int]:
    """Return a message about pip-audit's JSON, and the exit code."""
    rows = told["dependencies"]
    asked = [row for row in rows if "skip_reason" not in row]
    lines = [
        f"{row['name']} {row['version']}: {fault['id']}, mended in {', '.join(fault['fix_versions']) or 'no version'}"
        for row in asked
        for fault in row["vulns"]
    ]
    if not asked:
        return [f"audit: none of {len(rows)} pinned packages could be looked up here"], 0
    skipped = f"; {len(rows) - len(asked)} could not be looked up" if len(asked) < len(rows) else ""
    return [*lines, f"audit: {len(lines)} known faults in {len(asked)} pinned packages{skipped}"], int(bool(lines))


def audit(program: str, pins: str) -> tuple[list[str], int]:
    """Run pip-audit on a file of pins; return a message and the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "audit.json")
        options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--timeout", "10"]
        command = [program, *options, "--format", "json", "--output", str(out), "--requirement", pins]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
            return report(json.loads(out.read_text(encoding="utf-8")))
        except subprocess.TimeoutExpired:
            reason = f"no answer in {SECONDS} s"
        except FileNotFoundError as error:
            reason = f"there is no {program}" if error.filename == program else done.stderr.strip()[-200:]
        except (ValueError, KeyError):
            reason = done.stderr.strip()[-200:]
    return [f"audit: not done, {' '.join(reason.split()) or 'pip-audit said nothing'}"], 0


def main(arguments: Sequence[str]) -> int:
    """See the module text."""
    lines, code = audit(*arguments)
    sys.stdout.write("\n".join(lines) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
