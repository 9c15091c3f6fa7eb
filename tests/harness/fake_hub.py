"""A small Hugging Face hub on loopback with the API that huggingface_hub 2.4.0 uses.

It has two origins, as the real one has: the API with its redirects, and the storage that they lead
to. It serves real files with real hashes, unless a fault is set, and records every request. It uses
threads, so that it does not share the event loop of the tested code.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, ClassVar, Final
from urllib.parse import parse_qs, unquote, urlsplit

from .threaded_server import Quiet, QuietServer, ServedTogether

COMMIT: Final = "5e1ec7ed0c0ffee00000000000000000000000aa"
_WRITE_BYTES: Final = 4096
_RESOLVE: Final = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass(slots=True)
class Faults:
    """Faults of the storage. The entries of a list are used up request by request.

    `cut_after`: close the connection after so many body bytes (one entry a request).
    `statuses`: answer with these statuses first. `wrong_hash`: list a false SHA-256,
    `wrong_blob` a false hash of git's. `ignore_range`: send the whole file always. `pause_s`:
    between pieces of 4 KiB, from the byte `pause_from` of a file on.
    `longer_by`: send so many bytes more than the file has.
    """

    cut_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    wrong_hash: bool = False
    wrong_blob: bool = False
    ignore_range: bool = False
    pause_s: float = 0.0
    pause_from: int = 0
    longer_by: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that came in. `origin` is "hub" or "storage"."""

    origin: str
    method: str
    target: str
    headers: dict[str, str]


@dataclass(slots=True)
class FakeRepo:
    """One repository: its files' contents by path."""

    files: dict[str, bytes]
    gated: bool = False
    private: bool = False


class FakeHub(ServedTogether):
    """The hub, a context manager; `endpoint` is the value for HF_ENDPOINT.

    With `token` gated and private repositories can be read.
    """

    def __init__(self, repos: dict[str, FakeRepo], *, token: str = "hf_good") -> None:
        self.repos, self.token = repos, token
        self.faults = Faults()
        self.seen: list[Seen] = []
        self.lock = threading.Lock()
        self._hub = _Server(("127.0.0.1", 0), _HubHandler, self)
        self._storage = _Server(("127.0.0.1", 0), _StorageHandler, self)
        self.servers = (self._hub, self._storage)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._hub.server_port}"

    @property
    def storage(self) -> str:
        """Another origin: the same machine by another name and port."""
        return f"http://localhost:{self._storage.server_port}"

    def requests(self, origin: str) -> list[Seen]:
        """What came in at "hub" or "storage" so far."""
        with self.lock:
            return [seen for seen in self.seen if seen.origin == origin]

    def sha256(self, content: bytes) -> str:
        """What the listing says of `content`."""
        digest = hashlib.sha256(content).hexdigest()
        return digest[::-1] if self.faults.wrong_hash else digest

    def may_read(self, repo: FakeRepo, headers: dict[str, str]) -> bool:
        allowed = headers.get("authorization") == f"Bearer {self.token}"
        return allowed or not (repo.gated or repo.private)


class _Server(QuietServer):
    def __init__(
        self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], hub: FakeHub
    ) -> None:
        super().__init__(address, handler)
        self.hub = hub


class _Handler(Quiet, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    origin: ClassVar[str]
    server: _Server

    @property
    def hub(self) -> FakeHub:
        return self.server.hub

    def note(self) -> dict[str, str]:
        """Keep the request for the test, and return its headers in lower case."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.hub.lock:
            self.hub.seen.append(Seen(self.origin, self.command, self.path, headers))
        return headers

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        self.answer(status, body, X_Error_Code=code, X_Error_Message=message)


class _HubHandler(_Handler):
    origin = "hub"

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        headers = self.note()
        url = urlsplit(self.path)
        path = unquote(url.path)
        if path == "/api/models":
            self._search(parse_qs(url.query))
        elif path.startswith("/api/models/"):
            self._info(path.removeprefix("/api/models/"), headers)
        elif match := _RESOLVE.fullmatch(path):
            self._resolve(match["repo"], match["path"], headers)
        else:
            self.refuse(404, "EntryNotFound", "no such page")

    def _search(self, query: dict[str, list[str]]) -> None:
        wanted = query.get("search", [""])[0].lower()
        limit = int(query.get("limit", ["1000"])[0])
        models = [
            {"id": name, "downloads": 10, "likes": 1, "gated": repo.gated, "tags": ["gguf"]}
            for name, repo in self.hub.repos.items()
            if wanted in name.lower() and not repo.private
        ]
        self.answer(200, json.dumps(models[:limit]).encode(), Content_Type="application/json")

    def _info(self, name: str, headers: dict[str, str]) -> None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.hub.may_read(repo, headers)):
            self.refuse(404, "RepoNotFound", "Repository not found")
            return
        siblings: list[dict[str, Any]] = []
        for path, content in repo.files.items():
            head = b"blob %d\0" % len(content)
            blob = hashlib.sha1(head + content, usedforsecurity=False).hexdigest()
            blob = blob[::-1] if self.hub.faults.wrong_blob else blob
            sibling: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob}
            if path.endswith((".gguf", ".safetensors")):
                sha256 = self.hub.sha256(content)
                sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 135}
            siblings.append(sibling)
        info = {"id": name, "sha": COMMIT, "gated": repo.gated and "manual", "siblings": siblings}
        self.answer(200, json.dumps(info).encode(), Content_Type="application/json")

    def _resolve(self, name: str, path: str, headers: dict[str, str]) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            self.refuse(404, "RepoNotFound", "Repository not found")
        elif not self.hub.may_read(repo, headers):
            code = "GatedRepo" if repo.gated else "RepoNotFound"
            self.refuse(403 if repo.gated else 404, code, "Access is restricted")
        elif path not in repo.files:
            self.refuse(404, "EntryNotFound", "Entry not found")
        else:
            content = repo.files[path]
            digest = hashlib.sha256(content).hexdigest()
            self.answer(
                302,
                Location=f"{self.hub.storage}/{digest}?name={name}&path={path}",
                X_Repo_Commit=COMMIT,
                ETag=f'"{digest}"',
                X_Linked_ETag=f'"{digest}"',
                X_Linked_Size=str(len(content)),
            )


class _StorageHandler(_Handler):
    origin = "storage"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        headers = self.note()
        query = parse_qs(urlsplit(self.path).query)
        content = self.hub.repos[query["name"][0]].files[query["path"][0]]
        with self.hub.lock:
            faults = self.hub.faults
            status = faults.statuses.pop(0) if faults.statuses else 0
            cut = faults.cut_after.pop(0) if faults.cut_after else None
        if status:
            self.answer(status, b"broken")
            return
        content += b"\0" * faults.longer_by
        first, last, status = 0, len(content) - 1, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        if wanted and not faults.ignore_range:
            first, status = int(wanted[1]), 206
            last = min(last, int(wanted[2])) if wanted[2] else last
            if first >= len(content):
                self.answer(416, Content_Range=f"bytes */{len(content)}")
                return
        self.send_response(status)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("ETag", '"content"')
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self._send_body(content[first : last + 1], first, cut)

    def _send_body(self, body: bytes, first: int, cut: int | None) -> None:
        if cut is not None:
            self.close_connection = True
            body = body[:cut]
        for start in range(0, len(body), _WRITE_BYTES):
            self.wfile.write(body[start : start + _WRITE_BYTES])
            faults = self.hub.faults  # looked at anew: a test may let go
            if faults.pause_s and first + start >= faults.pause_from:
                time.sleep(faults.pause_s)
