"""Prompts and keys go to the server that we started, whatever a model file or a thief says."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
import pytest

from tests.harness.fake_hub import FakeHub, FakeRepo
from tests.harness.real import require_real
from tests.harness.supervised import ALIAS, KEY, REPO, Node, node, servers, settings_in
from tests.harness.tiny_gguf import TinyModel, tiny_gguf
from tests.harness.unix_http import ask
from wai_node.managed.deployment import State
from wai_node.managed.entry import ServerAccess
from wai_node.managed.server.server_socket import ServerSocket, remove_left_sockets
from wai_node.models.buffer_log import read_buffers
from wai_transport.origin import MAX_SOCKET_PATH_BYTES, Origin

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

CRASHES: Final = 3


class Thief:
    """Takes whatever comes to its port, and answers as a server that is ready."""

    def __init__(self, port: int = 0) -> None:
        self.seen = b""
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.seen += connection.recv(65536)
                body = json.dumps({"status": "ok", "total_slots": 1}).encode()
                head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
                connection.sendall(head + body)

    def close(self) -> None:
        self._listener.close()


@contextmanager
def hub_with(folder: Path, title: str = "") -> Iterator[FakeHub]:
    require_real("llama-server")
    content = tiny_gguf(folder / "gguf", TinyModel(title=title)).read_bytes()
    with FakeHub({REPO: FakeRepo({"tiny-F16.gguf": content})}) as hub:
        yield hub


@pytest.mark.parametrize(
    "words",
    [
        "main: server is listening on http://127.0.0.1:{port} - starting the main loop",
        "llama_server: listening on http://127.0.0.1:{port}",
        "listening on unix:///tmp/thief.sock; ready http://localhost:{port}",
        "x\n0.00.001.000 I srv  llama_server: listening on http://127.0.0.1:{port}\n",
    ],
)
async def test_a_model_file_does_not_say_where_prompts_go(tmp_path: Path, words: str) -> None:
    thief = Thief()
    try:
        with hub_with(tmp_path, words.format(port=thief.port)) as hub:
            async with node(hub, settings_in(tmp_path)) as n:
                await n.supervisor.deploy(REPO, 1024, 1)
                await n.until_state(State.READY)
                assert (await n.complete())["choices"]
                assert str(thief.port) in "\n".join(await n.supervisor.logs(ALIAS, 1000))
    finally:
        thief.close()
    assert thief.seen == b""


async def test_a_crashed_servers_place_is_nobodys_and_its_key_opens_nothing(
    tmp_path: Path,
) -> None:
    with hub_with(tmp_path) as hub:
        async with node(hub, settings_in(tmp_path)) as n:
            await n.supervisor.deploy(REPO, 1024, 1)
            keys: list[str] = []
            for _ in range(CRASHES):
                await n.until_state(State.READY)
                [endpoint] = n.supervisor.serving().values()
                keys.append(endpoint.key)
                [server] = servers()
                ports = [c for c in server.net_connections() if c.status == "LISTEN"]
                assert ports == [], "it can be reached by others"
                path = Origin.parse(endpoint.url)[0].host
                assert stat.S_IMODE(os.stat(Path(path).parent).st_mode) == 0o700
                server.kill()
                await n.until(partial(_gone, n, endpoint))
            await n.until_state(State.READY)
            [endpoint] = n.supervisor.serving().values()
            assert len({*keys, endpoint.key}) == CRASHES + 1
            for key in keys:
                with pytest.raises(OSError, match="401"):
                    await anyio.to_thread.run_sync(ask, endpoint.url, "/props", key)
            assert KEY in endpoint.key
            assert endpoint.key not in repr(endpoint)


def _gone(n: Node, endpoint: ServerAccess) -> bool:
    served = endpoint in n.supervisor.serving().values()
    return not served and not os.path.exists(Origin.parse(endpoint.url)[0].host)


async def test_two_models_have_no_key_in_common(tmp_path: Path) -> None:
    content = tiny_gguf(tmp_path / "gguf").read_bytes()
    require_real("llama-server")
    other = "tiny/other-GGUF"
    repos = {name: FakeRepo({"tiny-F16.gguf": content}) for name in (REPO, other)}
    with FakeHub(repos) as hub:
        async with node(hub, settings_in(tmp_path)) as n:
            for name in repos:
                alias = await n.supervisor.deploy(name, 1024, 1)
                await n.until_state(State.READY, alias)
            endpoints = list(n.supervisor.serving().values())
            assert len({e.key for e in endpoints}) == len({e.url for e in endpoints}) == 2


def test_a_folder_whose_path_is_too_long_for_a_socket_is_replaced(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120) / "run"
    place = ServerSocket(long)
    assert len(str(place.path)) <= MAX_SOCKET_PATH_BYTES
    assert stat.S_IMODE(place.path.parent.stat().st_mode) == 0o700
    place.remove()
    assert not place.path.parent.exists()
    assert not long.exists()


def test_what_a_killed_node_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.sock").write_bytes(b"")
    (tmp_path / "mine").write_bytes(b"")
    remove_left_sockets(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "line",
    [
        "CPU model buffer size = 1.2.3 MiB",
        "CPU model buffer size = ...... MiB",
        f"CPU model buffer size = {'9' * 400} MiB",
        f"{'x' * 5000} model buffer size = 1 MiB",
    ],
)
def test_figures_that_a_model_file_forges_break_nothing(line: str) -> None:
    seen: Any = read_buffers([line, "CPU_Mapped model buffer size = 11.00 MiB"])
    assert seen.weights < 1 << 60
