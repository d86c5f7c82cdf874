"""Hostile and damaged models, whatever their form: one line each, no code, and memory of their own size."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

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
FLIPS, CUTS = 12, 6
MEMORY = 300  # MiB beyond what loading the sound models took; the files here are of 4 MB
CHILD = """
import json, resource, sys
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

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

cases = json.loads(sys.stdin.read())
sound = [outcome(*case) for case in cases["sound"]]
before = peak()
print(json.dumps([sound, [outcome(*case) for case in cases["hostile"]], peak() - before]))
"""


def ours() -> dict[str, torch.Tensor]:
    return {key: value.contiguous() for key, value in random_clip().state_dict().items()}


def theirs() -> dict[str, torch.Tensor]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    return dict(transformers.CLIPModel(transformers.CLIPConfig(**THEIRS)).state_dict())


def training(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}


def torch_bytes(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
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


def _bombs(state: dict[str, torch.Tensor]) -> dict[str, bytes]:
    nested: Any = state
    for _ in range(50):
        nested = {"model": nested}
    cycle: dict[str, Any] = {"model": {}}
    cycle["model"]["model"] = cycle
    squeezed = io.BytesIO()
    with zipfile.ZipFile(squeezed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(10**8))
    return {
        "code": torch_bytes({"state_dict": state, "args": Ran()}),
        "code alone": torch_bytes(Ran()),
        "nested": torch_bytes(nested),
        "cycle": torch_bytes(cycle),
        "zip bomb": squeezed.getvalue(),
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
def outcomes(tmp_path_factory) -> tuple[dict[str, list[str]], list[Any], float, Path]:
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
        [sys.executable, "-W", "ignore", "-c", CHILD],
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
    odd = {case: said for case, (kind, said) in outcomes[0].items() if kind == "raised"}
    assert not odd
    long = {case: said for case, (_, said) in outcomes[0].items() if "\n" in said or "\x1b" in said or len(said) > 700}
    assert not long


def test_nothing_of_it_loads_but_numbers_with_a_bit_changed(outcomes) -> None:
    """Numbers with a changed bit are sound, a zip may have bytes before it, code beside tensors is left out."""
    loaded = {case for case, (kind, _) in outcomes[0].items() if kind == "loaded" and ": flipped" not in case}
    assert loaded <= {"bomb: code", "a training: doubled", "transformers, .bin: doubled"}


def test_no_code_runs(outcomes) -> None:
    assert not list(outcomes[3].rglob("ran-code"))


def test_it_takes_no_more_memory_than_models_of_its_size(outcomes) -> None:
    assert outcomes[2] < MEMORY
