"""tools/gpu_check.sh has to be right on a machine that nobody has here: its dry run, and what it makes of failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tools.kernels import gpu_bench, gpu_check
from tools.kernels.gpu_check import ROOT, STAGES, Options, Stage, check, main, rooms

OK = [sys.executable, "-c", """print('ROW {"case": "a", "ok": true}')"""]
DISAGREES = [sys.executable, "-c", """print('ROW {"name": "a", "ok": false, "why": "off by one"}')"""]
BREAKS = [sys.executable, "-c", "raise SystemExit('no such device')"]
HANGS = [sys.executable, "-c", """import time; print('ROW {"case": "a", "ok": true}', flush=True); time.sleep(60)"""]
VERDICTS = "print('t.py::one PASSED [ 50%]\\nt.py::two[a b] FAILED [100%]\\nFAILED t.py::two[a b] - error 2 - 1')"


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_a_dry_run_writes_the_whole_report(tmp_path) -> None:
    pytest.importorskip("triton", reason="this torch comes without triton")
    asked = ["--dry-run", "--smallest", "--stages", "launches,bench", "--out", str(tmp_path)]
    done = subprocess.run(
        [ROOT / "tools" / "gpu_check.sh", *asked], env={**os.environ, "PYTHON": sys.executable}, capture_output=True
    )
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert done.returncode == 0, report
    assert report["dry_run"]
    assert {name: stage["status"] for name, stage in report["stages"].items()} == {"launches": "ok", "bench": "ok"}
    (launches,), (bench,) = (stage["parts"].values() for stage in report["stages"].values())
    assert {"name", "registers", "spills", "shared", "recorded", "ok"} <= set(launches["rows"][0])
    peaks, *cases = bench["rows"]
    assert {"bytes_per_s", "float16", "bfloat16", "float32"} <= set(peaks)
    assert [case["case"] for case in cases] == ["decode", "attention lse"]
    for case in cases:
        assert {"kernel", "torch", "eager", "compiled"} <= set(case["ways"])
        assert all(way["why"] is None and way["seconds"] > 0 for way in case["ways"].values())
        assert case["ways"]["kernel"]["error"] <= case["bar"]
        assert {"flops", "bytes", "flops_per_s", "bytes_per_s", "bound", "share"} == set(case["roofline"])
    assert "sdpa" in cases[1]["ways"]
    page = (tmp_path / "gpu_check.md").read_text()
    assert "meaningless" in page
    assert all(row["name"] in page for row in launches["rows"])


@pytest.mark.parametrize(
    ("commands", "needed", "result", "said"),
    [
        ({"a": OK}, True, "ok", ""),
        ({"a": OK, "b": DISAGREES}, True, "failed", "first, a: off by one"),
        ({"a": BREAKS}, True, "failed", "first, a: no such device"),
        ({"a": HANGS}, True, "cut", ""),
        ({"a": [sys.executable, "-c", VERDICTS]}, True, "failed", "first, t.py::two[a b]: error 2 - 1"),
        ({"a": BREAKS}, False, "ok", "first, a: no such device"),
        ({}, True, "ok", ""),
    ],
    ids=["agrees", "disagrees", "breaks", "hangs", "tests", "not-needed", "cannot-be-had"],
)
def test_how_a_stage_ends_is_recorded_and_the_next_one_runs(
    commands, needed, result, said, tmp_path, monkeypatch
) -> None:
    stages = {"first": Stage("fails or not", lambda _: commands, 2, needed), "next": Stage("n", lambda _: {"n": OK}, 9)}
    monkeypatch.setattr(gpu_check, "STAGES", stages)
    report = check(Options(tmp_path), list(stages), minutes=1)
    assert report["result"] == result
    assert report["stages"]["next"]["status"] == "ok"
    assert json.loads((tmp_path / "gpu_check.json").read_text()) == report
    assert said in (tmp_path / "gpu_check.md").read_text()
    assert main(["--out", str(tmp_path)]) == {"ok": 0, "failed": 1, "cut": 3}[result]


def test_every_stage_names_files_that_are_there(tmp_path) -> None:
    assert "tests/kernels" in rooms()
    for dry in (False, True):
        for stage in STAGES.values():
            for command in stage.commands(Options(tmp_path, dry)).values():
                files = [part.split("::")[0] for part in command if part.startswith("tests/")]
                assert all((ROOT / file).exists() for file in files)


def test_an_unknown_stage_is_named(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--stages", "bemch"])
    assert "no stage bemch; there are machine, values" in capsys.readouterr().err


@pytest.mark.parametrize(("capability", "spills", "ok"), [((9, 0), 0, True), ((9, 0), 4, False), ((12, 0), 4, True)])
def test_spills_count_on_the_devices_whose_machine_code_is_recorded(capability, spills, ok, monkeypatch) -> None:
    pytest.importorskip("triton", reason="this torch comes without triton")
    from tools.kernels import launches

    kept = SimpleNamespace(n_regs=72, n_spills=spills, metadata=SimpleNamespace(shared=6144))
    monkeypatch.setattr(gpu_check, "_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(launches, "cases", lambda on: [("nearest", "D=768 fp16", lambda: on), ("mix", "x", lambda: on)])
    monkeypatch.setattr(launches, "compiled", lambda kernel, run: kept)
    rows: list[dict] = []
    gpu_check.launches(Options(ROOT), "nearest", rows.append)
    (row,) = rows
    assert (row["registers"], row["spills"], row["shared"], row["ok"]) == (72, spills, 6144, ok)
    assert row["recorded"]["spills"] == 0
    assert ok or "spills where none are recorded" in row["why"]


def test_a_way_that_fails_is_told_and_only_the_kernel_counts(monkeypatch) -> None:
    def broken() -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    whole = torch.ones(4)
    most = {"float16": 1.0, "bytes_per_s": 1.0}
    fine = {"ours": lambda: whole, "exact": lambda: whole, "eager": broken, "sdpa": None, "flops": 2.0, "moved": 1.0}
    case = gpu_bench.Case("any", torch.float16, "4", **fine, bar=1e-3, compiles=False)
    for given, ok in (
        (case, True),
        (replace(case, ours=broken), False),
        (replace(case, ours=lambda: 2 * whole), False),
    ):
        monkeypatch.setattr(gpu_bench, "use", lambda mode: nullcontext())
        row = gpu_bench.measure(given, torch.device("cpu"), most)
        assert row["ok"] is ok
        assert row["ways"]["eager"]["why"] == "OutOfMemoryError: CUDA out of memory."
        assert ("roofline" in row) is (row["ways"]["kernel"]["why"] is None)
