"""`precision="auto"`: what a machine is asked, what is made of the answer, where it is kept and where it is told."""

from __future__ import annotations

import json
import re

import pytest
import test_towers
import torch
from PIL import Image
from typer.testing import CliRunner

from conftest import random_clip, wrap
from densevl import Segmenter, diagnosis, load_backbone
from densevl.backbones.lowered import probe
from densevl.backbones.lowered.probe import Choice, choose
from densevl.backbones.managing import convert, describe
from densevl.backbones.precision import LINEARS, Int8Linear, LoweredTower
from densevl.cli import app
from densevl.errors import ModelError, OptionError

CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Decides what is fastest on this machine, and counts how often it is asked."""
    monkeypatch.setenv("DENSEVL_CACHE", str(tmp_path))
    asked = []

    def answer(**seconds: float) -> list[None]:
        probe._on_cpu.cache_clear()
        times = {"float32": 1.0, **seconds}
        monkeypatch.setattr(probe, "probe", lambda: asked.append(None) or Choice(choose(times), times, {}))
        return asked

    yield answer
    probe._on_cpu.cache_clear()


@pytest.mark.parametrize(
    ("seconds", "taken"),
    [
        ({"int8": 0.41, "bfloat16": 1.83, "float16": 0.98}, "int8"),
        ({"int8": 0.21, "bfloat16": 0.23}, "int8"),
        ({"int8": 0.27, "bfloat16": 0.23}, "int8"),
        ({"int8": 0.46, "bfloat16": 0.23}, "bfloat16"),
        ({"int8": 0.90, "bfloat16": 0.70}, "bfloat16"),
        ({"int8": 0.85, "bfloat16": 1.2}, "float32"),
        ({"int8": 0.80}, "float32"),
        ({"bfloat16": 0.5}, "bfloat16"),
        ({"int8": 0.5, "float16": 0.3}, "float16"),
        ({}, "float32"),
    ],
    ids=[
        "vnni",
        "amx",
        "amx-too",
        "bfloat16-by-far",
        "int8-is-not-worth-it",
        "not-worth-it",
        "at-the-bar",
        "no-int8",
        "float16",
        "nothing-else-is-right",
    ],
)
def test_what_is_made_of_the_times(seconds, taken) -> None:
    assert choose({"float32": 1.0, **seconds}) == taken


def test_a_probe_times_what_is_right_here() -> None:
    found = probe.probe()
    assert set(found.seconds) | set(found.refused) == {*LINEARS, "float32"} - {
        "float32-packed"
    }  # which auto does not take: its gain is small
    assert found.precision in found.seconds
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert "float32" in found.told


def test_a_precision_that_multiplies_wrongly_is_out(monkeypatch) -> None:
    class Saturating(Int8Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).clamp(-20, 20)  # of the largest bytes 64 are right

    monkeypatch.setitem(LINEARS, "int8", Saturating)
    found = probe.probe()
    assert "multiplies wrongly" in found.refused["int8"]
    assert "int8" not in found.seconds
    assert "int8 multiplies wrongly here" in found.told


def test_a_precision_that_torch_lacks_is_out(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert "no 8-bit linear layers" in probe.probe().refused["int8"]


@pytest.mark.parametrize(
    ("capability", "taken"), [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16"), ((6, 1), "float32")]
)
def test_a_gpu_is_known_by_its_capability(capability, taken, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found = probe.fastest(torch.device("cuda"))
    assert (found.precision, found.seconds) == (taken, {})
    assert f"{capability[0]}.{capability[1]}" in found.told


def test_other_devices_stay_in_float32() -> None:
    assert probe.fastest(torch.device("mps")).precision == "float32"


def test_a_machine_is_asked_once_and_anew_where_it_differs(machine, monkeypatch) -> None:
    asked = machine(int8=0.4)
    assert [probe.fastest(CPU).precision for _ in range(2)] == ["int8", "int8"]
    probe._on_cpu.cache_clear()  # another process
    assert probe.fastest(CPU).seconds == {"float32": 1.0, "int8": 0.4}
    assert len(asked) == 1
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE")
    probe.fastest(CPU)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    probe.fastest(CPU)
    monkeypatch.setattr(probe.devices, "processor", lambda: ("another", ()))
    probe.fastest(CPU)
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    probe.fastest(CPU)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    probe.fastest(CPU)
    assert len(asked) == 6


DIGITS = "9" * 400
DAMAGES = [
    "",
    "{",
    "[]",
    "\0",
    "[" * 100_000,
    '{"seconds": {"float32": 1}}',
    '{"machine": [], "seconds": {"float32": 1}, "refused": {}}',
    *(
        f'{{"machine": MACHINE, "seconds": {seconds}, "refused": {{}}}}'
        for seconds in (
            *('{"float32": 1, "int9": 0.1}', '{"int8": 0.1}', "[]", "7"),
            *(f'{{"float32": 1, "int8": {bad}}}' for bad in ("-1", "0", "NaN", "Infinity", DIGITS, "[]", '"a"')),
        )
    ),
    '{"machine": MACHINE, "seconds": {"float32": 1}, "refused": []}',
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage[:60])
def test_a_damaged_answer_is_ignored_and_made_again(damage, machine, tmp_path) -> None:
    asked = machine(bfloat16=0.3)
    probe.fastest(CPU)
    (path,) = tmp_path.glob("precision-*.json")
    path.write_text(damage.replace("MACHINE", json.dumps(json.loads(path.read_bytes())["machine"])))
    probe._on_cpu.cache_clear()
    assert probe.fastest(CPU).precision == "bfloat16"
    assert len(asked) == 2
    assert json.loads(path.read_bytes())["seconds"]["bfloat16"] == 0.3


def test_what_is_taken_follows_from_the_times_that_were_kept(machine, tmp_path) -> None:
    machine(bfloat16=0.3, float16=5.0)
    probe.fastest(CPU)
    (path,) = tmp_path.glob("precision-*.json")
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "precision": "float16"}))
    probe._on_cpu.cache_clear()
    assert probe.fastest(CPU).precision == "bfloat16"


def test_the_answer_can_be_renewed(machine) -> None:
    machine(int8=0.4)
    probe.fastest(CPU)
    asked = machine(bfloat16=0.3)
    assert probe.fastest(CPU).precision == "int8"
    assert probe.fastest(CPU, anew=True).precision == "bfloat16"
    machine(int8=0.4)
    assert probe.fastest(CPU).precision == "bfloat16"
    assert len(asked) == 2


def test_no_cache_folder_is_no_trouble(machine, monkeypatch, tmp_path) -> None:
    machine(int8=0.4)
    (tmp_path / "file").touch()
    monkeypatch.setenv("DENSEVL_CACHE", str(tmp_path / "file"))
    auto = wrap(random_clip()).at_precision("auto")
    assert auto.precision == "int8"
    (said,) = auto.doubts(["dog"])
    assert "cannot be kept" in said
    assert "--precision int8" in said


def test_a_model_takes_what_is_fastest_and_says_so(machine) -> None:
    machine(int8=0.4)
    exact = wrap(random_clip())
    auto = exact.at_precision("auto")
    assert auto.precision == "int8"
    assert auto.auto == "the fastest on this machine"
    assert auto.at_precision("auto") is auto
    assert (exact.precision, exact.auto) == ("float32", "")
    pixels = torch.randn(1, 3, 32, 32)
    same = exact.at_precision("int8")
    assert torch.equal(auto.encode_dense(pixels).features, same.encode_dense(pixels).features)
    back = auto.at_precision("float32")
    assert (back.precision, back.auto) == ("float32", "")
    assert describe(auto)["precision"] == ["int8", "auto, the fastest on this machine"]
    assert describe(auto)["precisions"].startswith("a linear layer takes float32")
    assert "precisions" not in describe(same)


@pytest.mark.parametrize("kind", ["ResNet", "relative positions"])
def test_a_model_without_another_precision_stays_in_float32_and_says_so(kind, machine) -> None:
    machine(int8=0.4)
    auto = test_towers._build(kind).at_precision("auto")
    assert auto.precision == "float32"
    assert auto.auto == "this model has no other"


def test_a_model_is_loaded_at_what_is_fastest(machine, tmp_path) -> None:
    machine(bfloat16=0.4)
    torch.save(random_clip().state_dict(), tmp_path / "clip.pt")
    loaded = load_backbone(str(tmp_path / "clip.pt"), precision="auto", activation="gelu")
    assert loaded.precision == "bfloat16"
    assert isinstance(loaded.tower, LoweredTower)
    assert loaded.tower.replaces
    assert load_backbone("mini", precision="auto").precision == "bfloat16"
    assert load_backbone("mini").precision == "float32"


def test_results_name_what_was_taken_and_no_warning_is_made_of_it(machine) -> None:
    machine(int8=0.4)
    result = Segmenter("mini", precision="auto")(torch.zeros(3, 40, 40), ["dog"])
    assert result.meta["precision"] == "int8"
    assert not any("precision" in warning for warning in result.warnings)


@pytest.mark.parametrize(
    ("asked", "seconds", "said"),
    [
        ("bfloat16", {"int8": 0.4, "bfloat16": 1.83}, "bfloat16 takes 1.8 times as long as float32.*int8 is faster"),
        ("float16", {"float16": 5.0}, "float16 takes 5.0 times as long as float32.*float32 is fastest"),
        ("int8", {"int8": 1.5}, "int8 takes 1.5 times"),
        ("bfloat16", {"bfloat16": 1.05}, None),
        ("int8", {"int8": 0.4}, None),
        ("float32", {"int8": 0.4}, None),
    ],
)
def test_a_precision_that_slows_a_model_down_is_warned_of(asked, seconds, said, machine) -> None:
    machine(**seconds)
    warnings = wrap(random_clip()).at_precision(asked).doubts(["dog"])
    if said is None:
        assert not warnings
    else:
        assert len(warnings) == 1
        assert re.search(said, warnings[0])


def test_a_precision_is_not_what_a_model_was_read_as(machine, tmp_path) -> None:
    """It must not go into the files of a converted model."""
    machine()
    torch.save(random_clip().state_dict(), tmp_path / "clip.pt")
    loaded = load_backbone(str(tmp_path / "clip.pt"), precision="auto", activation="gelu")
    convert(loaded, tmp_path / "out")
    again = load_backbone(str(tmp_path / "out"))
    assert again.reading.keys() >= loaded.reading.keys()
    assert "precision" not in again.reading


def _code(*arguments: object) -> int:
    return CliRunner().invoke(app, [str(one) for one in arguments]).exit_code


def test_the_command_says_what_was_taken_and_why(machine) -> None:
    machine(int8=0.4)
    said = CliRunner().invoke(app, ["models", "check", "mini", "--precision", "auto"]).stdout
    assert re.search(r"precision +int8 +auto, the fastest on this machine", " ".join(said.split()))


@pytest.mark.parametrize(
    ("first", "then", "packed", "codes"),
    [
        ("auto", "int8", "", (0, 0)),
        ("float32", "auto", "", (0, 0)),
        ("float32", "auto", "/r.tar", (0, 0)),
        ("auto", "float32", "", (0, 4)),
    ],
)
def test_what_was_taken_counts_and_not_how_it_was_asked_for(first, then, packed, codes, machine, tmp_path) -> None:
    machine(int8=0.4)
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    call = ("segment", tmp_path / "a.png", "--labels", "dog", "--model", "mini", "--out", f"{tmp_path}/out{packed}")
    assert tuple(_code(*call, "--precision", one, "--quiet") for one in (first, then)) == codes


def test_what_is_neither_is_refused_with_all_that_there_is() -> None:
    with pytest.raises((ModelError, OptionError), match="float32, int8, bfloat16, float16, float32-packed, auto"):
        load_backbone("mini", precision="int4")


def test_doctor_says_what_would_be_taken_and_by_what_it_is_known(machine, monkeypatch) -> None:
    machine(int8=0.4, bfloat16=1.83)
    monkeypatch.setattr(diagnosis.devices, "default", lambda: "cpu")
    monkeypatch.setattr(probe.devices, "processor", lambda: ("Some CPU", ("avx2", "avx512_vnni")))
    told = {finding.what: finding.found for finding in diagnosis._precisions()}
    assert told["processor"] == "Some CPU: avx2, avx512_vnni"
    assert told["precision"].startswith(
        "--precision auto takes int8: a linear layer takes float32 1000.00 ms, int8 400"
    )
    assert "(1.83)" in told["precision"]
