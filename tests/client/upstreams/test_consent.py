"""On a shared machine another person's server gets no prompt without a yes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.harness.real import require_real
from wai_cli.main import main
from wai_node.upstreams import Board, Consent, Verdict, Watch, find_upstreams, look_around
from wai_node.upstreams.consent import ANSWERS_FILE
from wai_node.upstreams.listeners import listening_uids, uids_in
from wai_node.upstreams.upstream import Upstream
from wai_protocol.errors import TransportError
from wai_protocol.status import NodeStatus

US, BOB, EVE, OLLAMA = 1000, 1001, 1002, 998
PORT: Final = 8080
LISTED: Final = b'{"data": [{"id": "m"}]}'
WAIT_S: Final = 20.0


def consent(data: Path, *uids: int) -> Consent:
    return Consent(data, uids=lambda port, peer: frozenset(uids), our_uid=US)


@pytest.mark.parametrize("uid", [US, 0, OLLAMA, 1, 999, 61184, 65519])
def test_our_own_roots_and_services_servers_are_used(tmp_path: Path, uid: int) -> None:
    assert consent(tmp_path, uid).judge(PORT).verdict is Verdict.ALLOWED
    consent(tmp_path, uid).check(PORT)


@pytest.mark.parametrize(
    "uids", [(BOB,), (US, BOB), (0, EVE), (65534,), (65520,), (61183,), (2**32 - 2,), ()]
)
def test_anybody_elses_waits(tmp_path: Path, uids: tuple[int, ...]) -> None:
    one = consent(tmp_path, *uids)
    assert one.judge(PORT).verdict is Verdict.WAITING
    with pytest.raises(TransportError, match="wai node upstream list"):
        one.check(PORT)


def test_an_answer_is_for_that_port_and_that_user(tmp_path: Path) -> None:
    consent(tmp_path).answer(PORT, BOB, allowed=True)
    assert consent(tmp_path, BOB).judge(PORT).verdict is Verdict.ALLOWED
    assert consent(tmp_path, BOB).judge(8000).verdict is Verdict.WAITING
    assert consent(tmp_path, EVE).judge(PORT).verdict is Verdict.WAITING
    assert consent(tmp_path, BOB, EVE).judge(PORT).verdict is Verdict.WAITING
    consent(tmp_path).answer(PORT, BOB, allowed=False)
    assert consent(tmp_path, BOB, EVE).judge(PORT).verdict is Verdict.DENIED
    consent(tmp_path).answer(PORT, US, allowed=False)
    assert consent(tmp_path, US).judge(PORT).verdict is Verdict.DENIED
    assert (tmp_path / ANSWERS_FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["", "[]", '{"answers": 1}', '{"answers": [{"port": 1}]}', "\0"])
def test_a_damaged_file_allows_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / ANSWERS_FILE).write_text(text)
    assert consent(tmp_path, BOB).judge(PORT).verdict is Verdict.WAITING


def test_it_is_said_once_for_each_user(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = consent(tmp_path, BOB)
    for _ in range(3):
        one.tell("openai@127.0.0.1:8080", PORT, one.judge(PORT))
    other = consent(tmp_path, EVE).judge(PORT)
    one.tell("openai@127.0.0.1:8080", PORT, other)
    assert len(caplog.messages) == 2
    assert "wai node upstream allow 8080" in caplog.messages[0]


def test_the_kernels_table_is_read() -> None:
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"

    def row(local: str, state: str, uid: int) -> str:
        return f"   0: {local} 0100007F:C001 {state} 0:0 00:0 0  {uid}  0 {4711 if uid else 0} 1"

    def table(*rows: str) -> str:
        return head + "\n".join(rows) + "\n"

    mapped = "0000000000000000FFFF00000100007F"
    assert uids_in(table(row("0100007F:1F90", "0A", BOB)), PORT) == {BOB}
    assert uids_in(table(row("00000000:1F90", "0A", BOB)), PORT) == {BOB}
    assert uids_in(table(row(f"{'0' * 32}:1F90", "0A", BOB)), PORT) == {BOB}
    assert uids_in(table(row(f"{mapped}:1F90", "0A", BOB)), PORT) == {BOB}
    assert uids_in(table(row("0100007F:1F90", "01", BOB)), PORT) == set(), "a connection"
    assert uids_in(table(row("0100007F:1F91", "0A", BOB)), PORT) == set(), "another port"
    assert uids_in(table(row("0200007F:1F90", "0A", BOB)), PORT) == set(), "127.0.0.2"
    assert uids_in(table("", "damaged", "0: x:1F90"), PORT) == set()
    accepted = table(row("0100007F:1F90", "0A", 0), row("0100007F:1F90", "01", EVE))
    assert uids_in(accepted, PORT, 0xC001) == {0, EVE}, "who accepted it"
    assert uids_in(accepted, PORT, 0xC002) == {0}, "another's connection"
    assert uids_in(table(row("0100007F:1F90", "01", 0)), PORT, 0xC001) == set(), "not accepted yet"


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("way", ["netlink", "table"])
def test_real_sockets_are_found(
    family: socket.AddressFamily, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "table":
        monkeypatch.setattr("wai_node.upstreams.listeners.listeners", _refused)
    dual = family is socket.AF_INET6
    where = ("::" if dual else "127.0.0.1", 0)
    with socket.create_server(where, family=family, dualstack_ipv6=dual) as listener:
        port = listener.getsockname()[1]
        assert listening_uids(port) == frozenset({os.geteuid()})
        ours = socket.create_connection(("127.0.0.1", port))
        waits = socket.create_connection(("127.0.0.1", port))
        theirs, _ = listener.accept()
    with ours, theirs, waits:
        assert listening_uids(port) == frozenset()
        assert listening_uids(port, waits.getsockname()[1]) == frozenset()
        assert listening_uids(port, ours.getsockname()[1]) == frozenset({os.geteuid()})


def _refused(port: int) -> list[object]:
    raise PermissionError


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


class Server:
    """An OpenAI-style server at a socket of user `uid`'s, and all that it was sent."""

    def __init__(self, uid: int, port: int = 0) -> None:
        with as_user(uid):
            self._socket = socket.create_server(("127.0.0.1", port))
        self.port = int(self._socket.getsockname()[1])
        self.seen = b""
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, sock=self._socket)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        while data := await reader.read(65536):
            self.seen += data
            known = b"GET /v1/models " in data
            status, body = (b"200 OK", LISTED) if known else (b"404 Not Found", b"")
            writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))


@pytest.mark.anyio
async def test_a_strangers_server_is_shown_and_gets_no_requests(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    require_real("root")
    caplog.set_level(logging.WARNING)
    server = Server(BOB)
    await server.start()
    here, ports = Consent(tmp_path), (server.port,)
    waiting: list[list[str]] = []
    assert await find_upstreams(here, ports, on_waiting=waiting.append) == []
    assert waiting == [[f"openai@127.0.0.1:{server.port} of user {BOB}"]]
    [message] = caplog.messages
    assert f"wai node upstream allow {server.port}" in message
    here.answer(server.port, BOB, allowed=True)
    [upstream] = await find_upstreams(here, ports, on_waiting=waiting.append)
    assert waiting[-1] == []
    assert (await upstream.probe()).models
    await upstream.aclose()
    await server.stop()


@pytest.mark.anyio
async def test_who_takes_the_port_of_a_server_that_ended_sees_not_a_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_real("root")
    for name in ("HURRIED_POLL_S", "POLL_S", "DISCOVER_S"):
        monkeypatch.setattr(f"wai_node.upstreams.watch.{name}", 0.02)
    ours = Server(0)
    await ours.start()
    [found] = await look_around(Consent(tmp_path), (ours.port,))
    statuses: list[NodeStatus] = []
    first: list[Upstream] = [found.upstream]

    async def discover(known: frozenset[int]) -> list[Upstream]:
        return [first.pop()] if first else []

    async def until(ready: list[bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not statuses or [m.ready for m in statuses[-1].models] != ready:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    watch = Watch(Board(), statuses.append, discover=discover)
    running = asyncio.get_running_loop().create_task(watch.run())
    await until([True])
    await ours.stop()
    thief = Server(EVE, ours.port)
    await thief.start()
    await until([False])
    for _ in range(20):
        with pytest.raises(TransportError, match="belongs to"):
            await found.upstream.get("/v1/models")
        await asyncio.sleep(0.01)
    assert thief.seen == b""
    await thief.stop()
    again = Server(0, ours.port)
    await again.start()
    await until([True])
    running.cancel()
    await again.stop()


def test_the_commands_keep_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "membership.json").write_text("{}")
    where = ("--data", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        assert main(["node", "upstream", "deny", port, *where]) == 0
        assert "not to be used" in capsys.readouterr().out
        assert Consent(tmp_path).judge(int(port)).verdict is Verdict.DENIED
        assert main(["node", "upstream", "allow", port, *where]) == 0
        assert Consent(tmp_path).judge(int(port)).verdict is Verdict.ALLOWED
    assert main(["node", "upstream", "list", "--json", *where]) == 0
    assert main(["node", "upstream", "allow", port, *where]) == 1
    assert "--upstream URL" in capsys.readouterr().err
    assert main(["node", "upstream", "allow", port, "--data", str(tmp_path / "none")]) == 1
