"""Three real llama-servers with different slots and contexts: who is served where, and when.

One relay and one fleet for the whole file; the last test holds everything that was recorded against
what the llama-servers counted themselves.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness.caller import chat, events, request
from tests.harness.cluster import Cluster, cluster, wai
from tests.harness.llama_server import LlamaServer, llama_server
from tests.harness.processes import wait_until

pytestmark = [
    pytest.mark.long,
    pytest.mark.e2e,
    pytest.mark.timeout(400),
    pytest.mark.xdist_group("routing"),
]

# name: slots, context of each
BOXES: Final = {"one": (1, 4096), "two": (2, 2048), "four": (4, 1024)}
EARLY_S: Final = 0.01
TRIES: Final = 5
SLOTS: Final = {name: slots for name, (slots, _) in BOXES.items()}


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def node(self) -> str:
        return self.headers.get("x-wai-node", "")

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.body["error"]
        return error


@dataclass(slots=True)
class Fleet:
    cluster: Cluster
    boxes: dict[str, LlamaServer]
    begin: tuple[int, int]
    asked: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def key(self, name: str, *limits: str) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(
            wai("key", "create", name, *limits, "--data", self.cluster.data, "--json")
        )
        return made

    def update(self, key: dict[str, Any], *limits: str) -> None:
        wai("key", "update", key["id"], *limits, "--data", self.cluster.data)

    def ask(self, key: dict[str, Any], *, pin: str = "", **fields: Any) -> Answer:
        headers = {"Authorization": f"Bearer {key['key']}"} | ({"X-WAI-Node": pin} if pin else {})
        with self.lock:
            self.asked += 1
        body = chat("tiny", **fields)
        with request(self.cluster, "/v1/chat/completions", body, headers) as answer:
            return Answer(answer.status, dict(answer.headers), json.loads(answer.read()))

    def stream(
        self,
        key: dict[str, Any],
        leave_after: int = 1 << 30,
        on_begin: Callable[[], None] = lambda: None,
        **fields: Any,
    ) -> str:
        """The node that streamed, to the end or until the caller left."""
        headers = {"Authorization": f"Bearer {key['key']}"}
        with self.lock:
            self.asked += 1
        body = chat("tiny", stream=True, **fields)
        with request(self.cluster, "/v1/chat/completions", body, headers) as answer:
            assert answer.status == 200
            on_begin()
            for _, _ in zip(range(leave_after), events(answer), strict=False):
                pass
            node: str = answer.headers["x-wai-node"]
            return node

    def leave_early(self, key: dict[str, Any], **fields: Any) -> str:
        """Ask for a stream, and go before it has answered."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.cluster.port, context=self.cluster.tls(), timeout=30
        )
        body = chat("tiny", stream=True, max_tokens=900, **fields)
        headers = {"Authorization": f"Bearer {key['key']}", "Content-Type": "application/json"}
        with self.lock:
            self.asked += 1
        connection.request("POST", "/v1/chat/completions", body, headers)
        time.sleep(EARLY_S)
        connection.close()
        return ""

    def counted(self) -> tuple[int, int]:
        """What the llama-servers counted since the fleet was made."""
        read, written = counted(self.boxes)
        return read - self.begin[0], written - self.begin[1]

    def live(self) -> list[dict[str, Any]]:
        """The requests that the relay has now."""
        found: list[dict[str, Any]] = self.cluster.admin("get", "/requests")["data"]
        return found

    def has(self, key: dict[str, Any]) -> bool:
        """Whether a request of `key` runs or waits."""
        return any(request["key_id"] == key["id"] for request in self.live())

    @contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """Have a box stand still for a moment."""
        self.boxes[name].daemon.pause()
        try:
            yield
        finally:
            self.boxes[name].daemon.resume()

    def settle(self) -> None:
        for name, box in self.boxes.items():
            wait_until(partial(_idle, box), f"{name} stays busy")


def _idle(box: LlamaServer) -> bool:
    return box.busy_slots() == 0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("routing")
    with cluster(folder) as running, ExitStack() as boxes:
        started: dict[str, LlamaServer] = {}
        for name, (slots, context) in BOXES.items():
            started[name] = boxes.enter_context(
                llama_server(tiny_model, folder, slots=slots, context_tokens=slots * context)
            )
            running.add_node(name, started[name].url)
        yield Fleet(running, started, counted(started))


def counted(boxes: dict[str, LlamaServer]) -> tuple[int, int]:
    """Prompt tokens read and tokens written, as the llama-servers count them."""
    metrics = [box.metrics() for box in boxes.values()]
    return (
        int(sum(m["llamacpp:prompt_tokens_total"] for m in metrics)),
        int(sum(m["llamacpp:tokens_predicted_total"] for m in metrics)),
    )


def test_every_slot_is_taken_before_anyone_waits(fleet: Fleet) -> None:
    key = fleet.key("filler")
    for name in BOXES:  # so that all are known
        assert fleet.ask(key, pin=name, max_tokens=32).node == name
    total = sum(SLOTS.values())

    def stream() -> tuple[str, float, float]:
        """The node, and from when to when it answered."""
        began: list[float] = []
        node = fleet.stream(
            key, on_begin=lambda: began.append(time.monotonic()), max_tokens=900, ignore_eos=True
        )
        return node, began[0], time.monotonic()

    for _ in range(TRIES):
        with ThreadPoolExecutor(total) as callers:
            answers = [each.result() for each in [callers.submit(stream) for _ in range(total)]]
        fleet.settle()
        # On a busy machine the first may be over before the last has come: then it says nothing.
        if max(began for _, began, _ in answers) < min(ended for *_, ended in answers):
            break
    assert Counter(node for node, *_ in answers) == SLOTS


def test_a_prompt_goes_where_it_fits_and_nowhere_else(fleet: Fleet) -> None:
    key = fleet.key("reader")
    # A token for each character: far more than the relay first believes, so a node must say so.
    text = [{"role": "user", "content": "word " * 560}]
    for _ in range(12):
        answer = fleet.ask(key, messages=text, max_tokens=4)
        assert (answer.status, answer.node) == (200, "one"), answer.body
    assert answer.headers["x-wai-attempts"] == "1"  # by now it knows
    # Only the estimate says that it is too long, so the largest is asked, and answers.
    refused = fleet.ask(key, messages=[{"role": "user", "content": "word " * 3000}], max_tokens=4)
    assert (refused.status, refused.node) == (400, "one")
    assert refused.error["type"] == "exceed_context_size_error"
    # What is surely too long is sent nowhere.
    long = [{"role": "user", "content": "word " * 30_000}]
    refused = fleet.ask(key, messages=long, max_tokens=4)
    assert (refused.status, refused.error["code"]) == (400, "context_length_exceeded")
    assert "the largest for 'tiny' has 4096" in refused.error["message"]
    assert "maximum context length is 4096 tokens" in refused.error["message"]


def test_one_keys_burst_does_not_starve_another(fleet: Fleet) -> None:
    burst, guest = fleet.key("burst"), fleet.key("guest")
    order: list[str] = []

    def ask(key: dict[str, Any]) -> None:
        assert fleet.ask(key, pin="one", max_tokens=700).status == 200
        order.append(key["name"])

    with ThreadPoolExecutor(8) as callers:
        asked = [callers.submit(ask, burst) for _ in range(6)]
        wait_until(lambda: fleet.boxes["one"].busy_slots() == 1, "nothing runs")
        with fleet.paused("one"):
            asked.append(callers.submit(ask, guest))
            wait_until(partial(fleet.has, guest), "the guest does not wait")
            before = len(order)  # a fast machine may have answered some of the burst by now
        for each in asked:
            each.result()
    # behind the one that ran, and one turn of the burst
    assert order.index("guest") <= before + 2, order
    fleet.settle()


def test_requests_a_minute_bite_at_their_number_and_change_live(fleet: Fleet) -> None:
    key = fleet.key("rpm", "--rpm", "3")
    left = []
    for _ in range(3):
        answer = fleet.ask(key, max_tokens=2)
        assert answer.status == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        left.append(answer.headers["x-ratelimit-remaining-requests"])
    assert left == ["2", "1", "0"]
    refused = fleet.ask(key, max_tokens=2)
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert 0 < int(refused.headers["retry-after"]) <= 61  # a minute, and the grain of its count
    fleet.update(key, "--rpm", "4")
    assert [fleet.ask(key, max_tokens=2).status for _ in range(2)] == [200, 429]


def test_tokens_a_minute_count_what_was_used_and_not_what_was_feared(fleet: Fleet) -> None:
    key = fleet.key("tpm", "--tpm", "1000")
    used = 0
    for _ in range(50):
        before = used
        answer = fleet.ask(key, max_tokens=100)
        if answer.status == 429:
            break
        used += answer.body["usage"]["total_tokens"]
        left = int(answer.headers["x-ratelimit-remaining-tokens"])
        assert left <= 1000 - before
    assert answer.status == 429
    assert 1000 - 200 < used <= 1000  # the next one's estimate did not fit any more
    assert answer.headers["x-ratelimit-limit-tokens"] == "1000"


def test_requests_at_once_bite_at_their_number(fleet: Fleet) -> None:
    key = fleet.key("at-once", "--concurrency", "2")
    headers = {"Authorization": f"Bearer {key['key']}", "X-WAI-Node": "two"}
    body = chat("tiny", stream=True, max_tokens=1900, ignore_eos=True)
    with ExitStack() as running:
        streams = [
            running.enter_context(request(fleet.cluster, "/v1/chat/completions", body, headers))
            for _ in range(2)
        ]
        assert [held.status for held in streams] == [200, 200]
        fleet.asked += 2
        with fleet.paused("two"):  # so that both go on, however slow the callers are
            assert fleet.ask(key, max_tokens=2).status == 429
        for held in streams:
            assert list(events(held))[-1] == "[DONE]"
    assert fleet.ask(key, max_tokens=2).status == 200


def test_a_month_ends_at_its_number_and_a_restart_does_not_begin_another(fleet: Fleet) -> None:
    key = fleet.key("month", "--monthly-tokens", "60")
    used = last = 0
    while (answer := fleet.ask(key, max_tokens=8)).status == 200:
        last = answer.body["usage"]["total_tokens"]
        used += last
    # The last one fitted by the relay's guess of how long its prompt is, and no other came after.
    assert used - last < 60
    assert used + last > 60
    assert (answer.status, answer.error["code"]) == (429, "insufficient_quota")
    fleet.cluster.restart_relay()
    for name in BOXES:
        fleet.cluster.wait_for_state(name, "ready")
    # Nothing of it is forgotten: at most what was left is served.
    while (answer := fleet.ask(key, max_tokens=8)).status == 200:
        last = answer.body["usage"]["total_tokens"]
        used += last
    assert used - last < 60
    assert answer.error["code"] == "insufficient_quota"
    fleet.update(key, "--monthly-tokens", "none")
    assert fleet.ask(key, max_tokens=8).status == 200


def recorded(fleet: Fleet, *, all_of_them: bool = True) -> tuple[int, int]:
    """The same by the relay's accounts, cached tokens aside, once all requests are in them."""
    found: list[dict[str, Any]] = []

    def arrived() -> bool:
        found[:] = fleet.cluster.usage("node")
        return not all_of_them or bool(sum(row["requests"] for row in found) == fleet.asked)

    wait_until(arrived, "the usage does not arrive")
    return (
        sum(row["prompt_tokens"] - row["cached_tokens"] for row in found),
        sum(row["completion_tokens"] for row in found),
    )


def agree(fleet: Fleet) -> None:
    """Both books say the same, a moment after the last request at the latest."""
    told: list[object] = []

    def same() -> bool:
        # One that left at once may have gone before the relay made a record of it.
        told[:] = [recorded(fleet, all_of_them=False), fleet.counted()]
        return told[0] == told[1]

    try:
        wait_until(same, "the sums stay different")
    except AssertionError as error:
        raise AssertionError(f"{error}: recorded {told[0]}, counted {told[1]}") from None


def test_what_was_recorded_is_what_the_llama_servers_counted(fleet: Fleet) -> None:
    key = fleet.key("all")
    with ThreadPoolExecutor(6) as callers:
        staying = [callers.submit(fleet.stream, key, max_tokens=30) for _ in range(8)]
        assert {each.result() for each in staying} <= set(BOXES)
    fleet.settle()
    read, written = recorded(fleet)
    assert (read, written) == fleet.counted()


def test_streams_that_were_left_cost_what_the_llama_servers_counted(fleet: Fleet) -> None:
    key = fleet.key("leaver")
    recorded(fleet)
    long = [{"role": "user", "content": "word " * 150}]
    with ThreadPoolExecutor(12) as callers:
        # More than there are slots: some wait here, and get the slot of one that has just left.
        asked = [callers.submit(fleet.stream, key, n, max_tokens=900) for n in range(10)]
        # And some leave while their prompt is read, before any token has come.
        asked += [callers.submit(fleet.leave_early, key, messages=long) for _ in range(3)]
        asked += [callers.submit(fleet.stream, key, max_tokens=60) for _ in range(3)]
        for each in asked:
            each.result()
    fleet.settle()
    agree(fleet)
