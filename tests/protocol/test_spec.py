"""SPEC.md and the vectors say what the code does: drift is a failure."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

from tests.harness.session_pair import SessionPair, refused
from wai_protocol import frames as f
from wai_protocol import invite, limits
from wai_protocol.errors import Fault
from wai_protocol.events import DataReceived, StreamEnded
from wai_protocol.handshake import Hello, NodeHandshake, RelayHandshake
from wai_protocol.identity import NodeKey, RelayKey, node_id, verify
from wai_protocol.limits import Limits
from wai_protocol.pace import PACES
from wai_protocol.session import Role, Session
from wai_protocol.surface import ROUTES

PROTOCOL: Final = Path(__file__).parents[2] / "protocol"
SPEC: Final = (PROTOCOL / "SPEC.md").read_text(encoding="utf-8")


def table(name: str) -> list[list[str]]:
    """The cells of the table between `<!-- name: … -->` and `<!-- end -->`, less its head."""
    found = re.search(rf"<!-- {name}:.*?-->\n(.*?)\n<!-- end -->", SPEC, re.DOTALL)
    assert found, name
    rows = [line.strip("|").split("|") for line in found[1].splitlines()[2:]]
    return [[cell.strip() for cell in row] for row in rows]


def vectors(name: str) -> Any:
    return json.loads((PROTOCOL / "vectors" / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    found = importlib.util.spec_from_file_location("generate", PROTOCOL / "vectors" / "generate.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_errors_are_those_of_the_code() -> None:
    rows = [
        [
            str(fault.row.wire_code),
            fault.name,
            str(fault.row.http_status),
            fault.row.openai_type,
            fault.row.openai_code,
        ]
        for fault in Fault
        if fault.row.wire_code
    ]
    assert table("errors") == rows


def test_the_negotiated_limits_are_those_of_the_code() -> None:
    rows = {key: int(default) for key, default, _ in table("negotiated")}
    assert rows == Limits().to_wire()


def test_the_fixed_limits_are_those_of_the_code() -> None:
    constants = {
        name: value
        for name, value in vars(limits).items()
        if name.isupper() and name not in ("VERSION", "ALPN")
    }
    assert {name: int(value) for name, value, _ in table("limits")} == constants


def test_the_paces_are_those_of_the_code() -> None:
    rows = [[f.FrameType(kind).name, str(p.burst), str(p.per_s)] for kind, p in PACES.items()]
    assert table("paces") == rows


def test_the_frames_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| +(\d+) \| ([A-Z]+) ", SPEC.split("\n## 2.")[0], re.MULTILINE)
    assert {name: int(number) for number, name in rows} == {t.name: t.value for t in f.FrameType}


def test_the_forwarded_paths_are_those_of_the_code() -> None:
    section = SPEC.split("\n## 7.")[1].split("\n## 8.")[0]
    assert set(re.findall(r"`(/[a-z0-9_/{}-]+)`", section)) == {route.path for route in ROUTES}


def test_sections_that_the_code_names_exist() -> None:
    sections = set(re.findall(r"^## (\d+)\. ", SPEC, re.MULTILINE))
    root = PROTOCOL.parent
    for room in ("protocol", "relay", "client"):
        for path in (root / room).rglob("*.py"):
            text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
            for first, last in re.findall(r"SPEC sections? (\d+)(?: to (\d+))?", text):
                assert {first, last or first} <= sections, path


def test_the_vectors_are_what_the_generator_makes(generate: ModuleType) -> None:
    folder = PROTOCOL / "vectors"
    made = generate.files()
    assert {path.name for path in folder.glob("*.json")} == set(made)
    for name, text in made.items():
        assert (folder / name).read_text(encoding="utf-8") == text, name


@pytest.mark.parametrize("row", vectors("frames.json")["frames"], ids=lambda row: row["name"])
def test_a_frame_reads_and_writes_as_its_vector(row: dict[str, Any]) -> None:
    data = bytes.fromhex(row["bytes"])
    decoder = f.FrameDecoder()
    decoder.feed(data)
    item = decoder.next_frame()
    assert item is not None
    assert f.FrameType(item[0]).name == row["name"]
    if item[0] >= f.FIRST_SESSION_TYPE and row["name"] != "DATA":
        assert f.encode(f.decode(item)) == data


@pytest.mark.parametrize("row", vectors("frames.json")["refused"], ids=lambda row: row["why"])
def test_a_relay_refuses_what_the_vectors_say(row: dict[str, str]) -> None:
    made = SessionPair()
    made.connect()
    made.relay.session.open_stream("POST", "/v1/x", [], "m", end=False)
    made.settle()
    refused(made.relay, bytes.fromhex(row["bytes"]))


def test_both_handshakes_agree_with_the_transcript() -> None:
    given = vectors("handshake.json")
    raw = {key: bytes.fromhex(value) for key, value in given.items() if key not in _TEXTS}
    hello = Hello(
        raw["node_public"], "box", raw["endpoint_hash"], agent="wai/0.1.0", instance="i1", tunnel=0
    )
    node = NodeHandshake(
        NodeKey(raw["node_seed"]),
        hello,
        relay_public=raw["relay_public"],
        invite_secret=raw["invite_secret"],
    )
    relay = RelayHandshake(
        RelayKey(raw["relay_seed"]),
        nonce=raw["nonce"],
        endpoint_hashes=frozenset({raw["endpoint_hash"]}),
    )
    assert node.bytes_to_send() == raw["hello"]
    relay.receive_data(raw["hello"])
    assert relay.bytes_to_send() == raw["challenge"]
    node.receive_data(raw["challenge"])
    assert node.bytes_to_send() == raw["proof"]
    assert relay.receive_data(raw["proof"]) is not None
    welcome = node.receive_data(raw["welcome"])
    assert welcome is not None
    assert welcome.node_id == given["node_id"] == node_id(raw["node_public"])
    verify(raw["relay_public"], raw["challenge"][-64:], raw["relay_signs"])
    assert invite.decode(given["invite"]).secret == raw["invite_secret"]


def test_a_relay_that_follows_the_link_vector_has_each_byte_once() -> None:
    given = vectors("link.json")
    relay = Session(Role.RELAY)
    relay.attach(0, 0.0)
    relay.open_stream("POST", "/v1/completions", [], "m", end=True)
    assert relay.bytes_to_send().hex() == given["relay_sends"]
    events = relay.receive_data(bytes.fromhex(given["relay_gets_before_the_cut"]), 0.0)
    assert relay.received == given["relay_received"]
    relay.detach()
    relay.attach(given["node_received"], 1.0)
    events += relay.receive_data(bytes.fromhex(given["node_sends_on_the_next_connection"]), 1.0)
    body = b"".join(event.data for event in events if isinstance(event, DataReceived))
    assert body.hex() == given["body"]
    assert isinstance(events[-1], StreamEnded)


def test_the_credit_vector_never_sends_more_than_was_given() -> None:
    decoder, credit, body, ended = f.FrameDecoder(), vectors("credit.json")["stream_window"], b"", 0
    for number, step in enumerate(vectors("credit.json")["steps"]):
        if number:
            asked = f.FrameDecoder()
            asked.feed(bytes.fromhex(step["node_gets"]))
            item = asked.next_frame()
            assert item is not None
            credit += item[2]
        decoder.feed(bytes.fromhex(step["node_sends"]))
        while (item := decoder.next_frame()) is not None:
            if item[0] == f.FrameType.DATA:
                credit -= len(item[2])
                body += item[2]
            ended += item[0] == f.FrameType.END
        assert credit >= 0
    assert body == bytes(range(100))
    assert ended == 1


_TEXTS: Final = {"invite", "node_id"}
