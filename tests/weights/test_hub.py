"""The hub's real client against a hub on this machine: downloads, cuts, wrong sums, logins, revisions, offline."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.utils._http
import pytest
import torch
from safetensors.torch import save
from typer.testing import CliRunner

from conftest import PHOTOS, TINY, random_clip
from densevl import load_backbone
from densevl.backbones import managing
from densevl.backbones.at_hand import OFFER, offer
from densevl.cli import app
from densevl.errors import DensevlError
from densevl.weights import large
from loopback_hub import COMMIT, GATED, OLD, Loopback

REPO, WEIGHTS = "someone/tiny", "open_clip_model.safetensors"
Ask = Callable[..., str]


@pytest.fixture
def hub() -> Iterator[Loopback]:
    made = Loopback()
    weights = save({key: value.contiguous() for key, value in random_clip().state_dict().items()})
    config = json.dumps({"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}).encode()
    model = {"open_clip_config.json": config, "open_clip_model.safetensors": weights, "README.md": b"a model"}
    made.add(REPO, model)
    made.add(REPO, {**model, "open_clip_config.json": config.replace(b"0.5", b"0.4")}, OLD)
    made.add(GATED, model)
    half = len(random_clip().state_dict()) // 2
    state = {key: value.contiguous() for key, value in random_clip().state_dict().items()}
    names = list(state)
    shards = {
        f"model-{n}-of-2.safetensors": save({k: state[k] for k in part})
        for n, part in ((1, names[:half]), (2, names[half:]))
    }
    table = {key: f"model-{1 if key in names[:half] else 2}-of-2.safetensors" for key in names}
    index = json.dumps({"metadata": {}, "weight_map": table}).encode()
    made.add("someone/shards", {"open_clip_config.json": config, "model.safetensors.index.json": index, **shards})
    evil = json.dumps({"weight_map": {"a": "../../evil.safetensors"}}).encode()
    made.add("someone/evil", {"open_clip_config.json": config, "model.safetensors.index.json": evil})
    made.add("someone/words", {"config.json": b"{}", "README.md": b"no model"})
    yield made
    made.server.shutdown()


@pytest.fixture
def ask(hub: Loopback, tmp_path: Path, monkeypatch) -> Ask:
    """What loading a model by a name says: "loaded ..." or "refused ..."."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("NO_PROXY", "*")

    def asked(name: str, address: str = hub.address, *, offline: bool = False, token: str = "", home: str = "") -> str:
        monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / f"cache{home}"))
        try:
            model = load_backbone(name, device="cpu")
            said = f"loaded {model.name} {model.mean[0]} {model.reading['revision'][0]}"
        except DensevlError as error:
            said = f"refused {error}"
        assert "hf_" not in said
        return said

    return asked


@pytest.mark.parametrize("name", [f"hf-hub:{REPO}", REPO, f"https://huggingface.co/{REPO}"])
def test_a_model_is_downloaded_once_and_then_offline(hub, ask, name) -> None:
    assert ask(name) == f"loaded {REPO} 0.5 {COMMIT}"
    got = {path.rpartition("/")[2] for method, path in hub.asked if method == "GET" and "resolve" in path}
    assert got == {"open_clip_config.json", "open_clip_model.safetensors"}
    hub.asked.clear()
    assert ask(name) == f"loaded {REPO} 0.5 {COMMIT}"
    assert hub.asked == []
    assert ask(name, "http://127.0.0.1:9", offline=True).startswith("loaded")


def test_a_revision_is_that_revision(hub, ask) -> None:
    assert ask(f"{REPO}@{OLD}") == f"loaded {REPO}@{OLD} 0.4 {OLD}"
    assert "has no such revision" in ask(f"{REPO}@v9")


def test_a_download_that_is_cut_goes_on(hub, ask) -> None:
    hub.cut.add("open_clip_model.safetensors")
    assert ask(REPO).startswith("loaded")
    got = [path for method, path in hub.asked if method == "GET" and path.endswith("open_clip_model.safetensors")]
    assert len(got) == 2


def test_a_wrong_sum_is_refused_and_removed(hub, ask) -> None:
    hub.lie.add("open_clip_model.safetensors")
    assert "is not the hub's 000000000000" in ask(REPO)
    hub.lie.clear()
    assert ask(REPO).startswith("loaded")


def test_shards_come_with_their_index_and_stay_in_their_place(hub, ask) -> None:
    assert ask("someone/shards").startswith("loaded someone/shards")
    assert "is not a weights file beside it" in ask("someone/evil")
    assert not any("evil.safetensors" in path for _, path in hub.asked)


def test_what_the_hub_refuses_says_what_to_do(hub, ask) -> None:
    assert "run 'hf auth login'" in ask(GATED)
    assert ask(GATED, token="hf_right").startswith("loaded")
    assert "no repository someone/none, or wants a login" in ask("someone/none")
    assert "holds no weights that densevl reads" in ask("someone/words")
    hub.broken = True
    assert "the hub answers 500" in ask(REPO, home="new")


def test_without_a_hub_it_says_how_to_go_on(ask) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    assert "the hub cannot be reached" in ask(REPO, address)
    assert "HF_HUB_OFFLINE forbids the network" in ask(REPO, address, offline=True)


FETCH = "import sys; from densevl.weights import hub; print(hub.fetch_model(hub.parse(sys.argv[1])).name)"


def test_two_processes_at_once_get_the_same_model(hub, tmp_path) -> None:
    settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
    workers = [
        subprocess.Popen([sys.executable, "-c", FETCH, REPO], stdout=subprocess.PIPE, env={**os.environ, **settings})
        for _ in range(2)
    ]
    assert [worker.communicate(timeout=300)[0].decode().strip() for worker in workers] == [COMMIT] * 2


def test_a_download_whose_process_was_killed_goes_on_where_it_was(hub, tmp_path) -> None:
    settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
    few = "import huggingface_hub.constants as constants; constants.DOWNLOAD_CHUNK_SIZE = 1000\n"
    command = [sys.executable, "-c", few + FETCH, REPO]
    hub.stall.add(WEIGHTS)
    killed = subprocess.Popen(command, env={**os.environ, **settings}, stderr=subprocess.DEVNULL)
    assert hub.stalled.wait(120)
    part = _waited(lambda: [path for path in tmp_path.rglob("*.part") if path.stat().st_size])[0]
    killed.kill()
    killed.wait()
    hub.go_on.set()
    there, whole = part.stat().st_size, len(hub.files[REPO][COMMIT][WEIGHTS])
    assert 0 < there <= whole // 2
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [asked for name, asked in hub.ranges if name == WEIGHTS] == ["", f"bytes={there}-"]
    assert not list(tmp_path.rglob("*.part"))
    got = next(tmp_path.rglob(WEIGHTS))
    assert got.read_bytes() == hub.files[REPO][COMMIT][WEIGHTS]


def _waited(found: Callable[[], list[Path]]) -> list[Path]:
    for _ in range(600):
        if paths := found():
            return paths
        time.sleep(0.1)
    raise AssertionError("nothing came")


def test_what_is_there_of_another_file_is_not_gone_on_with(hub, ask, tmp_path) -> None:
    sha = hashlib.sha256(hub.files[REPO][COMMIT][WEIGHTS]).hexdigest()
    part = tmp_path / "cache" / f"models--{REPO.replace('/', '--')}" / "blobs" / f"{sha}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 100)  # begun, and damaged
    assert "is not the hub's" in ask(REPO)
    assert ask(REPO).startswith("loaded")


def test_a_disk_without_room_is_one_line_before_the_download(hub, ask, monkeypatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1000))
    for repo in (REPO, "someone/shards"):
        said = ask(repo)
        assert "GB more on disk, and 0.00 GB are free in" in said
        assert "set HF_HOME" in said
    assert not any(method == "GET" and "resolve" in path for method, path in hub.asked)


def test_the_command_says_it_with_the_code_of_what_cannot_be_written(hub, ask, monkeypatch) -> None:
    ask("someone/none")
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1000))
    done = CliRunner().invoke(app, ["models", "get", f"hf-hub:{REPO}"])
    assert (done.exit_code, done.stderr.count("\n")) == (4, 1)


def test_a_dry_run_lists_what_would_come_and_brings_nothing(hub, ask, tmp_path) -> None:
    ask("someone/none")
    for repo in (REPO, "someone/shards"):
        hub.asked.clear()
        files = managing.planned(f"hf-hub:{repo}")
        wanted = {name for name in hub.files[repo][COMMIT] if name != "README.md"}
        assert {file.file for file in files} == wanted
        assert all(file.size == len(hub.files[repo][COMMIT][file.file]) and not file.here for file in files)
        assert not any("resolve" in path for _, path in hub.asked)
        assert not any((tmp_path / "cache").rglob("*.safetensors"))
    done = CliRunner().invoke(app, ["models", "get", f"hf-hub:{REPO}", "--dry-run"])
    assert done.exit_code == 0
    assert "bytes to download" in done.stdout
    ask(REPO)
    hub.asked.clear()
    assert all(file.here for file in managing.planned(f"hf-hub:{REPO}"))
    assert hub.asked == []


def test_a_model_is_copied_to_a_folder_that_needs_no_hub(hub, ask, tmp_path) -> None:
    ask("someone/none")
    for repo in (REPO, "someone/shards"):
        to = tmp_path / repo.replace("/", "-")
        done = CliRunner().invoke(app, ["models", "get", f"hf-hub:{repo}", "--to", str(to)])
        assert done.exit_code == 0, done.stderr
        assert not any(path.is_symlink() for path in to.iterdir())
        hub.asked.clear()
        model = load_backbone(f"local-dir:{to}", device="cpu")
        assert hub.asked == []
        assert model.mean[0] == 0.5
        get = ["models", "get", f"hf-hub:{repo}", "--to", str(to)]
        assert CliRunner().invoke(app, get).exit_code == 0  # what is there is the same
        (to / "open_clip_config.json").write_text("{}")
        again = CliRunner().invoke(app, get)
        assert (again.exit_code, again.stderr.count("\n")) == (4, 1)
        assert "another --to" in again.stderr
        assert CliRunner().invoke(app, [*get, "--overwrite"]).exit_code == 0


def test_a_file_that_the_repository_has_not_is_no_file_to_get(hub, ask) -> None:
    ask("someone/none")
    done = CliRunner().invoke(app, ["models", "get", f"hf-hub:{REPO}/absent.safetensors", "--dry-run"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "has no absent.safetensors" in done.stderr


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (f"https://github.com/{REPO}", "an address of github.com"),
        (f"https://evil.org/{REPO}/resolve/main/{WEIGHTS}", "an address of evil.org"),
        (f"hf-hub:{REPO}@../..", "no model"),
        (f"hf-hub:{REPO}/../c", "no model"),
    ],
)
def test_what_is_not_of_the_hub_is_not_asked_of_it(hub, ask, name, reason) -> None:
    said = ask(name)
    assert said.startswith("refused")
    assert reason in said
    assert hub.asked == []
    assert CliRunner().invoke(app, ["models", "get", name]).exit_code == 2


def test_changes_to_a_model_come_with_their_config_and_stay(hub, ask) -> None:
    hub.add("someone/lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x", "README.md": b""})
    ask("someone/none")
    folder = managing.get("hf-hub:someone/lora")
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    hub.asked.clear()
    assert managing.get("hf-hub:someone/lora") == folder
    assert hub.asked == []


def test_the_address_of_a_config_is_its_model(hub, ask) -> None:
    assert ask(f"hf-hub:{REPO}/open_clip_config.json").startswith("loaded")
    assert ask(f"{hub.address}/{REPO}").startswith("loaded")


def test_published_weights_are_copied_with_their_facts(hub, ask, tmp_path, monkeypatch) -> None:
    ask("someone/none")
    config = {**TINY, "quick_gelu": False}
    monkeypatch.setitem(large.ARCHITECTURES, "Tiny-1", config)
    monkeypatch.setitem(large.PUBLISHED, ("Tiny-1", "x"), f"{REPO}/{WEIGHTS}")
    assert [file.file for file in managing.planned("Tiny-1/x")] == [WEIGHTS]
    folder = managing.get("Tiny-1/x", tmp_path / "to")
    for name in (f"local-dir:{folder}", "Tiny-1/x"):
        model = load_backbone(name, device="cpu")
        assert model.reading["image_activation"][0] == "gelu"
        assert model.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))


def test_what_is_got_is_whole_with_the_tokenizer_of_another_repository(hub, ask, tmp_path) -> None:
    named = {**TINY, "text_cfg": {**TINY["text_cfg"], "hf_tokenizer_name": "words"}}
    model = {**hub.files[REPO][COMMIT], "open_clip_config.json": json.dumps({"model_cfg": named}).encode()}
    hub.add("someone/whole", model)
    hub.add("words", {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"not asked for"})
    ask("someone/none")  # the settings of this test
    path = managing.get(f"hf-hub:someone/whole@{COMMIT}")
    assert (path / "open_clip_model.safetensors").is_file()
    words = next((tmp_path / "cache" / "models--words" / "snapshots").iterdir())
    assert {file.name for file in words.iterdir()} == {"config.json", "tokenizer.json"}
    hub.asked.clear()
    assert managing.get(f"hf-hub:someone/whole@{COMMIT}") == path
    assert hub.asked == []


@pytest.mark.parametrize(
    ("taken", "listens", "answers", "offline", "told"),
    [
        ("photo", True, True, False, True),
        ("ViT-B-16/openai", True, True, False, False),
        ("photo", False, True, False, False),
        ("photo", True, False, False, False),
        ("photo", True, True, True, False),
    ],
    ids=["offered", "nothing better", "no terminal", "no hub", "offline"],
)
def test_auto_offers_a_better_model_where_a_hub_answers(
    hub, ask, monkeypatch, caplog, taken, listens, answers, offline, told
) -> None:
    ask("someone/none", hub.address if answers else "http://127.0.0.1:9", offline=offline)
    hub.asked.clear()
    with caplog.at_level(logging.INFO if listens else logging.WARNING, OFFER):
        offer(taken)
    said = [record.getMessage() for record in caplog.records if record.name == OFFER]
    assert said == ["'auto' takes 'photo'; a CLIP for any words: densevl models get ViT-B-16/openai (0.6 GB)"] * told
    assert all(method == "HEAD" for method, _ in hub.asked)


def test_commands_of_the_docs_that_need_a_hub_run_with_one(hub, ask, tmp_path, monkeypatch) -> None:
    """With a tiny model under the names of the published ones."""
    ask("someone/none")
    model = hub.files[REPO][COMMIT]
    for arch, repo in (("ViT-B-16", "vit_base_patch16_clip_224"), ("ViT-B-32", "vit_base_patch32_clip_224")):
        monkeypatch.setitem(large.ARCHITECTURES, arch, TINY)
        hub.add(f"timm/{repo}.openai", model)
    hub.add("someone/their-clip", model, "v1.0")
    torch.save(random_clip().state_dict(), tmp_path / "finetuned.pt")
    shutil.copy(PHOTOS / "cat.jpg", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    pages = [page.read_text(encoding="utf-8") for page in sorted((PHOTOS.parents[1] / "docs").glob("*.md"))]
    blocks = [
        block for page in pages for block in re.findall(r"<!-- needs: network.*?```console\n(.*?)```", page, re.S)
    ]
    lines = [
        line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ densevl ")
    ]
    assert lines
    for line in lines:
        done = CliRunner().invoke(app, shlex.split(line)[1:])
        assert done.exit_code == 0, (line, done.output)
