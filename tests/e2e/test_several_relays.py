"""Relays that share a database are one fleet: what is made or changed at one holds at all."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from tests.harness.caller import chat, events, request
from tests.harness.cluster import Cluster, CommandError, wai
from tests.harness.counting_upstream import MODEL, CountingUpstream, counting_upstream
from tests.harness.postgres import PostgresServer
from tests.harness.processes import Daemon, free_port, wait_until
from tests.harness.real import script
from tests.harness.relays import ids_of, is_good, listed, own_id, relays, status_of

# One worker has them all, since they share a fleet.
pytestmark = [
    pytest.mark.long,
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("relays"),
]


@pytest.fixture(scope="module")
def upstream() -> Iterator[CountingUpstream]:
    with counting_upstream() as running:
        yield running


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, upstream: CountingUpstream
) -> Iterator[list[Cluster]]:
    """Three relays, and one node that joined the first one."""
    folder = tmp_path_factory.mktemp("fleet")
    with PostgresServer() as server:
        url = server.create_database("fleet")
        with relays(folder, url) as running:
            running[0].add_node("box", upstream.url)
            for relay in running:
                wait_until(partial(serves, relay), f"box is not ready at {relay.port}")
            yield running


def serves(relay: Cluster) -> bool:
    return relay.state_of("box") == "ready"


def test_each_relay_lists_all_of_them(fleet: list[Cluster]) -> None:
    ids = {own_id(relay) for relay in fleet}
    assert len(ids) == 3
    for relay in fleet:
        assert set(ids_of(relay)) == ids
        assert len({one["name"] for one in listed(relay)}) == 3  # on one host, too
    printed = wai("relay", "list", "--data", fleet[1].data)
    assert "(this one)" in printed


def test_a_key_made_at_one_relay_is_good_at_all_and_revoked_at_all(fleet: list[Cluster]) -> None:
    first, second, third = fleet
    key = second.create_key("app")
    for relay in fleet:
        wait_until(partial(is_good, relay, key.secret), "the key is not known")
    third.revoke(key)
    revoked_at = time.monotonic()
    wait_until(lambda: status_of(first, key.secret) == 401, "the key is good still")
    assert time.monotonic() - revoked_at < 5.0
    assert status_of(third, key.secret) == 401


def test_a_sign_in_link_of_one_relay_signs_in_at_another(fleet: list[Cluster]) -> None:
    first, second, _ = fleet
    secret = first.admin("post", "/sign-in-links")["url"].partition("#sign-in=")[2]
    body = json.dumps({"token": secret}).encode()
    headers = {"Origin": second.url}
    with request(second, "/dashboard/session", body, headers) as answer:
        assert (answer.status, answer.headers["set-cookie"] is not None) == (200, True)
    with request(first, "/dashboard/session", body, {"Origin": first.url}) as again:
        assert again.status == 401


def test_a_node_that_is_drained_at_one_relay_gets_nothing_from_any(fleet: list[Cluster]) -> None:
    first, second, _ = fleet
    second.admin("post", "/nodes/box/drain")
    wait_until(lambda: first.state_of("box") == "draining", "not drained elsewhere")
    first.admin("post", "/nodes/box/undrain")
    for relay in fleet:
        wait_until(partial(serves, relay), "not undrained elsewhere")


def test_a_request_that_runs_at_one_relay_is_seen_explained_and_ended_at_another(
    fleet: list[Cluster],
) -> None:
    first, second, third = fleet
    key = first.create_key("long")
    wait_until(partial(is_good, second, key.secret), "the key is not known")
    headers = {"Authorization": f"Bearer {key.secret}"}
    body = chat(MODEL, stream=True, max_tokens=100_000)
    with request(second, "/v1/chat/completions", body, headers) as answer:
        stream = events(answer)
        next(stream)
        request_id = answer.headers["x-request-id"]
        for relay in fleet:
            [row] = [r for r in relay.admin("get", "/requests")["data"] if r["id"] == request_id]
            assert row["relay"] == _name(second, own_id(second))
        assert request_id in {row["id"] for row in _top(third)["requests"]}
        wait_until(lambda: _top(third)["pulse"]["running"] == 1, "those of others are missing")
        told = third.admin("get", f"/requests/{request_id}/explain")
        assert told["attempts"][0]["node"] == "box"
        first.admin("delete", f"/requests/{request_id}")
        assert any("ended by the relay's admin" in event for event in stream)
    audit = third.admin("get", "/audit?limit=5")["data"]
    assert any(entry["action"] == "request.cancel" for entry in audit)
    stored: list[dict[str, Any]] = []

    def is_stored() -> bool:
        stored[:] = [row for row in _finished(third) if row["id"] == request_id]
        return bool(stored)

    wait_until(is_stored, "the request is not stored")
    assert stored[0]["node"] == "box"
    assert stored[0]["relay"] == _name(third, own_id(second))


def test_what_is_captured_at_one_relay_is_wiped_from_any(fleet: list[Cluster]) -> None:
    first, _, third = fleet
    key = first.create_key("captured")
    first.admin("post", f"/keys/{key.id}/capture", {"for_s": 60})
    assert len(first.admin("get", "/captures")["data"]) == 1
    wait_until(partial(is_good, third, key.secret), "the key is not known")
    third.admin("delete", f"/keys/{key.id}/capture")
    assert first.admin("get", "/captures")["data"] == []


def test_doctor_knows_a_relay_of_the_fleet_at_the_public_address(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    with PostgresServer() as server, ExitStack() as ending:
        url = server.create_database("fleet")
        for port in ports:
            command = [script("wai"), "relay", "--data", str(tmp_path / str(port))]
            command += ["--listen", f"127.0.0.1:{port}", "--database", url]
            command += ["--node-url", f"https://127.0.0.1:{port}"]
            command += ["--public-url", f"https://localhost:{ports[0]}"]
            relay = ending.enter_context(Daemon(command, log=tmp_path / f"{port}.log"))
            relay.wait_for_output("relay ready")
        data = tmp_path / str(ports[1])
        with pytest.raises(CommandError) as told:  # there is no node
            wai("doctor", "--data", data)
        assert f"https://localhost:{ports[0]} leads to" in told.value.output
        invite = json.loads(wai("invite", "create", "--data", data, "--json"))
        assert f"https://127.0.0.1:{ports[1]}/install.sh" in invite["command"]


def test_relays_of_one_machine_share_a_port(tmp_path: Path) -> None:
    shared = free_port()
    options = ("--shared-listen", f"127.0.0.1:{shared}")
    with (
        counting_upstream() as upstream,
        PostgresServer() as server,
        relays(tmp_path, server.create_database("fleet"), 2, *options) as running,
    ):
        first, second = running
        first.add_node("box", upstream.url)
        key = first.create_key("app")
        wait_until(partial(is_good, second, key.secret), "the second relay does not serve")
        together = replace(first, port=shared)

        met = [_meets(together) for _ in range(40)]
        assert set(met) == {True, False}
        second.relay.stop()
        assert all(_meets(together) for _ in range(10))


def _meets(relay: Cluster) -> bool:
    """Whether the relay whose certificate is trusted answers at its port."""
    try:
        return relay.get("/healthz") == 200
    except URLError:
        return False


def _top(relay: Cluster) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(wai("top", "--json", "--data", relay.data))
    return shown


def _name(relay: Cluster, relay_id: str) -> str:
    return next(str(one["name"]) for one in listed(relay) if one["id"] == relay_id)


def _finished(relay: Cluster) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = relay.admin("get", "/requests/finished?limit=20")["data"]
    return rows
