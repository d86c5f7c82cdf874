# ruff: noqa: E501 - prose for a page
"""Write docs/kernels.md from docs/kernels.json; `aot.py --write` and `bench.py --write` call it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
RECORD = DOCS / "kernels.json"

HEAD = """# Kernels

<!-- Written by tools/kernels/page.py from kernels.json; do not edit. -->

densevl has five operators of its own in `densevl.kernels`, one file each. You rarely call them yourself: recipes do. Each file
holds the operator's signature and checks, the torch code that defines it and runs on a CPU, and the cases that its Triton
kernel does not take. The kernels are in `kernels/triton`.

To choose what runs, set `DENSEVL_KERNELS`:

- `auto`: kernels on CUDA devices of compute capability 8.0 or more, torch elsewhere
- `torch`: torch everywhere
- `triton`: the kernel, or an error that says why it cannot run

`kernels.use("torch")` does the same for a block of code. `kernels.explain(kernels.grid_attention, q, k, v, grid)` says what
would run, and why.

Under `torch.compile` the choice is made when a graph is captured. Torch's operators are captured one by one; a kernel is
one node (`torch.ops.densevl`). `torch.export` captures only torch's operators, and sizes may be dynamic (number of images,
height, width). An exported graph has no loop over rows, so it does hold the arrays that the table below says are never held.

| operator | never held in memory | not taken by the kernel |
|---|---|---|
| `dense_decode` | queries x height x width | more than 128 tokens under an 8 x 8 tile of pixels; a scale that is not positive |
| `grid_attention` | tokens x tokens, bias included | a further dense bias; head widths other than 16, 32, 64, 80, 128; relative positions at 128 |
| `affinity_apply` | tokens x tokens | regions |
| `affinity_mix` | heads x tokens x tokens (one summed map is held) | head widths as above |
| `nearest` | rows x memory | |

Kernels take half precision only, except `dense_decode`, which takes float32. No kernel has a backward pass: if gradients
are required, torch runs.

## What has been tested

**No kernel has run on a GPU.** Their values are checked in Triton's interpreter against torch in float64, and every address
is checked to lie inside an argument. Broken copies of each kernel (a missing mask, a wrong scale or stride) are shown to fail
the same check. The kernels are compiled for sm_80 and sm_90, and the machine code is inspected. Their speed, races, and
behaviour on a device under `compute-sanitizer` have not been measured.

    TRITON_INTERPRET=1 python -m pytest tests/kernels/fused      # values and broken copies; on a CUDA machine without the variable

## On a CUDA machine

Run this script to test and time the kernels on a GPU:

    tools/gpu_check.sh                                           # about ten minutes; its head says how it makes an environment
    tools/gpu_check.sh --dry-run --out build/gpu                 # the same on a CPU, interpreted at tiny sizes: times mean nothing

The script needs nothing of densevl installed. Each stage runs in its own process; if one fails, that is recorded and the
others still run. It writes `gpu_check.json` and a page, `gpu_check.md`. Exit code 1 means that something disagrees or broke,
and 3 that nothing did but time ran out.

| stage | what it finds out |
|---|---|
| `machine` | the device and the libraries |
| `values` | kernels against torch in float64, float16 and bfloat16; gradients (computed by torch) |
| `launches` | every launch of the table below, compiled for this device and run: registers, spills and shared memory, compared with the record |
| `bench` | each kernel against the papers' formula, `torch.compile` of it, torch's own attention and the torch operator: time on the device, peak memory, and the share of the roofline of a measured copy and matrix product |
| `models` | labels of `mini` by every recipe and in half precision, against the CPU |
| `rooms` | the rooms of `make test-isa` on the machine's CPU |
| `sanitizer` | one launch of each kernel under `compute-sanitizer`, if CUDA's toolkit is installed; does not decide the exit code |
| `rooms-cuda` | the same rooms with CUDA as the default device; does not decide the exit code |
"""

AOT = """
## Compiled ahead of time

    python tools/kernels/aot.py --write

The kernels are compiled with Triton {triton}, without a GPU. Every launch is recorded from the launching function and
compiled with its own tile, alignment and types. It must meet these bars:

- no stack and no spills
- shared memory within 99 KB on sm_80 and 113 KB on sm_90 (two blocks per multiprocessor)
- tensor core instructions in the main loop, and on sm_90 only those of warp groups
- 16-byte loads
- at most 1.25 exponentials per entry

The table is for float16; bfloat16 is in [kernels.json](kernels.json). "Loop" counts the instructions of the main loop.
"Unaligned" inputs start at odd addresses in the middle of other tensors. A launch copies such tensors first, so no kernel
runs without wide loads.

| launch | registers 80 / 90 | spills | shared KB 80 / 90 | loop 80 / 90 | tensor 80 / 90 |
|---|---|---|---|---|---|
"""

CPU = """
## On the CPU

    python tools/kernels/bench.py --write

The table compares each operator with the usual way: the formula of the papers' code, or the package's own function. Times are
CPU time of one thread, with both sides alternating in one run; medians of {repeats} runs on {processor}, torch {torch}. Other work
was running on the machine (load {load} on {cores} cores), which moves the ratios by some tenths.

| case | usual ms | ours ms | ratio | largest difference |
|---|---|---|---|---|
"""

MEMORY = """
## Memory at 16,384 tokens

    python tools/kernels/memory.py --write

Each case has 12 heads of width 64 and 768 channels, and runs in its own process on one thread in float32, torch {torch}.
"Extra" is the peak during the call above what was resident before it, results included; the limit is {bar} MiB. "Stitched" is
a 2048 x 2048 image in windows of 256 through a tower of one block, so the memory is that of the stitched last block.

| case | what | extra MiB | CPU s |
|---|---|---|---|
"""


def read_record() -> dict[str, Any]:
    """Return the recorded results by section."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def update(section: str, rows: list[dict[str, Any]], key: tuple[str, ...], keep: bool, **facts: Any) -> None:
    """Record rows of a section and write the page.

    Args:
        key: what identifies a row. keep: keep recorded rows that are not among these. facts: of the whole section.
    """
    record = read_record()
    new = {tuple(row[name] for name in key): row for row in rows}
    old = {tuple(row[name] for name in key): row for row in record.get(section, {}).get("rows", [])} if keep else {}
    record[section] = {**facts, "rows": list((old | new).values())}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    write_page()


def _span(values: list[int]) -> str:
    return f"{min(values)} to {max(values)}" if min(values) < max(values) else str(values[0])


def _pair(rows: list[dict[str, Any]], key: str, by: int = 1) -> str:
    return " / ".join(str(row[key] // by) for row in rows)


def write_page() -> None:
    """Write the page from the record."""
    record = read_record()
    text = HEAD
    if "cpu" in record:
        cpu = record["cpu"]
        loads = [load for row in cpu["rows"] for load in row["load"]]
        text += CPU.format(
            repeats=_span([row["repeats"] for row in cpu["rows"]]),
            processor=cpu["processor"],
            torch=cpu["torch"],
            cores=cpu["cores"],
            load=_span([round(load) for load in loads]),
        )
        for row in cpu["rows"]:
            text += (
                f"| {row['what'].rstrip('.')} | {row['usual_ms']:.0f} | {row['ours_ms']:.0f} | {row['ratio']} "
                f"| {row['difference']:.1g} |\n"
            )
    if "memory" in record:
        memory = record["memory"]
        text += MEMORY.format(torch=memory["torch"], bar=memory["rows"][0]["bar_mb"])
        for row in memory["rows"]:
            text += f"| {row['case']} | {row['what']} | {row['extra_mb']} | {row['cpu_seconds']} |\n"
    if "aot" in record:
        text += AOT.format(triton=record["aot"]["triton"])
        names = [row["name"] for row in record["aot"]["rows"] if "bf16" not in row["name"]]
        for name in dict.fromkeys(names):
            rows = sorted((r for r in record["aot"]["rows"] if r["name"] == name), key=lambda r: r["arch"])
            text += (
                f"| {name.removesuffix(' fp16')} | {_pair(rows, 'registers')} | {sum(r['spills'] for r in rows)} "
                f"| {_pair(rows, 'shared', 1024)} | {_pair(rows, 'loop')} | {_pair(rows, 'tensor')} |\n"
            )
    (DOCS / "kernels.md").write_text(text, encoding="utf-8")
