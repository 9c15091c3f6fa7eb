"""Streams through the whole path: who goes away, who is slow, what is uploaded."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial

import psutil
import pytest

from tests.e2e.conftest import Served
from tests.harness.caller import chat, events, request
from tests.harness.odd_upstream import FLOOD_BYTES
from tests.harness.processes import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("served")]

TOKENS = 1500
WRITTEN = "llamacpp:tokens_predicted_total"
BUFFERED_BYTES = 16 << 20  # kernel and processes together, on a path that has 64 MiB to carry


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_caller_that_goes_away_frees_its_slot(served: Served, path: str) -> None:
    before = served.llama.metrics()[WRITTEN]
    body = chat("tiny", stream=True, max_tokens=TOKENS, ignore_eos=True)
    with request(served.cluster, path, body, served.authorization) as response:
        assert next(events(response))
        wait_until(lambda: served.llama.busy_slots() > 0, "no slot became busy")
    wait_until(lambda: served.llama.busy_slots() == 0, "still busy")
    assert served.llama.metrics()[WRITTEN] - before < TOKENS  # it did not go on to its end


def test_a_caller_that_goes_away_before_the_answer(served: Served) -> None:
    seen = served.odd.seen
    gone, arrived = seen.callers_gone, seen.body_bytes
    caller = http.client.HTTPSConnection(
        "127.0.0.1", served.cluster.port, context=served.cluster.tls(), timeout=30
    )
    headers = {**served.authorization, "Content-Type": "application/json"}
    caller.request("POST", "/v1/chat/completions", chat("hangs"), headers)
    wait_until(lambda: seen.body_bytes > arrived, "the request does not arrive")
    caller.close()
    wait_until(lambda: seen.callers_gone > gone, "not hung up")


def test_tokens_come_one_by_one(served: Served) -> None:
    served.odd.seen.release.clear()
    with request(
        served.cluster, "/v1/chat/completions", chat("waits", stream=True), served.authorization
    ) as response:
        arriving = events(response)
        assert "first" in next(arriving)  # while the upstream holds the second back
        served.odd.seen.release.set()
        assert "second" in next(arriving)
        assert next(arriving) == "[DONE]"


def test_a_slow_caller_holds_up_no_other_and_bounds_what_is_buffered(served: Served) -> None:
    processes = [served.cluster.relay.pid, served.cluster.nodes["odd"].daemon.pid]
    before = sum(psutil.Process(pid).memory_info().rss for pid in processes)
    served.odd.seen.sent_bytes = 0
    with request(
        served.cluster, "/v1/chat/completions", chat("floods", stream=True), served.authorization
    ) as slow:
        assert slow.read(1)
        stalled_at = settled(lambda: served.odd.seen.sent_bytes)
        assert stalled_at < BUFFERED_BYTES
        for _ in range(20):  # on the same node, over the same session
            with request(
                served.cluster, "/v1/chat/completions", chat("answers"), served.authorization
            ) as quick:
                assert quick.status == 200
                quick.read()
        grown = sum(psutil.Process(pid).memory_info().rss for pid in processes) - before
        assert grown < BUFFERED_BYTES
        total = 1 + sum(len(piece) for piece in iter(partial(slow.read, 1 << 20), b""))
        assert total > FLOOD_BYTES - (FLOOD_BYTES >> 6)  # less the chunked coding's own bytes


def settled(value: Callable[[], int], quiet_s: float = 0.5) -> int:
    """The value once it has not changed for `quiet_s`."""
    last, since = value(), time.monotonic()
    while time.monotonic() - since < quiet_s:
        time.sleep(0.05)
        if value() != last:
            last, since = value(), time.monotonic()
    return last


@pytest.mark.parametrize("mebibytes", [0, 3, 24])
def test_an_upload_arrives_whole(served: Served, mebibytes: int) -> None:
    form, content_type = recording("answers", os.urandom(mebibytes << 20))
    headers = {**served.authorization, "Content-Type": content_type}
    with request(served.cluster, "/v1/audio/transcriptions", form, headers) as response:
        assert response.status == 200
        assert json.loads(response.read())["text"] == hashlib.sha256(form).hexdigest()


def test_an_upload_streams(served: Served) -> None:
    form, content_type = recording("answers", os.urandom(12 << 20))
    before = served.odd.seen.body_bytes
    half = len(form) // 2

    def pieces() -> Iterator[bytes]:
        yield from (form[n : min(n + 65536, half)] for n in range(0, half, 65536))
        # the upstream has some of it while the caller still has the other half
        wait_until(lambda: served.odd.seen.body_bytes > before, "nothing has arrived")
        yield form[half:]

    headers = {**served.authorization, "Content-Type": content_type}
    with request(served.cluster, "/v1/audio/transcriptions", pieces(), headers) as response:
        assert json.loads(response.read())["text"] == hashlib.sha256(form).hexdigest()


def test_a_body_over_the_bound_is_refused_before_it_is_sent(served: Served) -> None:
    headers = {**served.authorization, "Content-Length": str(1 << 40), "Expect": "100-continue"}
    with request(served.cluster, "/v1/chat/completions", b"", headers) as response:
        assert response.status == 413
        assert json.loads(response.read())["error"]["code"] == "body_too_large"


def recording(model: str, audio: bytes) -> tuple[bytes, str]:
    """A multipart form as the SDKs send it for a transcription, and its content type."""
    boundary = "------------------------d74496d66958873e"
    form = (
        (
            f'--{boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{model}\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
            "Content-Type: audio/wav\r\n\r\n"
        ).encode()
        + audio
        + f"\r\n--{boundary}--\r\n".encode()
    )
    return form, f"multipart/form-data; boundary={boundary}"
