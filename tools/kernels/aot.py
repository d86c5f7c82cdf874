"""Compile every kernel for sm_80 and sm_90 without a GPU and report the result.

    python tools/kernels/aot.py                 # the table, about ten minutes
    python tools/kernels/aot.py --only d64      # kernels whose name holds this
    python tools/kernels/aot.py --write         # also record it in docs/kernels.json and docs/kernels.md

Registers and stack are those ptxas assigned, shared memory is Triton's, instructions are counted in the machine code of
the main loop. Nothing runs, so nothing here says how fast a kernel is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from tools.kernels.launches import Launch, launches  # noqa: E402
from tools.kernels.page import read_record, update  # noqa: E402

SHARED_LIMIT = {80: 99 * 1024, 90: 113 * 1024}  # per block; on sm_90 two blocks fit a multiprocessor
EXP_LIMIT = 1.25  # exponentials per entry; more means that threads repeat each other's work
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def fingerprint() -> str:
    """Hash the kernels' sources, to tell whether a record belongs to them."""
    folder = ROOT / "densevl" / "kernels" / "triton"
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compile_launch(launch: Launch) -> dict[str, Any]:
    """Compile one launch and read the machine code: a row of the table."""
    types, constants, attributes = launch.signature()
    source = ASTSource(launch.kernel, types, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", launch.arch, 32), options=launch.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("-res-usage", file.name)
        code = _tool("-sass", file.name)
    loop = main_loop(code)
    return {
        "name": launch.name,
        "arch": launch.arch,
        "warps": launch.options["num_warps"],
        "stages": launch.options["num_stages"],
        "registers": _number(r"REG:(\d+)", usage),
        "stack": _number(r"STACK:(\d+)", usage),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "shared": compiled.metadata.shared,
        "tensor": sum(_is(line, "HGMMA", "HMMA") for line in loop),
        "warpgroup": sum(_is(line, "HGMMA") for line in loop),
        "loop": len(loop),
        "wide_loads": sum(_is(line, "LDGSTS.E.BYPASS.128", "LDG.E.128", "LDGSTS.E.128") for line in loop),
        "exp_per_entry": _per_entry(loop, launch),
    }


def _per_entry(loop: list[str], launch: Launch) -> float | None:
    if not launch.entries:
        return None
    return round(sum(_is(line, "MUFU.EX2") for line in loop) * 32 * launch.options["num_warps"] / launch.entries, 3)


def _tool(option: str, path: str) -> str:
    return subprocess.run([str(TOOLS / "cuobjdump"), option, path], check=True, capture_output=True, text=True).stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"cuobjdump prints no {pattern}")
    return int(found[1])


def _is(line: str, *names: str) -> bool:
    return any(re.search(rf"\b{re.escape(name)}", line) for name in names)


def main_loop(code: str) -> list[str]:
    """Return the instructions of the innermost loop with most matrix products: from a branch's target back to it."""
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", code)
    bodies = []
    for at, text in lines:
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < int(at, 16):
            first, last = int(jump[1], 16), int(at, 16)
            bodies.append([t for a, t in lines if first <= int(a, 16) <= last])
    if not bodies:
        return []
    return max(bodies, key=lambda body: (sum(_is(t, "HGMMA", "HMMA") for t in body), -len(body)))


def faults(row: dict[str, Any]) -> list[str]:
    """Return the limits that a row exceeds, in words."""
    found = []
    if row["stack"] or row["spills"]:
        found.append(f"spills: {row['stack']} bytes of stack, {row['spills']} local loads and stores")
    if row["shared"] > SHARED_LIMIT[row["arch"]]:
        found.append(f"shared memory {row['shared']} is over {SHARED_LIMIT[row['arch']]}")
    if not row["tensor"]:
        found.append("no tensor core instruction in the main loop")
    if row["arch"] == 90 and row["warpgroup"] != row["tensor"]:
        found.append("products that are not of a warp group on sm_90")
    if row["exp_per_entry"] is not None and row["exp_per_entry"] > EXP_LIMIT:
        found.append(f"{row['exp_per_entry']} exponentials per entry")
    narrow = row["name"].startswith("decode") or " d16 " in row["name"]  # there are only 8 bytes per thread to load
    if not row["wide_loads"] and not narrow:
        found.append("no load of 16 bytes in the main loop")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="compile kernels whose name holds this")
    parser.add_argument("--json", action="store_true", help="print rows as JSON, one a line")
    parser.add_argument("--write", action="store_true", help="record the table in docs/")
    options = parser.parse_args()
    rows = []
    for launch in launches(lambda name: options.only in name):
        row = compile_launch(launch)
        rows.append(row)
        if options.json:
            print(json.dumps(row), flush=True)
        else:
            print(
                f"{row['name']:40} sm_{row['arch']} {row['registers']:4} registers", *faults(row), sep="  ", flush=True
            )
    if options.write:
        recorded, sources = read_record().get("aot", {}), fingerprint()
        if options.only and recorded.get("sources") != sources:
            parser.error("the kernels changed since the record was made: --write without --only")
        update("aot", rows, ("name", "arch"), keep=bool(options.only), triton=triton.__version__, sources=sources)


if __name__ == "__main__":
    main()
