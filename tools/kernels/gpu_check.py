"""Everything about densevl that needs a CUDA machine, in one run; `tools/gpu_check.sh` makes the environment for it.

    tools/gpu_check.sh                                             # on the machine, about ten minutes
    python -m tools.kernels.gpu_check --dry-run --out build/gpu    # on a CPU: Triton's interpreter, tiny sizes

Stages run in separate processes, so a kernel that breaks a device's context does not end the others. Each has a time
limit; failures and timeouts are recorded, and the rest continues. Writes `gpu_check.json`, `gpu_check.md` and each
process's output. Exit code 0: all agrees; 1: something disagrees or broke; 3: neither, but something ran out of time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
HIDDEN = ["env", "CUDA_VISIBLE_DEVICES="]
KERNELS = ("decode", "attention", "affinity", "mix", "nearest")
FUSED = "tests/kernels/fused"
VERDICT = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
SUMMARY = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", re.MULTILINE)
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Attributes: out: folder of all output. dry: run on the CPU. smallest: run the least that covers everything."""

    out: Path
    dry: bool = False
    smallest: bool = False


@dataclass(frozen=True)
class Stage:
    """Attributes: its purpose; commands, by label; limit in seconds; needed, whether its failure counts."""

    what: str
    commands: Callable[[Options], dict[str, list[str]]]
    limit: int
    needed: bool = True


def _own(*names: str, parts: tuple[str, ...] = ("",)) -> Callable[[Options], dict[str, list[str]]]:
    """Return commands that run functions of this file, one for each part."""

    def commands(options: Options) -> dict[str, list[str]]:
        flags = [flag for flag, on in {"--dry-run": options.dry, "--smallest": options.smallest}.items() if on]
        each = ("",) if options.smallest else parts
        own = [sys.executable, "-m", "tools.kernels.gpu_check", "--out", str(options.out), *flags]
        return {f"{name} {part}".strip(): [*own, "--here", name, "--part", part] for name in names for part in each}

    return commands


def _pytest(*args: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-vv", "--tb=short", "-p", "no:cacheprovider", *args]


def _values(options: Options) -> dict[str, list[str]]:
    """The comparisons of tests/kernels/fused, which need only torch, triton, pytest and hypothesis."""
    values = [f"--confcutdir={FUSED}", f"{FUSED}/test_fused_values.py", "-k"]
    if options.smallest:
        return {"nearest": _pytest(*values, "test_nearest_smoke")}
    smoke = " and smoke" if options.dry else ""
    each = {name: _pytest(*values, name + smoke) for name in KERNELS}
    rest = _pytest(*values, f"not ({' or '.join(KERNELS)}){smoke}")
    return each | {"rest": rest, "nodes": _pytest(f"--confcutdir={FUSED}", f"{FUSED}/test_fused_nodes.py")}


def rooms() -> list[str]:
    """The test folders whose numbers depend on the machine, as in the Makefile for `make test-isa`."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.search(r"^NUMERIC = \$\(addprefix tests/,(.*)\)$", text, re.MULTILINE)
    if found is None:
        raise SystemExit("the Makefile names no NUMERIC rooms")
    return [f"tests/{name}" for name in found[1].split()]


def _rooms(options: Options) -> dict[str, list[str]]:
    if options.dry:
        return {"rooms": _pytest("tests/kernels/test_resample.py" if options.smallest else "tests/refine")}
    return {"rooms": [*HIDDEN, *_spread(rooms())]}


def _rooms_on_cuda(options: Options) -> dict[str, list[str]]:
    """The same with the GPU as densevl's default device; the tests were written for the CPU, so this only informs."""
    return {} if options.dry else {"rooms on cuda": _spread(rooms())}


def _spread(tests: list[str]) -> list[str]:
    many = ["-n", "auto", "--maxprocesses", "12", "--dist", "worksteal"] if importlib.util.find_spec("xdist") else []
    return _pytest(*many, *tests)


def _sanitizer(options: Options) -> dict[str, list[str]]:
    """One launch of each kernel under compute-sanitizer, if CUDA's toolkit is there: addresses, then races."""
    tool = shutil.which("compute-sanitizer")
    if options.dry or tool is None:
        return {}
    launch = _pytest(f"--confcutdir={FUSED}", f"{FUSED}/test_fused_values.py", "-k", "operators_reach")
    uncached = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1"]  # so that memory ends where its tensor ends
    return {
        kind: [*uncached, tool, "--tool", kind, "--error-exitcode", "9", *launch] for kind in ("memcheck", "racecheck")
    }


STAGES = {
    "machine": Stage("the device and the libraries", _own("machine"), 60),
    "values": Stage("kernels against torch in float64, forward and backward", _values, 180),
    "launches": Stage("every launch compiled for this device", _own("launches", parts=KERNELS), 180),
    "bench": Stage("time, memory and roofline", _own("bench"), 240),
    "models": Stage("labels of every recipe, this device against the CPU", _own("models"), 120),
    "rooms": Stage("the suite's numeric rooms on this machine's CPU", _rooms, 240),
    "sanitizer": Stage("one launch of each kernel under compute-sanitizer", _sanitizer, 90, needed=False),
    "rooms-cuda": Stage("the suite's numeric rooms, CUDA the default device", _rooms_on_cuda, 240, needed=False),
}


# These run in separate processes: functions from options and a part to rows, each row as soon as it is known.


def _device(options: Options) -> Any:
    import torch

    if not options.dry and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device; --dry-run checks this script on a CPU")
    return torch.device("cpu" if options.dry else "cuda")


def machine(options: Options, part: str, found: Callable[[Row], None]) -> None:
    import torch
    import triton

    device = _device(options)
    row: Row = {"torch": torch.__version__, "triton": triton.__version__, "python": sys.version.split()[0]}
    row |= {"cuda": torch.version.cuda, "cores": os.cpu_count(), "device": "cpu", "ok": True}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        capability = [about.major, about.minor]
        row |= {"device": about.name, "capability": capability, "gib": round(about.total_memory / 2**30, 1)}
        row["processors"] = about.multi_processor_count
        if capability < [8, 0]:
            row |= {"ok": False, "why": "kernels are for compute capability 8.0 or more"}
    found(row)


def launches(options: Options, part: str, found: Callable[[Row], None]) -> None:
    """Registers, spills and shared memory of Triton's compiled kernels on this device, beside the record."""
    from densevl.kernels.triton.configs import architecture
    from tools.kernels.launches import ARCHITECTURES, cases, compiled
    from tools.kernels.page import read_record

    device = _device(options)
    arch = architecture(device)
    recorded = {row["name"]: row for row in read_record()["aot"]["rows"] if row["arch"] == arch}
    exact = device.type == "cuda" and _sm(device) in ARCHITECTURES
    for kernel, variant, make in cases(device.type):
        name = f"{kernel} {variant}"
        # In the interpreter, only what takes a second.
        if kernel != (part or kernel) or (options.dry and not re.search(r"plain d16 .*fp16|nearest.*fp16$", name)):
            continue
        row: Row = {"name": name, "arch": arch}
        try:
            kept = compiled(kernel, make())
            row |= {"registers": getattr(kept, "n_regs", None), "spills": getattr(kept, "n_spills", None)}
            row["shared"] = None if kept is None else kept.metadata.shared
            row["recorded"] = {key: recorded[name][key] for key in ("registers", "spills", "shared")}
            row["ok"] = not (exact and row["spills"] and not row["recorded"]["spills"])
            if not row["ok"]:
                row["why"] = f"{row['spills']} spills where none are recorded"
        except Exception as failure:  # noqa: BLE001 - recorded, and the next goes on
            row |= {"ok": False, "why": _one_line(failure)}
        found(row)


def _sm(device: Any) -> int:
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def bench(options: Options, part: str, found: Callable[[Row], None]) -> None:
    import torch

    from tools.kernels import gpu_bench

    device = _device(options)
    torch.manual_seed(0)
    with torch.inference_mode():
        most = gpu_bench.peaks(device)
        found({"case": "peaks", **most, "ok": True})
        for case in gpu_bench.cases(device, options.dry):
            found(gpu_bench.measure(case, device, most))
            if options.smallest and case.name == "attention lse":
                return


def models(options: Options, part: str, found: Callable[[Row], None]) -> None:
    """The packaged model with every recipe that needs no other model, and in half precision."""
    from densevl import Segmenter, recipes
    from densevl.errors import DensevlError

    device = _device(options).type
    image, labels = ROOT / "demo" / "scenes" / "snow.png", ["snow", "sky", "dog", "penguin", "house", "water"]
    names = recipes.names()[: 1 if options.smallest else 3 if options.dry else None]
    tasks = [(name, "float32", 0.99) for name in names]
    tasks += [(names[0], precision, 0.95) for precision in ("bfloat16", *(() if options.dry else ("float16",)))]
    for recipe, precision, bar in tasks:
        row: Row = {"recipe": recipe, "precision": precision, "bar": bar}
        try:
            want, got = (
                Segmenter("mini", recipe, device=where, precision=how)(image, labels).labels
                for where, how in (("cpu", "float32"), (device, precision))
            )
            row["same"] = float((want == got).mean())
            row["ok"] = row["same"] >= bar
        except DensevlError as refused:
            row |= {"ok": True, "why": _one_line(refused)}
        except Exception as failure:  # noqa: BLE001 - recorded, and the next goes on
            row |= {"ok": False, "why": _one_line(failure)}
        found(row)


HERE = {function.__name__: function for function in (machine, launches, bench, models)}


def _one_line(failure: BaseException) -> str:
    text = str(failure).strip()
    return f"{type(failure).__name__}: {text.splitlines()[0] if text else ''}"


# Functions of the parent process.


def run(name: str, stage: Stage, options: Options, seconds: float) -> Row:
    """Run all commands of a stage at once; return how it ended, and the rows of each."""
    commands, started = stage.commands(options), time.monotonic()
    logs = options.out / "output"
    logs.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    if options.dry:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    processes = {}
    for label, command in commands.items():
        with open(logs / f"{label}.txt", "w", encoding="utf-8") as log:
            processes[label] = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
    parts = {}
    for label, process in processes.items():
        try:
            code: int | None = process.wait(max(0.0, started + seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        text = (logs / f"{label}.txt").read_text(encoding="utf-8", errors="replace")
        parts[label] = _read(text, code)
    states = [part["status"] for part in parts.values()]
    status = next((each for each in ("failed", "cut", "ok") if each in states), "skipped")
    spent = round(time.monotonic() - started, 1)
    return {"what": stage.what, "needed": stage.needed, "status": status, "seconds": spent, "parts": parts}


def _read(text: str, code: int | None) -> Row:
    """Parse the output of a process: JSON rows of this file's functions, or pytest's verdicts."""
    rows = [json.loads(line[4:]) for line in text.splitlines() if line.startswith("ROW ")]
    tests = (line for line in text.splitlines() if "::" in line and " - " not in line)
    counts = Counter(VERDICT.findall("\n".join(tests)))
    broken = [{"test": test, "why": why} for test, why in SUMMARY.findall(text)]
    bad = any(not row["ok"] for row in rows) or counts["FAILED"] or counts["ERROR"]
    # pytest returns 5 if there was nothing to run.
    status = "failed" if bad or code not in (0, 5, None) else "cut" if code is None else "ok"
    part: Row = {"status": status, "code": code, "rows": rows, "tests": dict(counts), "broken": broken}
    if status == "failed" and not bad:
        part["why"] = next((line for line in reversed(text.splitlines()) if line.strip()), "no output")
    return part


def check(options: Options, stages: list[str], minutes: float) -> Row:
    """Run stages in turn and write the report after each, so that results survive if the rest is cut off."""
    from tools.kernels import gpu_page

    options.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * minutes
    report: Row = {"dry_run": options.dry, "stages": {}}
    for name in stages:
        left = ends - time.monotonic()
        found = run(name, STAGES[name], options, min(STAGES[name].limit, left))
        report["stages"][name] = found
        needed = [each["status"] for each in report["stages"].values() if each["needed"]]
        report["result"] = next((each for each in ("failed", "cut") if each in needed), "ok")
        (options.out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (options.out / "gpu_check.md").write_text(gpu_page.page(report), encoding="utf-8")
        print(f"{name:10} {found['status']:8} {found['seconds']:6.1f} s  {found['what']}", flush=True)
    return report


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="folder that is written to")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU; times mean nothing")
    parser.add_argument("--smallest", action="store_true", help="the least of each stage, for a dry run in tests")
    parser.add_argument("--stages", default=",".join(STAGES), help="those to run, with commas between")
    parser.add_argument("--minutes", type=float, default=12.0, help="for all of it")
    parser.add_argument("--here", choices=list(HERE), help=argparse.SUPPRESS)
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args(given)
    options = Options(asked.out.absolute(), asked.dry_run, asked.smallest)
    if asked.here:
        HERE[asked.here](options, asked.part, lambda row: print("ROW " + json.dumps(row), flush=True))
        return 0
    names = asked.stages.split(",")
    if unknown := set(names) - set(STAGES):
        parser.error(f"no stage {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    report = check(options, names, asked.minutes)
    print(f"{report['result']}: {options.out / 'gpu_check.md'}")
    return {"ok": 0, "failed": 1, "cut": 3}[report["result"]]


if __name__ == "__main__":
    sys.exit(main())
