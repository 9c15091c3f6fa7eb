"""No body holds the event loop: every other caller's tokens wait as long as it does."""

from __future__ import annotations

import asyncio
import itertools
import string
import time
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.cpu_speed import slowness
from tests.harness.exchanges import FakeExchange, make_request
from tests.harness.loop_watch import watched_loop
from wai_api.limits import KeyLimits
from wai_protocol.errors import WaiError
from wai_relay.contracts.api_keys import ApiKey
from wai_relay.gateway.bodies import Change
from wai_relay.gateway.body_budget import BodyBudget
from wai_relay.gateway.continuation import continuation_for
from wai_relay.gateway.dialects.anthropic import AnthropicEvents
from wai_relay.gateway.dialects.ollama import OllamaLines
from wai_relay.gateway.dialects.openai import OpenAiBody, OpenAiEvents
from wai_relay.gateway.dialects.registry import DIALECTS
from wai_relay.gateway.dialects.usage import UsageReader
from wai_relay.gateway.intake import Intake
from wai_relay.gateway.limits import MIB, GatewayLimits

pytestmark = pytest.mark.long

MOST_S = 0.040
"""CPU time of one turn of the loop, on a core as fast as where it was chosen: twice what the worst
takes there, for cores that are shared. What grows with the square takes a hundred times as long."""
LONG = MIB + MIB // 4
"""More than is taken in one go, and no more: each of a million values costs 10 µs."""
TRIES = 8
"""A turn counts as long as the shortest of these: a bug takes its time each time."""
HEAD = b'{"model":"m","stream":true,'
KEY = ApiKey("key_1", "app", b"", "", KeyLimits(), 1, 0.0)
FORM = "multipart/form-data; boundary=x"
PART = b"--x\r\na:b\r\n\r\n1\r\n"
LETTERS = string.ascii_letters + string.digits


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return ("asyncio", {"use_uvloop": False})


def filled(start: bytes, unit: bytes, end: bytes, size: int = MIB - 200) -> bytes:
    """`start`, as many `unit`s as fit, the last without its comma, and `end`."""
    times = (size - len(start) - len(end)) // len(unit)
    return start + (unit * times).removesuffix(b",") + end


def keys(count: int) -> bytes:
    names = itertools.islice(itertools.product(LETTERS, repeat=3), count)
    return b",".join(b'"%s":1' % "".join(name).encode() for name in names)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "messages that are numbers": lambda: filled(HEAD + b'"messages":[', b"1,", b"]}"),
    "messages that are empty strings": lambda: filled(HEAD + b'"messages":[', b'"",', b"]}"),
    "messages that are empty objects": lambda: filled(HEAD + b'"messages":[', b"{},", b"]}"),
    "messages with few commas": lambda: filled(
        HEAD + b'"messages":[', b'{"role":"a"},', b"]}", 49_000 * 13
    ),
    "input that is numbers": lambda: filled(HEAD + b'"input":[', b"1,", b"]}"),
    "a prompt of numbers": lambda: filled(HEAD + b'"prompt":[', b"1,", b"]}"),
    "one field again and again": lambda: filled(HEAD, b'"a":1,', b',"b":1}'),
    "messages again and again": lambda: filled(HEAD, b'"messages":[],', b',"b":1}'),
    "many fields": lambda: HEAD + keys(130_000) + b"}",
    "many fields in front of the model": lambda: b"{" + keys(130_000) + b',"model":"m"}',
    "as many fields as may be": lambda: HEAD + keys(19_000) + b',"stream_options":{}}',
    "deep lists": lambda: HEAD + b'"messages":' + b"[" * 500_000 + b"]" * 500_000 + b"}",
    "lists as deep as may be": lambda: HEAD + b'"messages":' + b"[" * 900 + b"]" * 900 + b"}",
    "a model of lists": lambda: filled(b'{"model":[', b"[],", b"]}"),
    "a model of escapes": lambda: b'{"model":"' + b"\\u0061" * 170_000 + b'"}',
    "a stream flag of lists": lambda: filled(b'{"model":"m","stream":[', b"[],", b"]}"),
    "a length of lists": lambda: filled(HEAD + b'"max_tokens":[', b"[],", b"]}"),
    "a length of many digits": lambda: HEAD + b'"max_tokens":' + b"1" * 1_000_000 + b"}",
    "a length with many decimals": lambda: HEAD + b'"max_tokens":1.' + b"1" * 1_000_000 + b"}",
    "options of lists": lambda: filled(HEAD + b'"stream_options":{"a":[', b"[],", b"]}}"),
    "options of many fields": lambda: HEAD + b'"stream_options":{' + keys(130_000) + b"}}",
    "numbers of many digits": lambda: filled(HEAD + b'"messages":[', b"1" * 5000 + b",", b"]}"),
    "escapes": lambda: filled(HEAD + b'"messages":[{"content":"', b"\\u00e9", b'"}]}'),
    "escaped quotes": lambda: filled(HEAD + b'"messages":[{"content":"', b'\\"', b'"}]}'),
    "characters of four bytes": lambda: filled(
        HEAD + b'"messages":[{"content":"', "😀".encode(), b'"}]}'
    ),
    "white space before a picture": lambda: (
        HEAD + b'"messages":[{"url":' + b" " * 1_000_000 + b"1}]}"
    ),
    "pictures that are too short": lambda: filled(
        HEAD + b'"messages":[{"content":[', b'{"url":"' + b"A" * 2990 + b'"},', b"]}]}"
    ),
    "pictures": lambda: filled(
        HEAD + b'"messages":[{"content":[', b'{"url":"' + b"A" * 3100 + b'"},', b"]}]}"
    ),
    "white space": lambda: HEAD + b" " * 1_000_000 + b'"messages":[]}',
    "tools": lambda: filled(HEAD + b'"messages":[],"tools":[', b'{"a":1},', b"]}"),
    "a long body of brackets": lambda: filled(HEAD + b'"messages":[', b"[],", b"]}", LONG),
    "a long body of fields": lambda: filled(b"{", b'"a":1,', b',"model":"m"}', LONG),
    "a long body of escapes": lambda: filled(b'{"a":"', b"\\n", b'","model":"m"}', 3 * MIB),
    "a long body of names": lambda: HEAD + keys(200_000) + b"}",
    "a long body of small messages": lambda: filled(
        HEAD + b'"messages":[', b'{"role":"a"},', b"]}", LONG
    ),
    "a long body of empty strings": lambda: filled(HEAD + b'"input":[', b'"",', b"]}", LONG),
    "a long body of escaped quotes": lambda: filled(
        HEAD + b'"messages":[{"content":"', b'\\"', b'"}]}', 3 * MIB
    ),
    "a long body of backslashes": lambda: filled(
        HEAD + b'"messages":[{"content":"', b"\\\\", b'"}]}', 3 * MIB
    ),
    "a long body of characters of three bytes": lambda: filled(
        HEAD + b'"messages":[{"content":"', "你".encode(), b'"}]}', 3 * MIB
    ),
    "a long body of spaces": lambda: filled(
        HEAD + b'"messages":[{"content":"', b"  ", b'"}]}', 3 * MIB
    ),
    "a long body of pictures": lambda: filled(
        HEAD + b'"messages":[{"content":[', b'{"url":"' + b"A" * 3100 + b'"},', b"]}]}", 3 * MIB
    ),
    "a long body of JPEGs without an end": lambda: filled(
        HEAD + b'"messages":[{"content":[',
        b'{"url":"' + b64encode(b"\xff\xd8" + b"\xff\xe0\0\2" * 900) + b'"},',
        b"]}]}",
        3 * MIB,
    ),
    "a long name": lambda: b'{"' + b"a" * 3 * MIB + b'":1,"model":"m"}',
    "a picture of 8 MiB": lambda: b'{"url":"' + b"A" * 8 * MIB + b'","model":"m"}',
}
FORMS: dict[str, bytes] = {
    "many parts": PART * 80_000
    + b'--x\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--x--',
    "empty parts": b"--x\r\n\r\n\r\n" * 100_000,
    "delimiters": b"--x" * 400_000,
    "no delimiter": b"-" * 3 * MIB,
    "one long head": b"--x\r\n" + b"a:b\r\n" * 100_000,
}


def cut(body: bytes, piece_bytes: int) -> list[bytes]:
    return [body[i : i + piece_bytes] for i in range(0, len(body), piece_bytes)]


async def take(pieces: list[bytes], content_type: str = "application/json") -> None:
    """Everything that the gateway does with a body before it goes to an upstream, and the rest."""
    dialect = DIALECTS.of("/v1/chat/completions")
    route = DIALECTS.find_route("POST", "/v1/chat/completions")
    assert route is not None
    request = make_request(
        headers=[(b"content-type", content_type.encode()), (b"x-wai-continue", b"1")]
    )
    exchange = FakeExchange(request, pieces)
    budget = BodyBudget(1 << 30)
    intake = Intake(exchange, dialect, route, KEY.id, GatewayLimits(), budget, time.monotonic)
    taken = await intake.take()
    await asyncio.sleep(0)
    taken.outgoing(Change("another", ask_usage=True, ask_timings=True))
    await asyncio.sleep(0)
    continuation_for(request, dialect, route, KEY, taken.json)
    while not taken.complete and await intake.rest():
        pass


async def holds_the_loop_briefly(pieces: list[bytes], *content_type: str) -> None:
    """Assert that no turn of the loop is long while the body in `pieces` is taken in."""
    turns = []
    for _ in range(TRIES):
        before = slowness()
        with watched_loop() as watch:
            task = asyncio.create_task(take(list(pieces), *content_type))
            await asyncio.wait([task])
        assert task.exception() is None or isinstance(task.exception(), WaiError)
        turns.append(watch.longest_s / max(before, slowness()))
        if turns[-1] < MOST_S:
            return
    raise AssertionError(f"the shortest of the longest turns took {min(turns):.4f} s of CPU")


def reads_briefly(make: Callable[[], UsageReader], data: bytes) -> None:
    """Assert that reading `data` in one turn is short."""
    turns = []
    for _ in range(TRIES):
        reading = make()
        before = slowness()
        started = time.thread_time()
        reading.feed(data)
        reading.finish()
        took_s = time.thread_time() - started
        turns.append(took_s / max(before, slowness()))
        if turns[-1] < MOST_S:
            return
    raise AssertionError(f"the shortest turn took {min(turns):.4f} s of CPU")


@pytest.mark.anyio
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("piece_bytes", [64 * 1024, 64 * MIB])
async def test_no_body_holds_the_loop(name: str, piece_bytes: int) -> None:
    pieces = cut(HOSTILE[name](), piece_bytes)
    await holds_the_loop_briefly(pieces)


@pytest.mark.anyio
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("piece_bytes", [64 * 1024, 64 * MIB])
async def test_no_form_holds_the_loop(name: str, piece_bytes: int) -> None:
    pieces = cut(FORMS[name], piece_bytes)
    await holds_the_loop_briefly(pieces, FORM)


@pytest.mark.parametrize("unit", [b'"usage":{', b'"usage":{}1', b'"timings":[{', b"{" * 9])
def test_no_answer_that_looks_like_usage_holds_the_loop(unit: bytes) -> None:
    reads_briefly(OpenAiBody, unit * (64 * 1024 // len(unit)))


@pytest.mark.parametrize("reader", [OpenAiEvents, AnthropicEvents, OllamaLines])
@pytest.mark.parametrize(
    "unit",
    [
        *(b"\n\n", b"\r\n\r\n", b"a\n\n", b":\r\n\r\n"),
        *(b'data: {"usage":{"a":1}}\n\n', b'{,"timings":{}}\n\n', b'{"eval_count":1}\n'),
    ],
)
def test_no_read_of_small_events_holds_the_loop(unit: bytes, reader: type[UsageReader]) -> None:
    reads_briefly(reader, b'"usage"\n\n' + unit * (256 * 1024 // len(unit)) + b'"usage"')
