"""A hub on this machine: the routes that huggingface_hub's client asks, over files held in a dict."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT, OLD = "a" * 40, "b" * 40
GATED = "someone/gated"


class _Stalling(bytes):
    """A body of which the second half does not come."""

    hub: Loopback


class Loopback:
    """A hub of a few files. Attributes: files: by repository, commit and name. asked: (method, path) in order.

    cut: names whose first download stops half way. lie: names whose SHA-256 is said to be another. stall: names whose
    first download stays half way until `go_on` is set. ranges: of each download, what was asked for by "Range".
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.asked: list[tuple[str, str]] = []
        self.tokens: list[str] = []
        self.cut: set[str] = set()
        self.lie: set[str] = set()
        self.stall: set[str] = set()
        self.stalled, self.go_on = threading.Event(), threading.Event()
        self.ranges: list[tuple[str, str]] = []
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
            if parts[2] in self.files:
                repo, rest = parts[2], parts[3:]
        else:
            repo, rest = "/".join(parts[:2]), parts[2:]
            if parts[0] in self.files:
                repo, rest = parts[0], parts[1:]
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
            rows = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
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
        if method == "GET":
            self.ranges.append((name, asked.headers.get("Range", "")))
        if method == "GET" and name in self.stall:
            self.stall.discard(name)
            cut = True
            body = _Stalling(body)
            body.hub = self
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
            if isinstance(body, _Stalling):
                asked.wfile.flush()
                body.hub.stalled.set()
                body.hub.go_on.wait(60)
        if only is not None:
            asked.close_connection = True
