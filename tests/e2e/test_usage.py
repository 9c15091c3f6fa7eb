"""What the relay says a request cost is what the llama-server says, in whatever way it ended."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness.caller import chat, events, request
from tests.harness.cluster import Cluster, CommandError, cluster, wai
from tests.harness.llama_server import LlamaServer, llama_server
from tests.harness.processes import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

CANCELLED_AFTER: Final = (1, 2, 5, 20, 100)  # events


@dataclass(frozen=True, slots=True)
class Counted:
    """Tokens by the one's or the other's count: `prompt` is what was read, cached ones aside."""

    prompt: int
    completion: int


@dataclass(slots=True)
class Rig:
    cluster: Cluster
    llama: LlamaServer
    headers: dict[str, str]
    begin: Counted

    def ask(self, path: str = "/v1/chat/completions", **fields: Any) -> str:
        """A whole answer; its request id."""
        body = chat("tiny", **fields)
        with request(self.cluster, path, body, self.headers) as answer:
            assert answer.status == 200
            answer.read()
            return answer.headers["x-request-id"]

    def leave(self, after: int) -> str:
        """Go away after that many events of a long answer; its request id."""
        body = chat("tiny", stream=True, max_tokens=3000)
        with request(self.cluster, "/v1/chat/completions", body, self.headers) as answer:
            for _, _ in zip(range(after), events(answer), strict=False):
                pass
            return answer.headers["x-request-id"]

    def usage(self, by: str = "model") -> list[dict[str, Any]]:
        return self.cluster.usage(by)

    def settle(self, requests: int) -> dict[str, Any]:
        """The sums, once all requests are in them and the llama-server is idle."""
        wait_until(lambda: self.llama.busy_slots() == 0, "the slots stay busy")
        wait_until(
            lambda: sum(row["requests"] for row in self.usage()) == requests,
            "the usage does not arrive",
        )
        (row,) = self.usage()
        return row

    def counted(self) -> Counted:
        """What the llama-server counted since the rig was made."""
        now = counted_by(self.llama)
        return Counted(now.prompt - self.begin.prompt, now.completion - self.begin.completion)


def counted_by(llama: LlamaServer) -> Counted:
    metrics = llama.metrics()
    return Counted(
        int(metrics["llamacpp:prompt_tokens_total"]),
        int(metrics["llamacpp:tokens_predicted_total"]),
    )


def recorded(row: dict[str, Any]) -> Counted:
    return Counted(row["prompt_tokens"] - row["cached_tokens"], row["completion_tokens"])


@pytest.fixture
def rig(tmp_path: Path, tiny_model: Path) -> Iterator[Rig]:
    with (
        llama_server(tiny_model, tmp_path, context_tokens=8192) as llama,
        cluster(tmp_path) as running,
    ):
        running.add_node("box", llama.url)
        headers = {"Authorization": f"Bearer {running.create_key('app').secret}"}
        yield Rig(running, llama, headers, counted_by(llama))


def test_whole_answers_cost_exactly_what_the_llama_server_counted(rig: Rig) -> None:
    for n in range(3):
        rig.ask(max_tokens=10 + n)
        rig.ask(max_tokens=20 + n, stream=True)
        rig.ask(max_tokens=5 + n, stream=True, stream_options={"include_usage": True})
        rig.ask("/v1/completions", prompt="once upon", max_tokens=7, stream=True)
        rig.ask("/v1/messages", max_tokens=6, stream=True)
    row = rig.settle(15)
    assert recorded(row) == rig.counted()
    assert (row["errors"], row["cancelled"], row["estimated"]) == (0, 0, 0)
    assert row["ttft_p50_ms"] is not None


def test_cancelled_answers_cost_what_the_llama_server_counted(rig: Rig) -> None:
    rig.ask(max_tokens=12)
    for after in CANCELLED_AFTER:
        rig.leave(after)
    row = rig.settle(1 + len(CANCELLED_AFTER))
    assert (row["cancelled"], row["errors"]) == (len(CANCELLED_AFTER), 0)
    # The node finds out a moment later what they took, and the books are set right.
    wait_until(lambda: recorded(rig.usage()[0]) == rig.counted(), "the sums stay different")
    assert sum(after - 1 for after in CANCELLED_AFTER) <= rig.counted().completion


def test_answers_that_are_left_one_by_one_are_not_estimated(rig: Rig) -> None:
    for number in range(3):
        rig.leave(10)
        wait_until(lambda: rig.llama.busy_slots() == 0, "the slot stays busy")
        done = number + 1

        def exact(done: int = done) -> bool:
            rows = rig.usage()
            return bool(rows and rows[0]["requests"] == done and rows[0]["estimated"] == 0)

        wait_until(exact, "it stays an estimate")
        assert recorded(rig.usage()[0]) == rig.counted()


def test_an_orderly_stop_loses_no_request(rig: Rig) -> None:
    for _ in range(5):
        rig.ask(max_tokens=3)
    rig.cluster.restart_relay()
    (row,) = rig.usage()
    assert row["requests"] == 5
    assert recorded(row) == rig.counted()


def test_a_kill_loses_at_most_the_last_second(rig: Rig) -> None:
    for _ in range(5):
        rig.ask(max_tokens=3)
    rig.settle(5)
    os.kill(rig.cluster.relay.pid, signal.SIGKILL)
    wait_until(lambda: rig.cluster.relay.exit_code is not None, "the relay is not dead")
    rig.cluster.restart_relay()
    assert sum(row["requests"] for row in rig.usage()) == 5


def test_usage_and_explain_are_told_by_the_commands(rig: Rig) -> None:
    request_id = rig.ask(max_tokens=3)
    rig.settle(1)
    rows = json.loads(wai("usage", "--by", "key", "--data", rig.cluster.data, "--json"))
    assert [row["name"] for row in rows] == ["app"]
    assert [row["group"] for row in rig.usage("node")] == ["box"]
    table = wai("usage", "--data", rig.cluster.data)
    assert "TOKENS/S" in table
    text = wai("usage", "--by", "hour", "--data", rig.cluster.data, "--csv")
    (line,) = csv.DictReader(io.StringIO(text))
    assert line["requests"] == "1"
    found = json.loads(wai("explain", request_id, "--data", rig.cluster.data, "--json"))
    assert (found["node"], found["status"], len(found["attempts"])) == ("box", 200, 1)
    assert found["attempts"][0]["candidates"][0]["node"] == "box"
    assert "attempt 1: box" in wai("explain", request_id, "--data", rig.cluster.data)
    with pytest.raises(CommandError, match="is kept"):
        wai("explain", "req_unknown", "--data", rig.cluster.data)


def test_an_admin_ends_a_running_request_and_its_slot_is_free(rig: Rig) -> None:
    body = chat("tiny", stream=True, max_tokens=3500)
    token = (rig.cluster.data / "admin.token").read_text().strip()

    def admin(method: str, path: str) -> dict[str, Any]:
        asked = urllib.request.Request(
            f"{rig.cluster.url}/admin/v1{path}",
            method=method,
            headers={"Authorization": f"Bearer {token}"},
        )
        with urllib.request.urlopen(asked, context=rig.cluster.tls(), timeout=10) as answer:
            value: dict[str, Any] = json.loads(answer.read())
            return value

    with request(rig.cluster, "/v1/chat/completions", body, rig.headers) as answer:
        next(events(answer))
        (running,) = admin("GET", "/requests")["data"]
        assert (running["node"], running["state"]) == ("box", "streaming")
        admin("DELETE", f"/requests/{running['id']}")
        last = list(events(answer))[-1]
    assert "ended by the relay's admin" in json.loads(last)["error"]["message"]
    wait_until(lambda: rig.llama.busy_slots() == 0, "the slot stays busy")
