"""WebSockets through the tunnel, with real clients: what either side says arrives, and each end of
the way ends the whole."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.sync.connection import Connection

from tests.harness.cluster import ApiKey, Cluster, cluster, wai
from tests.harness.odd_upstream import MODELS, odd_upstream
from tests.harness.processes import wait_until
from tests.harness.realtime_server import USAGE, WORDS, RealtimeServer, realtime_server
from tests.harness.tcp_proxy import TcpProxy, tcp_proxy

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), pytest.mark.xdist_group("realtime")]

UPSTREAM_KEY = "key-of-the-realtime-server"
PATIENCE_S = 60.0  # for a handshake on a busy machine, where websockets would give it 10


@dataclass(frozen=True, slots=True)
class Talked:
    """A relay with a node `voice`, whose tunnel goes through `proxy`, and one that has no
    WebSocket."""

    cluster: Cluster
    server: RealtimeServer
    proxy: TcpProxy
    key: ApiKey

    def connect(self, key: str = "", query: str = "?model=voice", **options: Any) -> Connection:
        url = self.cluster.url.replace("https", "wss") + "/v1/realtime" + query
        headers = {"Authorization": f"Bearer {key or self.key.secret}"}
        options |= {"open_timeout": PATIENCE_S, "max_size": None}
        return connect(url, ssl=self.cluster.tls(), additional_headers=headers, **options)

    def until_closed(self, count: int) -> int:
        """The code with which the server's WebSocket number `count` was closed."""
        wait_until(lambda: len(self.server.closed) >= count, "the server's WebSocket is open")
        return self.server.closed[count - 1]


@pytest.fixture(scope="module")
def talked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Talked]:
    folder = tmp_path_factory.mktemp("talked")
    with ExitStack() as ending:
        server = ending.enter_context(realtime_server(key=UPSTREAM_KEY))
        odd = ending.enter_context(odd_upstream())
        running = ending.enter_context(cluster(folder))
        proxy = ending.enter_context(tcp_proxy(running.port))
        through = ("--relay", proxy.address)
        running.add_node("voice", server.url, upstream_key=UPSTREAM_KEY, options=through)
        running.add_node("odd", odd.url, models=len(MODELS))
        yield Talked(running, server, proxy, running.create_key())


def said(connection: Connection) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(connection.recv(timeout=20))
    return event


def say(connection: Connection, kind: str, **fields: Any) -> None:
    connection.send(json.dumps({"type": kind, **fields}))


def test_speech_goes_in_and_text_comes_out(talked: Talked) -> None:
    before = len(talked.server.closed)
    with talked.connect() as ours:
        assert ours.response is not None
        assert ours.response.headers["x-wai-node"] == "voice"
        assert said(ours)["type"] == "session.created"
        for _ in range(50):
            say(ours, "input_audio_buffer.append", audio=base64.b64encode(bytes(3200)).decode())
        say(ours, "input_audio_buffer.commit", final=True)
        assert [said(ours)["delta"] for _ in WORDS] == list(WORDS)
        done = said(ours)
        assert (done["text"], done["usage"]) == ("160000 bytes", USAGE)
    assert talked.until_closed(before + 1) == 1000


def test_frames_of_any_kind_and_length_come_back_as_they_were(talked: Talked) -> None:
    with talked.connect() as ours:
        said(ours)
        for size in (0, 1, 125, 126, 65_535, 65_536, 3_000_000):
            data = os.urandom(size)
            ours.send(data)
            assert ours.recv(timeout=30) == data
        ours.send([b"in", b" several", b" frames"])
        assert ours.recv(timeout=20) == b"in several frames"
        assert ours.ping().wait(20)


def test_a_tunnel_that_is_cut_again_and_again_is_not_noticed(talked: Talked) -> None:
    cuts = talked.proxy.cuts
    with talked.connect() as ours:
        said(ours)
        for number in range(4):
            sent = [os.urandom(40_000) for _ in range(10)]
            talked.proxy.cut_after(100_000 + 50_000 * number)
            for data in sent:
                ours.send(data)
            assert [ours.recv(timeout=30) for _ in sent] == sent
            wait_until(lambda: not talked.proxy.cut_is_due, "nothing was cut")
            time.sleep(1.05)  # a node takes a shorter connection as a reason to slow down
    assert talked.proxy.cuts == cuts + 4


def test_openais_own_client_talks(talked: Talked) -> None:
    import openai  # takes seconds: not for every worker of the tests

    client = openai.OpenAI(api_key=talked.key.secret, base_url=talked.cluster.base_url)
    options: Any = {"ssl": talked.cluster.tls(), "open_timeout": PATIENCE_S}
    with client.realtime.connect(model="voice", websocket_connection_options=options) as ours:
        text = ""
        ours.response.create()
        for event in ours:
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.done":
                break
        assert text == "".join(WORDS)


def test_what_a_conversation_cost_is_in_the_books(talked: Talked) -> None:
    key = talked.cluster.create_key("speaker")
    with talked.connect(key.secret) as ours:
        said(ours)
        for _ in range(2):
            say(ours, "response.create")
            for _ in range(len(WORDS) + 1):
                said(ours)

    def tokens() -> tuple[int, int, int]:
        rows = json.loads(wai("usage", "--key", key.id, "--data", talked.cluster.data, "--json"))
        names = ("requests", "prompt_tokens", "completion_tokens")
        requests, prompt, completion = (sum(row[name] for row in rows) for name in names)
        return requests, prompt, completion

    wait_until(lambda: tokens() == (1, 40, 6), "the usage is not written")


def test_a_key_that_may_do_nothing_opens_nothing(talked: Talked) -> None:
    before = len(talked.server.heads)
    for key, query, status in (
        ("wai_sk_wrong", "?model=voice", 401),
        ("", "?model=nobody", 404),
        ("", f"?model={next(iter(MODELS))}", 404),  # its server has no WebSocket
    ):
        with pytest.raises(InvalidStatus) as refused:
            talked.connect(key, query)
        assert refused.value.response.status_code == status
        assert json.loads(refused.value.response.body or b"")["error"]["message"]
    assert len(talked.server.heads) == before


def test_the_server_gets_its_own_key_and_none_of_the_callers(talked: Talked) -> None:
    with talked.connect(subprotocols=["realtime"]) as ours:
        said(ours)
    head = talked.server.heads[-1]
    assert head.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert head.headers["sec-websocket-protocol"] == "realtime"
    assert "sec-websocket-extensions" not in head.headers  # we could not read what passes
    assert talked.key.secret not in str(head.headers)


def test_a_caller_that_vanishes_frees_the_server(talked: Talked) -> None:
    before = len(talked.server.closed)
    ours = talked.connect()
    said(ours)
    ours.socket.shutdown(socket.SHUT_RDWR)
    assert talked.until_closed(before + 1) == 1006


def test_a_server_that_vanishes_is_told_to_the_caller(talked: Talked) -> None:
    with talked.connect() as ours:
        said(ours)
        say(ours, "test.vanish")
        with pytest.raises(ConnectionClosed) as closed:
            said(ours)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1011


def test_a_node_that_is_killed_ends_its_conversations(talked: Talked, tmp_path: Path) -> None:
    with realtime_server("other") as server:
        node = talked.cluster.add_node("mortal", server.url)
        try:
            with talked.connect(query="?model=other") as ours:
                said(ours)
                node.daemon.kill()
                wai("node", "remove", "mortal", "--data", talked.cluster.data)
                with pytest.raises(ConnectionClosed) as closed:
                    said(ours)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code in (1011, 1013)
        finally:
            node.daemon.stop()
