"""The hub's real client against a hub on this machine: downloads, cuts, wrong sums, logins, revisions, offline."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save

from conftest import TINY, random_clip

COMMIT, OLD = "a" * 40, "b" * 40
REPO, GATED, MOVED = "someone/tiny", "someone/gated", "someone/moved"


class Loopback:
    """A hub of a few files. Attributes: files: by repository, commit and name. asked: (method, path) in order.

    cut: names whose first download stops half way. lie: names whose SHA-256 is said to be another.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.asked: list[tuple[str, str]] = []
        self.tokens: list[str] = []
        self.cut: set[str] = set()
        self.lie: set[str] = set()
        self.broken = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.answer(self, "HEAD")

            def do_GET(self) -> None:
                hub.answer(self, "GET")

            def log_message(self, *words: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def add(self, repo: str, files: dict[str, bytes], commit: str = COMMIT) -> None:
        self.files.setdefault(repo, {})[commit] = files

    def answer(self, asked: Any, method: str) -> None:
        path = asked.path.partition("?")[0]
        self.asked.append((method, path))
        self.tokens.append(asked.headers.get("Authorization", ""))
        parts = path.strip("/").split("/")
        if path == "/":
            return self.send(asked, 200, b"")
        if self.broken:
            return self.send(asked, 500, b"{}")
        if parts[:2] == ["api", "models"]:
            repo, rest = "/".join(parts[2:4]), parts[4:]
        else:
            repo, rest = "/".join(parts[:2]), parts[2:]
        if repo == GATED and asked.headers.get("Authorization") != "Bearer hf_right":
            return self.send(asked, 403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        if repo not in self.files:
            return self.send(asked, 401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "no"})
        revision = rest[1] if len(rest) > 1 and rest[0] in ("resolve", "revision", "tree") else "main"
        commit = next((c for c in self.files[repo] if c == revision), COMMIT if revision == "main" else "")
        if commit not in self.files[repo]:
            return self.send(asked, 404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no"})
        files = self.files[repo][commit]
        if parts[0] == "api":
            rows = [{"rfilename": name} for name in files]
            return self.send(asked, 200, json.dumps({"id": repo, "sha": commit, "siblings": rows, "tags": []}).encode())
        name = "/".join(rest[2:])
        if name not in files:
            head = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "no", "X-Repo-Commit": commit}
            return self.send(asked, 404, b"", head)
        return self.file(asked, method, name, files[name], commit)

    def file(self, asked: Any, method: str, name: str, content: bytes, commit: str) -> None:
        sha = hashlib.sha256(content).hexdigest()
        tag = "0" * 64 if name in self.lie else sha
        head = {"ETag": f'"{tag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if name.endswith((".safetensors", ".bin")):
            head |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(content))}
        else:
            head["ETag"] = f'"{sha[:40]}"'
        start = int((asked.headers.get("Range") or "bytes=0-").split("=")[1].split("-")[0])
        status = 206 if start else 200
        if start:
            head["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        cut = method == "GET" and name in self.cut
        self.cut.discard(name if cut else "")
        self.send(asked, status, body, head, only=len(body) // 2 if cut else None)

    def send(
        self, asked: Any, status: int, body: bytes, head: dict[str, str] | None = None, only: int | None = None
    ) -> None:
        asked.send_response(status)
        for key, value in (head or {}).items():
            asked.send_header(key, value)
        asked.send_header("Content-Length", str(len(body)))
        asked.end_headers()
        if asked.command == "GET":
            asked.wfile.write(body if only is None else body[:only])
        if only is not None:
            asked.close_connection = True


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


LOAD = """
import sys
from densevl import load_backbone
from densevl.errors import DensevlError
try:
    model = load_backbone(sys.argv[1], device="cpu")
    print("loaded", model.name, model.mean[0], model.reading.get("revision", ["?"])[0])
except DensevlError as error:
    print("refused", type(error).__name__, error)
"""


def ask(hub: Loopback | str, home: Path, name: str, **environment: str) -> str:
    """What loading a model says, in a process of its own: the client reads its settings when it is imported."""
    address = hub if isinstance(hub, str) else hub.address
    settings = {
        "HF_ENDPOINT": address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "*",
        "HF_TOKEN": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOAD, name],
        capture_output=True,
        text=True,
        env={**os.environ, **settings, **environment},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (said,) = [line for line in done.stdout.splitlines() if line.startswith(("loaded", "refused"))]
    assert "hf_" not in said.replace("hf_hub", "")
    return said


@pytest.mark.parametrize("name", [f"hf-hub:{REPO}", REPO, f"https://huggingface.co/{REPO}"])
def test_a_model_is_downloaded_once_and_then_offline(hub, tmp_path, name) -> None:
    assert ask(hub, tmp_path, name) == f"loaded {REPO} 0.5 {COMMIT}"
    got = {path.rpartition("/")[2] for method, path in hub.asked if method == "GET" and "resolve" in path}
    assert got == {"open_clip_config.json", "open_clip_model.safetensors"}
    hub.asked.clear()
    assert ask(hub, tmp_path, name) == f"loaded {REPO} 0.5 {COMMIT}"
    assert hub.asked == []
    assert ask("http://127.0.0.1:9", tmp_path, name, HF_HUB_OFFLINE="1").startswith("loaded")


def test_a_revision_is_that_revision(hub, tmp_path) -> None:
    assert ask(hub, tmp_path, f"{REPO}@{OLD}") == f"loaded {REPO}@{OLD} 0.4 {OLD}"
    assert "has no such revision" in ask(hub, tmp_path, f"{REPO}@v9")


def test_a_download_that_is_cut_goes_on(hub, tmp_path) -> None:
    hub.cut.add("open_clip_model.safetensors")
    assert ask(hub, tmp_path, REPO).startswith("loaded")
    got = [path for method, path in hub.asked if method == "GET" and path.endswith("open_clip_model.safetensors")]
    assert len(got) == 2


def test_a_wrong_sum_is_refused_and_removed(hub, tmp_path) -> None:
    hub.lie.add("open_clip_model.safetensors")
    assert "is not the hub's 000000000000" in ask(hub, tmp_path, REPO)
    hub.lie.clear()
    assert ask(hub, tmp_path, REPO).startswith("loaded")


def test_shards_come_with_their_index_and_stay_in_their_place(hub, tmp_path) -> None:
    assert ask(hub, tmp_path, "someone/shards").startswith("loaded someone/shards")
    assert "is no weights file beside it" in ask(hub, tmp_path, "someone/evil")
    assert not any("evil.safetensors" in path for _, path in hub.asked)


def test_what_the_hub_refuses_says_what_to_do(hub, tmp_path) -> None:
    assert "run 'hf auth login'" in ask(hub, tmp_path, GATED)
    assert ask(hub, tmp_path, GATED, HF_TOKEN="hf_right").startswith("loaded")
    assert "no repository someone/none, or wants a login" in ask(hub, tmp_path, "someone/none")
    assert "holds no weights that densevl reads" in ask(hub, tmp_path, "someone/words")
    hub.broken = True
    assert "the hub answers 500" in ask(hub, tmp_path / "new", REPO, HF_HUB_DOWNLOAD_TIMEOUT="2")


def test_without_a_hub_it_says_how_to_go_on(tmp_path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    assert "the hub cannot be reached" in ask(address, tmp_path, REPO)
    assert "HF_HUB_OFFLINE forbids the network" in ask(address, tmp_path, REPO, HF_HUB_OFFLINE="1")


def test_two_processes_at_once_get_the_same_model(hub, tmp_path) -> None:
    said: list[str] = []
    workers = [threading.Thread(target=lambda: said.append(ask(hub, tmp_path, REPO))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert said == [f"loaded {REPO} 0.5 {COMMIT}"] * 2
