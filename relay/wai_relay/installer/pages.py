"""Serve `GET /install.sh` and `GET /dist/NAME.whl` without authentication; they hold no secret.

The script contains the relay's URL, its pin, and the wheel's name and SHA-256. So a machine that
has the genuine script installs the genuine software, however the wheel is transferred.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Final

from wai_protocol.errors import Fault, RequestError
from wai_protocol.surface import Headers
from wai_relay.fleet.invites import InviteAddress
from wai_relay.http.exchange import Exchange

from .one_line import pinned_public_key
from .wheel import Wheel, pack

SCRIPT_PATH: Final = "/install.sh"
WHEELS: Final = "/dist/"
SCRIPT_FILE: Final = Path(__file__).parent / "install.sh"
PIECE_BYTES: Final = 64 * 1024
"""Size of one write: no more of the wheel waits in the buffer of a slow caller."""

_PLACE: Final = "^{name}=''$"


class InstallerPages:
    """Serves the script and the wheel.

    `address`: returns the relay's current address. `make_wheel`: builds the wheel; it is called in
    a thread, once, at the first request.
    """

    def __init__(
        self, address: Callable[[], InviteAddress], make_wheel: Callable[[], Wheel] = pack
    ) -> None:
        self._address = address
        self._make_wheel = make_wheel
        self._wheel: asyncio.Task[Wheel] | None = None

    @staticmethod
    def answers(path: str) -> bool:
        """Return whether `path` is served here."""
        return path == SCRIPT_PATH or path.startswith(WHEELS)

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request. Raises `RequestError`."""
        request = exchange.request
        if request.method not in ("GET", "HEAD"):
            raise RequestError(
                f"{request.path} accepts only GET and HEAD", Fault.METHOD_NOT_ALLOWED
            )
        wheel = await self._made()
        if request.path == SCRIPT_PATH:
            script = render(SCRIPT_FILE.read_text(encoding="utf-8"), self._address(), wheel)
            await _send(exchange, b"text/x-shellscript; charset=utf-8", script.encode())
        elif request.path == WHEELS + wheel.name:
            await _send(exchange, b"application/zip", wheel.data)
        else:
            raise RequestError(f"this relay has {WHEELS}{wheel.name} only", Fault.NOT_FOUND)

    async def _made(self) -> Wheel:
        """Return the wheel, which is built once, and again only after a failure."""
        if self._wheel is None or (self._wheel.done() and _failed(self._wheel)):
            making = asyncio.to_thread(self._make_wheel)
            self._wheel = asyncio.get_running_loop().create_task(making)
        return await asyncio.shield(self._wheel)  # a caller that disconnects must not cancel it


def render(script: str, address: InviteAddress, wheel: Wheel) -> str:
    """Return the script with the relay's address, pin and wheel filled in."""
    values = {
        "RELAY": address.url.rstrip("/"),
        "PIN": pinned_public_key(address.pin) if address.pin is not None else "",
        "WHEEL": wheel.name,
        "SHA256": wheel.sha256,
    }
    for name, value in values.items():
        place = re.compile(_PLACE.format(name=name), re.MULTILINE)
        assert len(place.findall(script)) == 1, name
        script = place.sub(f"{name}={shlex.quote(value)}".replace("\\", r"\\"), script)
    return script


async def _send(exchange: Exchange, media_type: bytes, body: bytes) -> None:
    """Send the whole body in pieces, as fast as the caller reads."""
    headers: Headers = [
        (b"content-type", media_type),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-cache"),
        (b"x-content-type-options", b"nosniff"),
    ]
    exchange.start(200, headers)
    if exchange.request.method == "HEAD":
        exchange.end()
        return
    may_go_on = asyncio.Event()
    exchange.on_resume = may_go_on.set
    for start in range(0, len(body), PIECE_BYTES):
        if exchange.paused:
            may_go_on.clear()
            await may_go_on.wait()
        exchange.write(body[start : start + PIECE_BYTES])
    exchange.end()


def _failed(task: asyncio.Task[Wheel]) -> bool:
    return task.cancelled() or task.exception() is not None
