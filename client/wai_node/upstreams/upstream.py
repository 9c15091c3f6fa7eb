"""An inference server beside the node: where it is, how it is told who we are, what it serves.

Each kind of server is one subclass of `Upstream`, in a file of its own, and is listed in `kinds`.
The kinds differ in what they tell about themselves; forwarding is the same for all. An `Upstream`
holds no state of the node's own streams: that is the board's.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final, TypeVar

import msgspec

from wai_protocol.errors import Fault, TransportError, WaiError
from wai_protocol.foreign_json import ForeignJsonError, read_json
from wai_protocol.status import MAX_MODELS, MAX_NAME_CHARS, ModelStatus
from wai_protocol.surface import Headers, Route
from wai_transport.http_client import HttpClient
from wai_transport.http_request import Timeouts
from wai_transport.origin import Origin

from .found_routes import Way, find_routes
from .model_store import ModelStore
from .tally import Counters

PROBE_TIMEOUT_S: Final = 5.0
"""llama-server answers between two batches: in a long prefill on a slow box that takes seconds."""
PROBE_LIMIT_BYTES: Final = 4 << 20
"""Ollama's list of 500 models is 300 kB; vLLM's metrics 100 kB. More is not an inference server."""

T = TypeVar("T")

Ready = Callable[[HttpClient, str, Headers], None]
"""Takes the client to send one request by, the path that goes before the request's own, and the
header that proves us."""


class Waited(msgspec.Struct, frozen=True):
    """What a request waited for at its upstream: a load took `load_s`, after it had waited for room
    for `room_s`; `made_room`: the models that were unloaded for that."""

    load_s: float
    room_s: float
    made_room: tuple[str, ...]


class Probe(msgspec.Struct, frozen=True):
    """What an upstream said about itself.

    `counted`: `slots_busy` and `queued` are the upstream's own figures, which hold other people's
    requests too. Otherwise they are 0, and only our own streams can be counted. `counters`: the
    tokens that it has counted, where it tells. `asleep`: any request for a model would wake it.
    `process`: changes when another process answers.
    """

    models: tuple[ModelStatus, ...]
    counted: bool = False
    counters: Counters | None = None
    asleep: bool = False
    process: str = ""


class Listed(msgspec.Struct):
    """One model of an OpenAI-style list; the fields that some servers add are optional."""

    id: str
    owned_by: str = ""
    aliases: list[str] = []
    max_model_len: int | None = None
    meta: dict[str, Any] | None = None
    status: dict[str, Any] | None = None


class ModelList(msgspec.Struct):
    """The body of `GET /v1/models`."""

    data: list[Listed]


class Asker:
    """Asks one address what answers there, by GETs alone. It asks for each path once, however many
    kinds want to know."""

    def __init__(self, url: str, key: str = "") -> None:
        """`url` as in `Upstream`. Raises `RequestError` on a bad one."""
        self._origin, path = Origin.parse(url)
        self._base_path = path.removesuffix("/v1")
        self._headers = _bearer(key)
        self._client = HttpClient(self._origin)
        self._answers: dict[str, tuple[int, Headers, bytes]] = {}
        self.lost = False
        """Whether a request failed; nothing that we know answers here."""

    async def get(self, path: str) -> tuple[int, Headers, bytes]:
        """`GET path`: (status, headers, body). Raises `WaiError` if nothing answers."""
        if path not in self._answers:
            try:
                self._answers[path] = await _get(
                    self._client, self._base_path + path, self._headers
                )
            except WaiError:
                self.lost = True
                raise
        return self._answers[path]

    async def read(self, path: str, shape: type[T]) -> T | None:
        """The JSON body of `GET path` if it has this shape, else None. Raises as `get` does."""
        status, _, body = await self.get(path)
        if status != 200:
            return None
        try:
            return read_json(body, shape, f"the answer to {path}", limit_bytes=PROBE_LIMIT_BYTES)
        except ForeignJsonError:
            return None

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()


class Upstream(abc.ABC):
    """One inference server; each subclass is a kind. `name` tells it from others in STATUS and in
    logs; never the key."""

    kind: ClassVar[str]
    """What people call this kind, as `llama-server`; it is unique."""
    usual_ports: ClassVar[tuple[int, ...]] = ()
    """Where it is looked for on this machine."""
    word: ClassVar[str] = ""
    """By which people name models that servers of this kind are to fetch, as in `ollama:qwen3:8b`;
    "": those that `store` has none for."""
    apis: tuple[str, ...] = ("openai",)
    """The dialects that servers of this kind speak (`Route.api`), where it is not known of this one
    which routes it has."""
    way: ClassVar[Way] = Way.BY_METHOD
    """How it is asked which routes it has."""
    capabilities: tuple[str, ...] = ()
    """What else its requests may ask for (`wai_protocol.status`): the relay rewrites them so."""
    left_out: int = 0
    """How many of its models STATUS could not carry: too many, or with too long an id."""
    slots: int | None = None
    """How many requests it works on at once, as its owner says; counts where it does not tell."""
    extra: tuple[Route, ...] = ()
    """The routes that its owner says it has beside those that all nodes forward."""
    _check: Callable[[int | None], None] | None = None

    def __init__(self, url: str, key: str = "", *, timeouts: Timeouts | None = None) -> None:
        """`url` as typed, with or without its closing `/v1`. Raises `RequestError` on a bad one."""
        origin, path = Origin.parse(url)
        self.origin = origin
        self.base_path = path.removesuffix("/v1")
        self.key = key
        self.client = HttpClient(origin, timeouts=timeouts)
        self._name = f"{self.kind}@{origin.place}{self.base_path}"[:MAX_NAME_CHARS]

    @classmethod
    async def detect(cls, asker: Asker) -> bool:
        """Whether what answers `asker` is of this kind. A `WaiError` of `asker.get` may pass."""
        del asker
        return False

    @property
    def name(self) -> str:
        """The kind and the place, as `ollama@127.0.0.1:11434`."""
        return self._name

    @property
    def authorization(self) -> Headers:
        """The header that proves us to this upstream, if it wants one."""
        return _bearer(self.key)

    def guard(self, check: Callable[[int | None], None]) -> None:
        """Have `check` called for each new connection, with our port, before a byte is sent, and by
        `check`, with None. It raises `WaiError` where nothing may be sent."""
        self._check = self.client.check_peer = check

    def check(self) -> None:
        """Raise `WaiError` where nothing may be sent to it now. See `guard`."""
        if self._check is not None:
            self._check(None)

    @abc.abstractmethod
    async def probe(self) -> Probe:
        """Ask what it serves now. Raises `WaiError` when it does not answer as its kind should."""

    def lease(
        self,
        ready: Ready,
        failed: Callable[[WaiError], None],
        told: Callable[[Waited], None] = lambda waited: None,
    ) -> Callable[[], None]:
        """A way in for one request: `ready` is called, now or once the model is there, or else
        `failed`. Before that `told` is, if a load was waited for. What is returned ends the lease;
        call it once the answer is over."""
        del failed, told
        ready(self.client, self.base_path, self.authorization)
        return _nothing

    def store(self) -> ModelStore | None:
        """What lets us fetch, load and remove its models; None where it has no way to."""
        return None

    async def find_routes(self, routes: Iterable[Route]) -> frozenset[str] | None:
        """The paths of those of `routes` that it has; None where that is not to be known."""
        return await find_routes(self.ask, routes, self.apis, self.way, self.accepts_websocket)

    async def ask(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Send JSON with our key: (status, body). Raises `WaiError`."""
        headers = [*self.authorization, (b"content-type", b"application/json")]
        status, _, answer = await self.client.fetch(
            *(method, self.base_path + path, headers, body),
            limit_bytes=PROBE_LIMIT_BYTES,
            timeout_s=PROBE_TIMEOUT_S,
        )
        return status, answer

    async def accepts_websocket(self, path: str) -> bool:
        """Whether it agrees to a WebSocket there, which is closed at once. Raises `WaiError`."""
        return await self.client.accepts_websocket(
            self.base_path + path,
            self.authorization,
            limit_bytes=PROBE_LIMIT_BYTES,
            timeout_s=PROBE_TIMEOUT_S,
        )

    async def get(self, path: str) -> tuple[int, Headers, bytes]:
        """`GET path` with our key: (status, headers, body)."""
        return await _get(self.client, self.base_path + path, self.authorization)

    async def get_json(self, path: str, shape: type[T]) -> T:
        """The JSON body of `GET path`, read as `shape`. Raises `WaiError` on anything else."""
        status, _, body = await self.get(path)
        if status in (401, 403):
            message = f"{self.name} refuses the key it was given ({status})"
            raise TransportError(message, Fault.UPSTREAM_UNREACHABLE)
        if status != 200:
            raise TransportError(f"{self.name} answers {status} to {path}", Fault.UPSTREAM_BROKE)
        try:
            return read_json(body, shape, f"the answer to {path}", limit_bytes=PROBE_LIMIT_BYTES)
        except ForeignJsonError as error:
            message = f"{self.name} answers {path} with something else than expected"
            raise TransportError(f"{message}: {error.reason}", Fault.UPSTREAM_BROKE) from error

    def model(self, model_id: str) -> ModelStatus:
        """A `ModelStatus` of this upstream that says no more than the id."""
        return ModelStatus(
            id=model_id, upstream=self.name, apis=self.apis, capabilities=self.capabilities
        )

    def models(self, found: list[ModelStatus]) -> tuple[ModelStatus, ...]:
        """`found` less what STATUS could not carry, which is counted in `left_out`."""
        fitting = [m for m in found if 0 < len(m.id) <= MAX_NAME_CHARS]
        kept = tuple(fitting[:MAX_MODELS])
        self.left_out = len(found) - len(kept)
        return kept

    async def aclose(self) -> None:
        """Close its connections."""
        await self.client.aclose()


def _bearer(key: str) -> Headers:
    return [(b"authorization", b"Bearer " + key.encode())] if key else []


async def _get(client: HttpClient, path: str, headers: Headers) -> tuple[int, Headers, bytes]:
    return await client.fetch(
        *("GET", path, headers), limit_bytes=PROBE_LIMIT_BYTES, timeout_s=PROBE_TIMEOUT_S
    )


def _nothing() -> None:
    """The end of a lease on what is there anyway."""


def metric(text: str, name: str) -> int | None:
    """The sum of a Prometheus gauge over its labels, None where the text does not have it."""
    total: float | None = None
    for line in text.splitlines():
        if line.startswith(name) and line[len(name) : len(name) + 1] in ("{", " "):
            try:
                total = (total or 0.0) + float(line.rsplit(" ", 1)[1])
            except ValueError:
                return None
    if total is None or not 0 <= total < 1 << 40:  # NaN fails both
        return None
    return int(total)
