"""R1: no code from weights. Hostile and damaged models of every form are one line each, soon, in bounded memory."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from attacks.spending import MEASURED
from conftest import TINY, random_clip

CONFIG = {"model_cfg": TINY}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
THEIRS = {
    "model_type": "clip",
    "projection_dim": 24,
    "vision_config": {**VISION, "image_size": 32, "patch_size": 8, "hidden_act": "gelu"},
    "text_config": {
        **VISION,
        "vocab_size": 49408,
        "max_position_embeddings": 16,
        "eos_token_id": 49407,
        "hidden_act": "gelu",
    },
}
FLIPS, CUTS = 6, 3
MEMORY = 200  # MiB beyond what loading the sound models took; the files here are of 4 MB
SECONDS = 1  # of CPU, a file
CHILD = """
import json, sys, time
from densevl.backbones import load_backbone
from densevl.errors import DensevlError

def outcome(name, weights):
    try:
        load_backbone(name, weights, device="cpu")
    except DensevlError as error:
        return "refused", str(error)
    except BaseException as error:
        return "raised", f"{type(error).__name__}: {error}"
    return "loaded", ""

def timed(*case):
    start = time.process_time()
    return *outcome(*case), time.process_time() - start

cases = json.loads(sys.stdin.read())
sound = [outcome(*case) for case in cases["sound"]]
before = peak()
print(json.dumps([sound, [timed(*case) for case in cases["hostile"]], peak() - before]))
"""


def ours() -> dict[str, torch.Tensor]:
    return {key: value.contiguous() for key, value in random_clip().state_dict().items()}


def theirs() -> dict[str, torch.Tensor]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return dict(transformers.CLIPModel(transformers.CLIPConfig(**THEIRS)).state_dict())


def training(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}


def torch_bytes(content: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


FORMS: dict[str, tuple[str, Callable[[], bytes], dict[str, Any], str]] = {
    "open_clip": ("open_clip_model.safetensors", lambda: save(ours()), CONFIG, "open_clip_config.json"),
    "a training": ("model.pt", lambda: torch_bytes(training(ours())), CONFIG, "open_clip_config.json"),
    "transformers": ("model.safetensors", lambda: save(theirs()), THEIRS, "config.json"),
    "transformers, .bin": ("pytorch_model.bin", lambda: torch_bytes(theirs()), THEIRS, "config.json"),
}


class Ran:
    """Leaves a mark if it is ever called."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran-code",)


def _folder(place: Path, form: str, content: bytes | None) -> Path:
    name, _, config, config_name = FORMS[form]
    place.mkdir(parents=True)
    (place / config_name).write_text(json.dumps(config))
    if content is not None:
        (place / name).write_bytes(content)
    return place


def _files(form: str, whole: bytes) -> dict[str, bytes]:
    """Damaged files by what is wrong with them."""
    draw, found = random.Random(form), {}
    for number in range(CUTS):
        found[f"cut {number}"] = whole[: draw.randrange(1, len(whole))]
    for number in range(FLIPS):
        changed = bytearray(whole)
        for _ in range(4):  # in the names and sizes, which stand at one of the ends
            at = draw.choice([draw.randrange(4096), len(whole) - 1 - draw.randrange(4096)])
            changed[at] ^= 1 << draw.randrange(8)
        found[f"flipped {number}"] = bytes(changed)
    found["doubled"] = whole + whole
    found["huge header"] = (2**40).to_bytes(8, "little") + whole[8:]
    return found


def _states(form: str) -> dict[str, dict[str, Any]]:
    state = theirs() if "transformers" in form else ours()
    first = next(key for key, value in state.items() if value.ndim == 2)
    changes: dict[str, Callable[[torch.Tensor], Any]] = {
        "NaN": lambda x: x * float("nan"),
        "infinite": lambda x: x / 0,
        "integers": lambda x: x.to(torch.int64),
        "complex": lambda x: x.to(torch.complex64),
        "turned": lambda x: x.T.contiguous(),
        "flat": lambda x: x.flatten(),
        "empty": lambda x: x[:0],
        "wide": lambda x: x.expand(*[1] * 3, *x.shape).contiguous(),
    }
    found = {name: {**state, first: change(state[first])} for name, change in changes.items()}
    found["missing"] = {key: value for key, value in state.items() if key != first}
    found["one more"] = {**state, "\x1b[31mred\n": torch.ones(1)}
    found["no names"] = {str(number): value for number, value in enumerate(state.values())}
    return found


def _overlapping(whole: bytes) -> bytes:
    """A safetensors file of which one tensor lies over another."""
    size = int.from_bytes(whole[:8], "little")
    told = json.loads(whole[8 : 8 + size])
    alike: dict[Any, str] = {}
    for key, entry in told.items():
        other = alike.setdefault((entry["dtype"], str(entry["shape"])), key)
        if other != key:
            entry["data_offsets"] = told[other]["data_offsets"]
            break
    text = json.dumps(told).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + size :]


def _evaluated() -> bytes:
    """A checkpoint whose pickle names `eval` and hands it a program."""
    program = b"cbuiltins\neval\n(V__import__('os').system('touch ran-code')\ntR."
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", program)
        archive.writestr("x/version", b"3")
    return buffer.getvalue()


def _nested(content: bytes) -> bytes:
    """An archive in an archive, named as a pickle is."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", content)
    return buffer.getvalue()


def _bombs(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    nested: Any = state
    for _ in range(50):
        nested = {"model": nested}
    cycle: dict[str, Any] = {"model": {}}
    cycle["model"]["model"] = cycle
    squeezed = io.BytesIO()
    with zipfile.ZipFile(squeezed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(10**8))
    zeros = io.BytesIO()
    with (
        zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED) as archive,
        zipfile.ZipFile(io.BytesIO(torch_bytes(state))) as own,
    ):
        for name in own.namelist():
            archive.writestr(name, bytes(len(own.read(name))) if "/data/" in name else own.read(name))
    return {
        "code": torch_bytes({"state_dict": state, "args": Ran()}),
        "code alone": torch_bytes(Ran()),
        "eval": _evaluated(),
        "code of an old form": torch_bytes(Ran(), _use_new_zipfile_serialization=False),
        "code, plainly pickled": pickle.dumps(Ran()),
        "an archive in an archive": _nested(torch_bytes(Ran())),
        "header of 2^63 bytes": (2**63).to_bytes(8, "little") + save(state)[8:],
        "overlapping offsets": _overlapping(save(state)),
        "nested": torch_bytes(nested),
        "cycle": torch_bytes(cycle),
        "zip bomb": squeezed.getvalue(),
        "zip of zeros": zeros.getvalue(),
        "wide": torch_bytes(
            {key: value[:1].expand(10**9, *value.shape[1:]) for key, value in state.items() if value.ndim > 1}
        ),
    }


def _indices(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Contents of an index beside one shard, "a.safetensors"."""
    good = dict.fromkeys(state, "a.safetensors")
    first = next(iter(state))
    return {
        "above": {"weight_map": {**good, first: "../a.safetensors"}},
        "absolute": {"weight_map": {**good, first: "/etc/passwd.bin"}},
        "itself": {"weight_map": {**good, first: "model.safetensors.index.json"}},
        "absent": {"weight_map": {**good, first: "b.safetensors"}},
        "a name too many": {"weight_map": {**good, "none.such": "a.safetensors"}},
        "no map": {"metadata": {}},
        "a list": {"weight_map": list(state)},
        "numbers": {"weight_map": dict.fromkeys(state, 1)},
        "empty": {"weight_map": {}},
        "a NUL": {"weight_map": {**good, first: "a\x00.safetensors"}},
        "long": {"weight_map": {**good, first: "a" * 10**5 + ".safetensors"}},
        "a folder": {"weight_map": {**good, first: "folder.bin"}},
    }


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> tuple[dict[str, list[Any]], list[Any], float, Path]:
    """What a process of its own says of each case, and its memory."""
    base = tmp_path_factory.mktemp("hostile")
    cases: dict[str, tuple[str, str | None]] = {}
    sound: list[tuple[str, None]] = []
    state = ours()
    for form, (name, make, _, _) in FORMS.items():
        whole = make()
        sound.append((str(_folder(base / form / "sound", form, whole)), None))
        for what, content in _files(form, whole).items():
            cases[f"{form}: {what}"] = (str(_folder(base / form / what, form, content)), None)
        for what, own in _states(form).items():
            content = torch_bytes(own) if name.endswith((".pt", ".bin")) else save(own)
            cases[f"{form}: {what}"] = (str(_folder(base / form / what, form, content)), None)
        place = _folder(base / form / "a folder in its place", form, None)
        (place / name).mkdir()
        cases[f"{form}: a folder in its place"] = (str(place), None)
        place = _folder(base / form / "a link to itself", form, None)
        (place / name).symlink_to(name)
        cases[f"{form}: a link to itself"] = (str(place), None)
        place = _folder(base / form / "a link to nothing", form, None)
        (place / name).symlink_to("/nonexistent/model.safetensors")
        cases[f"{form}: a link to nothing"] = (str(place), None)
    for what, content in _bombs(state).items():
        cases[f"bomb: {what}"] = (str(_folder(base / "bomb" / what, "a training", content)), None)
    for what, index in _indices(state).items():
        place = _folder(base / "index" / what, "open_clip", None)
        (place / "a.safetensors").write_bytes(save(state))
        (place / "folder.bin").mkdir()
        (place / "model.safetensors.index.json").write_text(json.dumps(index))
        cases[f"index: {what}"] = (str(place), None)
    place = _folder(base / "index" / "deep", "open_clip", None)
    (place / "model.safetensors.index.json").write_text('{"weight_map":' * 10**5 + "1" + "}" * 10**5)
    cases["index: deep"] = (str(place), None)
    for arch in (
        "ViT-B-32",
        "RN50",
        "EVA02-B-16",
        "ViT-B-16-SigLIP",
        "convnext_base",
        "coca_ViT-B-32",
        "MobileCLIP-S1",
        "EVA-CLIP-18B",
    ):
        cases[f"architecture: {arch}"] = (arch, str(base / "open_clip" / "sound" / FORMS["open_clip"][0]))
    asked = json.dumps({"sound": sound, "hostile": list(cases.values())})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURED + CHILD],
        input=asked,
        capture_output=True,
        text=True,
        cwd=base,
        timeout=900,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loaded, found, memory = json.loads(done.stdout.splitlines()[-1])
    return dict(zip(cases, found, strict=True)), loaded, memory, base


def test_the_sound_ones_load(outcomes) -> None:
    assert [kind for kind, _ in outcomes[1]] == ["loaded"] * len(FORMS)


def test_what_is_damaged_is_one_line_and_no_other_error(outcomes) -> None:
    odd = {case: said for case, (kind, said, _) in outcomes[0].items() if kind == "raised"}
    assert not odd
    long = {
        case: said
        for case, (_, said, _) in outcomes[0].items()
        if "\n" in said or "\x1b" in said or len(said) > 1000  # five keys with their shapes, and a path
    }
    assert not long


def test_nothing_of_it_loads_but_numbers_with_a_bit_changed(outcomes) -> None:
    """Numbers with a changed bit are sound, a zip may have bytes before it, code beside tensors is left out."""
    loaded = {case for case, (kind, _, _) in outcomes[0].items() if kind == "loaded" and ": flipped" not in case}
    assert loaded <= {"bomb: code", "a training: doubled", "transformers, .bin: doubled"}


def test_no_code_runs(outcomes) -> None:
    assert not list(outcomes[3].rglob("ran-code"))


def test_it_takes_no_more_memory_than_models_of_its_size(outcomes) -> None:
    assert outcomes[2] < MEMORY


def test_each_is_refused_soon(outcomes) -> None:
    assert not {case: seconds for case, (_, _, seconds) in outcomes[0].items() if seconds > SECONDS}


def test_the_hostile_ones_do_run_code_where_they_are_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (torch_bytes(Ran()), _evaluated()):
        torch.load(io.BytesIO(content), weights_only=False)
        (tmp_path / "ran-code").unlink()


# What the sources hold ------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
WORTH_A_LOOK = re.compile(
    r"pickle|torch\.load|yaml|marshal|joblib|dill|shelve|jit\.load|hub\.load|eval|exec|compile|trust_"
)
RUN = {"eval", "exec", "compile", "__import__"}


def _odd(tree: ast.AST) -> Iterator[str]:
    """Calls that run what they read."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        root, _, last = name.rpartition(".")
        if root in UNPICKLERS and last in ("load", "loads", "open", "Unpickler"):
            yield name
        if name == "torch.load" and given.get("weights_only") != "True":
            yield f"{name} without weights_only=True"
        if last in ("load", "read_array") and given.get("allow_pickle", "False") != "False":
            yield f"{name} with allow_pickle"
        if name in ("torch.jit.load", "torch.hub.load", "yaml.unsafe_load", "yaml.full_load", "pd.read_pickle"):
            yield name
        loader = given.get("Loader") or "".join(map(ast.unparse, node.args[1:2]))
        if name in ("yaml.load", "yaml.load_all") and "SafeLoader" not in loader:
            yield f"{name} without a safe loader"
        if given.get("trust_remote_code", "False") != "False" or given.get("weights_only", "True") != "True":
            yield f"{name} with trust"
        if name in RUN and [ast.unparse(given) for given in node.args] != ["''"]:
            yield name


@pytest.mark.parametrize("room", ["densevl", "tools", "demo"])
def test_no_source_unpickles_or_runs_what_it_reads(room: str) -> None:
    found = {}
    for path in sorted((ROOT / room).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if WORTH_A_LOOK.search(text) and (odd := list(_odd(ast.parse(text)))):
            found[path.relative_to(ROOT).as_posix()] = odd
    assert found == {}


def test_the_search_of_the_sources_finds_what_it_is_for() -> None:
    for code in (
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "pickle.loads(x)",
        "np.load(x, allow_pickle=True)",
        "yaml.load(x)",
        "eval(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=trust)",
    ):
        assert list(_odd(ast.parse(code))), code
