"""The dashboard's built files, from memory: every answer with the strict policy, cached as it may.

`relay/web` is built into `wai_relay/static` by the package's build hook. Files below `assets/` have
their hash in their name and are kept by browsers for good; the page itself is asked for each time
and mostly answered with 304. Every other path below /dashboard/ is the page: it has its own routes.
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

BASE: Final = "/dashboard"
FOLDER: Final = Path(__file__).parents[1] / "static"
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Final = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), clipboard-write=(self)",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_FOR_GOOD: Final = "public, max-age=31536000, immutable"
_ASK_EACH_TIME: Final = "no-cache"
_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_NOT_BUILT: Final = (
    "The dashboard was not built into this installation: run `pip install .` in the repository, "
    "which does it. The API and the `wai` command work without it.\n"
)


class StaticFile(msgspec.Struct, frozen=True):
    """A file as it is served; `packed` is its gzip."""

    body: bytes
    packed: bytes
    media_type: str
    etag: str
    cache_control: str

    @classmethod
    def read(cls, path: Path, *, cache_control: str) -> StaticFile:
        """Read and compress `path`."""
        body = path.read_bytes()
        return cls(
            body=body,
            packed=gzip.compress(body, mtime=0),
            media_type=_TYPES[path.suffix],
            etag=f'"{hashlib.sha256(body).hexdigest()[:24]}"',
            cache_control=cache_control,
        )

    def respond(self, request: Request) -> Response:
        """The file, or 304 to a browser that has it."""
        headers = {
            **HEADERS,
            "cache-control": self.cache_control,
            "etag": self.etag,
            "vary": "accept-encoding",
        }
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        body = self.body
        if "gzip" in request.headers.get("accept-encoding", ""):
            body = self.packed
            headers["content-encoding"] = "gzip"
        return Response(body, headers=headers, media_type=self.media_type)


class StaticFiles:
    """All of them, by their path below /dashboard/. `page` is None where nothing was built."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._files: dict[str, StaticFile] = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix in _TYPES:
                name = path.relative_to(folder).as_posix()
                cache_control = _FOR_GOOD if name.startswith("assets/") else _ASK_EACH_TIME
                self._files[name] = StaticFile.read(path, cache_control=cache_control)
        self.page = self._files.pop("index.html", None)

    async def respond(self, request: Request) -> Response:
        """Answer `GET /dashboard/{path}`."""
        path = request.path_params.get("path", "")
        if self.page is None:
            return PlainTextResponse(_NOT_BUILT, 503, HEADERS)
        if (file := self._files.get(path)) is not None:
            return file.respond(request)
        if "." in path.rpartition("/")[2]:  # a file of another build, not one of the page's routes
            return PlainTextResponse("no such file\n", 404, HEADERS)
        return self.page.respond(request)


async def redirect(request: Request) -> Response:
    """`/dashboard` is `/dashboard/`."""
    return RedirectResponse(BASE + "/", 308, HEADERS)
