"""What tests of the admin API and the dashboard share: a fleet that is told what it is, and the app
driven as ASGI."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tests.relay.conftest import Clock
from wai_protocol.identity import NodeKey, RelayKey, node_id
from wai_protocol.status import NodeStatus
from wai_relay.access.admins import Admins
from wai_relay.access.audit import AuditLog
from wai_relay.access.keys import KeyRing
from wai_relay.access.sign_ins import SignIns
from wai_relay.admin.app import BASE
from wai_relay.admin.context import Context
from wai_relay.admin.events import Feed
from wai_relay.admin.live_nodes import now_of
from wai_relay.admin.peers import Peers
from wai_relay.contracts.records import DiscardingRecorder, UsageState
from wai_relay.dashboard.app import create_app
from wai_relay.fleet.invites import InviteAddress, Invites
from wai_relay.fleet.registry import NodeRecord, NodeRegistry, no_such_node
from wai_relay.fleet.relays import Relays
from wai_relay.gateway.replay import Replays
from wai_relay.health.clock import ClockWatch
from wai_relay.health.condition import RelayCondition
from wai_relay.health.folder_probe import FolderProbe
from wai_relay.health.health import Health
from wai_relay.http.exchange import Exchange
from wai_relay.notify.config import NotifyConfig
from wai_relay.notify.notifier import Notifier
from wai_relay.observe.captures import Captures
from wai_relay.observe.explain import Explanations
from wai_relay.observe.live import LiveRequests
from wai_relay.observe.node_hours import NodeHours
from wai_relay.observe.outcomes import Outcomes
from wai_relay.observe.pulse import Pulse
from wai_relay.policy.months import MonthTokens
from wai_relay.settings import SettingsBook
from wai_relay.storage import SqliteStore
from wai_relay.usage import RequestHistory, UsageReport
from wai_transport.folder import DataFolder

TOKEN = "wai_at_test"
PUBLIC = NodeKey.generate().public


@dataclass
class FakeNode:
    record: NodeRecord
    state: str = "ready"
    status: NodeStatus = field(default_factory=NodeStatus)
    reconnects: int = 0
    rtt_s: float | None = None
    copied: bool = False
    agent: str = "wai/0.1.0"
    connected: bool = True
    connected_at: float | None = 1.8e9
    told_by: str = "run"
    answers: dict[str, Any] = field(default_factory=dict)
    """What it answers to each CALL: a value, or an error to raise."""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    watched: list[float] = field(default_factory=list)
    """For how long each `hardware.watch` was to be; these are in no other list."""

    async def call(self, method: str, params: dict[str, Any], *, timeout_s: float = 60.0) -> Any:
        if method == "hardware.watch" and method not in self.answers:
            self.watched.append(params["seconds"])
            return None
        self.calls.append((method, params))
        answer = self.answers[method]
        if isinstance(answer, Exception):
            raise answer
        return answer


class FakeFleet:
    def __init__(self) -> None:
        self.known: list[FakeNode] = []

    def nodes(self) -> Iterable[FakeNode]:
        return self.known

    def find(self, name_or_id: str) -> FakeNode | None:
        return next((n for n in self.known if name_or_id in (n.record.id, n.record.name)), None)

    async def remove(self, name_or_id: str) -> NodeRecord:
        node = self.find(name_or_id)
        if node is None:
            raise no_such_node(name_or_id)
        self.known.remove(node)
        return node.record

    async def drain(self, name_or_id: str, *, drained: bool = True) -> None:
        node = self.find(name_or_id)
        assert node is not None
        node.state = "draining" if drained else "ready"

    async def set_slots(self, name_or_id: str, upstream: str, slots: int | None) -> None:
        node = self.find(name_or_id)
        assert node is not None
        kept = {**node.record.slots, upstream: slots}
        node.record = replace(node.record, slots={n: s for n, s in kept.items() if s is not None})

    async def rename(self, name_or_id: str, name: str) -> None:
        node = self.find(name_or_id)
        assert node is not None
        node.record = replace(node.record, name=name)


class Ticker:
    """`call_later` of which the test says when it is later."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Ticker:
        self.due = [call]
        return self

    def cancel(self) -> None:
        self.due = []

    def tick(self) -> None:
        due, self.due = self.due, []
        for call in due:
            call()


@dataclass
class Api:
    """The app and what it works on."""

    app: Any
    context: Context
    fleet: FakeFleet
    ticker: Ticker

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str | None = TOKEN,
        raw: bytes | None = None,
    ) -> tuple[int, Any]:
        status, _, answer = await self.request(method, path, body, token=token, raw=raw)
        return status, json.loads(answer)

    async def request(
        self, method: str, path: str, body: object, *, token: str | None, raw: bytes | None
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        sent = raw if raw is not None else (b"" if body is None else json.dumps(body).encode())
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return await exchange(self.app, method, BASE + path, headers, sent)


async def exchange(
    app: Any,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    sent: bytes = b"",
    *,
    address: str | None = None,
) -> tuple[int, dict[bytes, bytes], bytes]:
    """One request to an ASGI app: status, headers and body of its answer."""
    pieces = [sent[i : i + 4096] for i in range(0, len(sent), 4096)] or [b""]
    path, _, query = path.partition("?")
    answers: list[Any] = []

    async def receive() -> dict[str, Any]:
        body = pieces.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        answers.append(message)

    given = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"relay"), *given],
        "client": None if address is None else (address, 40_000),
        "server": None,
    }
    await app(scope, receive, send)
    answer = b"".join(message.get("body", b"") for message in answers[1:])
    return answers[0]["status"], dict(answers[0]["headers"]), answer


async def no_gateway(exchange: Exchange) -> None:
    """What a request gets that is sent again where there is no gateway."""
    raise AssertionError("this test sends no request")


async def make_api(
    store: SqliteStore, clock: Clock, handle: Callable[[Exchange], Awaitable[None]] = no_gateway
) -> Api:
    """The admin API and the dashboard over an empty store and fleet. `handle`: the gateway's."""
    registry = await NodeRegistry.load(store, clock)
    fleet, ticker = FakeFleet(), Ticker()
    live, audit, keys = LiveRequests(), AuditLog(store, clock), await KeyRing.load(store, clock)
    admins = await Admins.load(store, TOKEN, clock)
    hours = NodeHours(
        DiscardingRecorder(), lambda: [now_of(node, None) for node in fleet.known], wall_clock=clock
    )
    feed = Feed(
        *(fleet, live, Pulse(DiscardingRecorder()), audit, keys.name_of),
        figures=hours.rows,
        call_later=ticker.call_later,
    )
    context = Context(
        fleet=fleet,
        keys=keys,
        invites=Invites(store, registry, clock),
        admins=admins,
        audit=audit,
        settings=await SettingsBook.load(store, clock),
        usage=UsageReport(store),
        history=RequestHistory(store),
        months=MonthTokens(clock()),
        live=live,
        sign_ins=await SignIns.load(store, admins, clock),
        feed=feed,
        explanations=Explanations(),
        node_hours=hours,
        captures=Captures(wall_clock=clock),
        replays=Replays(handle, keys),
        address=InviteAddress("https://relay.example:8443", b"r" * 32, b"p" * 32),
        version="0.1.0",
        relays=(relays := Relays(store, "relay_own")),
        peers=Peers(relays, RelayKey.generate(), admins.knows, clock=clock),
        health=Health(
            RelayCondition(
                lambda: 2e9, lambda: UsageState(0, 0, behind=False), FolderProbe(Path("/"))
            ),
            nodes=fleet.nodes,
            outcomes=Outcomes(DiscardingRecorder(), clock),
            deployed=feed.deployed.rows.values,
            clock_watch=ClockWatch(lambda: True),
            clock=clock,
        ),
        notifier=Notifier(NotifyConfig(), (), DataFolder(Path("/")), lambda: "https://relay"),
        clock=clock,
    )
    return Api(create_app(context), context, fleet, ticker)


def make_node(**changes: Any) -> FakeNode:
    record = NodeRecord(node_id(PUBLIC), "box", PUBLIC, 1.8e9)
    return dataclasses.replace(FakeNode(record), **changes)
