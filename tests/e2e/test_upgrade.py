"""A relay is upgraded under load, and no caller notices."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.harness.caller import chat, events, request
from tests.harness.cluster import Cluster, cluster
from tests.harness.odd_upstream import COUNT, MODELS, odd_upstream
from tests.harness.processes import wait_until

pytestmark = [pytest.mark.long, pytest.mark.e2e]

STREAMS: Final = 50
ASKERS: Final = 10
EVERY_S: Final = 0.2  # each asker; together 50 requests a second
UPGRADES: Final = 2


def relay_pid(running: Cluster) -> int:
    """The process that says it is the relay."""
    pid: int = json.loads((running.data / "relay.json").read_text())["pid"]
    return pid


def upgrade(running: Cluster) -> int:
    """SIGUSR2, until a new process is the relay; its id."""
    old = relay_pid(running)
    os.kill(old, signal.SIGUSR2)
    wait_until(lambda: relay_pid(running) != old, "no new relay took over")
    return relay_pid(running)


def read_counted(running: Cluster, secret: str) -> list[str]:
    """The words of one counted stream, as the caller gets them."""
    headers = {"Authorization": f"Bearer {secret}"}
    with request(running, "/v1/chat/completions", chat("counts", stream=True), headers) as answer:
        assert answer.status == 200, answer.read()
        return list(events(answer))


class Asker(threading.Thread):
    """Asks for small answers on one kept-alive connection until told to stop."""

    def __init__(self, running: Cluster, secret: str, stop: threading.Event) -> None:
        super().__init__()
        self._running = running
        self._headers = {
            "Authorization": f"Bearer {secret}",
            "Content-Type": "application/json",
        }
        self._stop_asking = stop
        self.answered = 0
        self.failed: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self._running.port, context=self._running.tls(), timeout=30
        )
        while not self._stop_asking.is_set():
            try:
                connection.request("POST", "/v1/chat/completions", chat("answers"), self._headers)
                with connection.getresponse() as answer:
                    body = answer.read()
                if answer.status == 200:
                    self.answered += 1
                else:
                    self.failed.append(f"{answer.status} {body[:200]!r}")
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(repr(error))
                connection.close()
            self._stop_asking.wait(EVERY_S)
        connection.close()


def test_upgrade_under_load_fails_no_request_and_breaks_no_stream(tmp_path: Path) -> None:
    with odd_upstream() as upstream, cluster(tmp_path) as running:
        running.add_node("box", upstream.url, models=len(MODELS))
        secret = running.create_key().secret
        stop = threading.Event()
        askers = [Asker(running, secret, stop) for _ in range(ASKERS)]
        with ThreadPoolExecutor(STREAMS) as pool:
            streams = [pool.submit(read_counted, running, secret) for _ in range(STREAMS)]
            for asker in askers:
                asker.start()
            successor = 0
            try:
                for _ in range(UPGRADES):
                    time.sleep(1.0)  # load on each relay in turn, streams begun at each
                    streams += [pool.submit(read_counted, running, secret) for _ in range(5)]
                    successor = upgrade(running)
                results = [stream.result(timeout=60) for stream in streams]
            finally:
                stop.set()
                for asker in askers:
                    asker.join()
                if successor:
                    os.kill(successor, signal.SIGTERM)
    assert [failure for asker in askers for failure in asker.failed] == []
    assert sum(asker.answered for asker in askers) > 0
    whole = [*(str(number) for number in range(COUNT)), "[DONE]"]
    for result in results:
        assert [words(data) for data in result] == whole


def words(data: str) -> str:
    """The text in an event's data."""
    if data == "[DONE]":
        return data
    text: str = json.loads(data)["choices"][0]["delta"]["content"]
    return text.strip()


def test_successor_that_can_not_start_leaves_the_relay_as_it_was(tmp_path: Path) -> None:
    with odd_upstream() as upstream, cluster(tmp_path) as running:
        running.add_node("box", upstream.url, models=len(MODELS))
        secret = running.create_key().secret
        old = relay_pid(running)
        (running.data / "relay-tls.key").rename(running.data / "hidden")
        (running.data / "relay-tls.key").write_bytes(b"not a key")
        os.kill(old, signal.SIGUSR2)
        running.relay.wait_for_output("upgrade failed")
        headers = {"Authorization": f"Bearer {secret}"}
        with request(running, "/v1/chat/completions", chat("answers"), headers) as answer:
            assert answer.status == 200
        assert relay_pid(running) == old
        # The successor had signed the lock: whoever starts another relay must be told of this one.
        assert (running.data / "relay.lock").read_text().strip() == str(old)


def test_sigterm_ends_a_successor_that_has_not_taken_over_yet(tmp_path: Path) -> None:
    with cluster(tmp_path) as running:
        running.relay.send(signal.SIGUSR2)
        running.relay.wait_for_output("starting a new relay")
        assert running.relay.stop() == 0
        assert running.relay.family() == []


def test_a_service_manager_is_told_of_no_successor_that_has_not_taken_over(tmp_path: Path) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        manager.settimeout(20)
        with cluster(tmp_path, env={"NOTIFY_SOCKET": str(address)}) as running:
            ours = f"MAINPID={running.relay.pid}"
            assert manager.recv(200).decode() == f"{ours}\nREADY=1"
            running.relay.send(signal.SIGUSR2)
            running.relay.wait_for_output("starting a new relay")
            assert running.relay.stop() == 0
            assert manager.recv(200).decode() == f"{ours}\nSTOPPING=1"
            manager.setblocking(False)
            with pytest.raises(BlockingIOError):
                manager.recv(200)


def test_sigterm_ends_a_successor_that_hangs(tmp_path: Path) -> None:
    with cluster(tmp_path) as running:
        running.relay.send(signal.SIGUSR2)
        wait_until(lambda: len(running.relay.family()) == 2, "no successor is started")
        for process in running.relay.family():
            if process.pid != running.relay.pid:
                process.suspend()
        assert running.relay.stop() == 0
        assert running.relay.family() == []


def test_a_relay_that_was_told_to_stop_starts_no_successor(tmp_path: Path) -> None:
    with odd_upstream() as upstream, cluster(tmp_path) as running:
        running.add_node("box", upstream.url, models=len(MODELS))
        headers = {"Authorization": f"Bearer {running.create_key().secret}"}
        body = chat("waits", stream=True)
        with request(running, "/v1/chat/completions", body, headers) as response:
            arriving = events(response)
            next(arriving)
            running.relay.send(signal.SIGTERM)
            running.relay.wait_for_output("stopping")
            running.relay.send(signal.SIGUSR2)
            running.relay.wait_for_output("upgrade")
            upstream.seen.release.set()
            assert list(arriving)[-1] == "[DONE]"
        assert running.relay.wait() == 0
        assert running.relay.family() == []


def test_sigterm_to_a_relay_that_was_succeeded_ends_that_process_alone(tmp_path: Path) -> None:
    with odd_upstream() as upstream, cluster(tmp_path) as running:
        running.add_node("box", upstream.url, models=len(MODELS))
        headers = {"Authorization": f"Bearer {running.create_key().secret}"}
        body = chat("waits", stream=True)
        with request(running, "/v1/chat/completions", body, headers) as response:
            arriving = events(response)
            next(arriving)
            successor = upgrade(running)
            running.relay.wait_for_output("stopping")
            assert running.relay.stop() == 0
            assert "error" in list(arriving)[-1]
        assert [process.pid for process in running.relay.family()] == [successor]
        with request(running, "/healthz") as answer:
            assert answer.status == 200
        os.kill(successor, signal.SIGTERM)
        wait_until(lambda: running.relay.family() == [], "the successor does not stop")


def test_a_successor_that_is_stopped_while_it_starts_leaves_the_relay_as_it_was(
    tmp_path: Path,
) -> None:
    with cluster(tmp_path) as running:
        running.relay.send(signal.SIGUSR2)
        wait_until(lambda: len(running.relay.family()) == 2, "no successor is started")
        for process in running.relay.family():
            if process.pid != running.relay.pid:
                process.terminate()
        running.relay.wait_for_output("upgrade failed, this relay goes on")
        assert relay_pid(running) == running.relay.pid
        with request(running, "/healthz") as answer:
            assert answer.status == 200
        assert running.relay.stop() == 0
