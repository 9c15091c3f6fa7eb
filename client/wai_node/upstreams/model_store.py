"""What a server lets the node do with its models: fetch, load, unload and remove them.

Each kind of server that can is one subclass of `ModelStore`, in a file of its own. A store is used
for what an admin asks of the node (`managed.pulls`) and never for a caller's request: none of its
routes is in the table of those that are forwarded.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Callable
from typing import ClassVar, Final, Protocol, TypeVar

import msgspec

from wai_protocol.errors import Fault, StoreError, TransportError, WaiError
from wai_protocol.surface import Headers
from wai_transport.http_client import HttpClient

T = TypeVar("T")

LOAD_LIMIT_S: Final = 600.0
"""For one model to load: as long as the relay waits for a first byte."""
ASK_LIMIT_S: Final = 30.0  # for any other answer: large files take a while to delete
ANSWER_LIMIT_BYTES: Final = 1 << 20
MAX_SAID_CHARS: Final = 300  # of an error in the server's own words
MAX_BYTES: Final = 1 << 50


class MayPass(TransportError):
    """The server, or where it fetches from, failed for now: trying again makes sense."""


class Fetched(msgspec.Struct, frozen=True):
    """How much of a model is there, in bytes; `total` is what is known of it so far."""

    done: int
    total: int


class Stored(msgspec.Struct, frozen=True):
    """A model that the server has: its id for callers, and its size if that is told."""

    model: str
    size_bytes: int = 0


class Server(Protocol):
    """What a store needs of its server's `Upstream`."""

    client: HttpClient
    base_path: str

    @property
    def name(self) -> str:
        """What it is called in errors."""

    @property
    def authorization(self) -> Headers:
        """The header that proves us."""

    def check(self) -> None:
        """Raise `WaiError` where nothing may be sent to it."""

    async def get_json(self, path: str, shape: type[T]) -> T:
        """The JSON body of `GET path`. Raises `WaiError`."""


class ModelStore(abc.ABC):
    """The models of one server. Every method raises `WaiError`, with the server's own words."""

    takes_context: bool = False
    """Whether `load` can say how long a context is to be."""
    takes_idle: bool = True
    """Whether `load` can say after how long unused it is unloaded."""

    full: ClassVar[re.Pattern[str]]
    """What the server says when its disk is full."""

    def __init__(self, upstream: Server) -> None:
        self.upstream = upstream

    async def _send(
        self, method: str, path: str, body: bytes, limit_s: float = ASK_LIMIT_S
    ) -> tuple[int, bytes]:
        """Send JSON with our key: (status, body)."""
        upstream = self.upstream
        upstream.check()
        headers = [*upstream.authorization, (b"content-type", b"application/json")]
        status, _, answer = await upstream.client.fetch(
            *(method, upstream.base_path + path, headers, body),
            limit_bytes=ANSWER_LIMIT_BYTES,
            timeout_s=limit_s,
        )
        return status, answer

    def _refused(self, what: str, status: int, words: str) -> WaiError:
        """The error for an answer that is none of a good status; `words` are the server's."""
        if self.full.search(words):
            return StoreError(f"the disk of {self.upstream.name} is full: {words}")
        return broke(self.upstream, f"{what} ({status}): {words}")

    @abc.abstractmethod
    def publisher(self, name: str) -> str:
        """Whose model it is. Raises `RequestError` for a name that it can't have."""

    @abc.abstractmethod
    async def find(self, name: str) -> Stored | None:
        """The model if the server has it already."""

    @abc.abstractmethod
    async def fetch(self, name: str, tell: Callable[[Fetched], None]) -> Stored:
        """Have the server fetch a model; what it has of it already it goes on from. To cancel this
        ends the fetching as far as the server lets us. Raises `MayPass` too."""

    @abc.abstractmethod
    async def load(self, model: str, context_tokens: int | None, keep_s: float | None) -> None:
        """Load it now. `keep_s`: unload it after so long unused, None: as the server does."""

    @abc.abstractmethod
    async def unload(self, model: str) -> None:
        """Free its memory; a request loads it again."""

    @abc.abstractmethod
    async def remove(self, model: str) -> None:
        """Delete its files. One that is gone already is no error."""


def bounded_size(value: int) -> int:
    """A size in bytes that a server told, within what can be one."""
    return min(max(0, value), MAX_BYTES)


def said(text: str) -> str:
    """A server's words as one printable line of bounded length."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in line)[:MAX_SAID_CHARS]


def broke(upstream: Server, what: str) -> TransportError:
    """The error for an answer that makes no sense."""
    return TransportError(f"{upstream.name} {what}", Fault.UPSTREAM_BROKE)
