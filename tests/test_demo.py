"""The scripts of demo/ run as they stand."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "demo"
SCRIPTS = {
    "segment_image.py": "cat",
    "regions_image.py": "pizza",
    "anomaly_image.py": "",
    "search_folder.py": "",
    "detector_integration.py": "",
}
"""What each prints; textile_inspection.py needs photographs of a package and exported_model.py a file: both have tests
elsewhere."""


def test_no_script_is_forgotten() -> None:
    assert {path.name for path in DEMO.glob("*.py")} == {*SCRIPTS, "textile_inspection.py", "exported_model.py"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs(tmp_path, monkeypatch, capsys, script) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(DEMO / script)])
    runpy.run_path(str(DEMO / script), run_name="__main__")
    assert SCRIPTS[script] in capsys.readouterr().out


def test_an_exported_model_is_asked_for_what_is_missing_on_one_line(tmp_path) -> None:
    pytest.importorskip("onnxruntime")
    for words, code, said in (([], 2, "usage: exported_model.py"), (["no.onnx", "no.npz", "no.png"], 1, "error: ")):
        done = subprocess.run(
            [sys.executable, str(DEMO / "exported_model.py"), *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr.startswith(said)) == (code, True), done.stderr
