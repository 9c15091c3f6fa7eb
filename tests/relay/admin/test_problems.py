"""What is wrong is said in words, with what to do; what is right is not mentioned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from tests.relay.conftest import Clock
from wai_protocol.errors import RequestError
from wai_protocol.status import ModelStatus, NodeStatus
from wai_relay.contracts.records import Attempt, LimitsState, RequestRecord, UsageState
from wai_relay.fleet.relays import RelayRecord
from wai_relay.health.condition import RelayCondition
from wai_relay.health.config import HealthConfig
from wai_relay.health.folder_probe import FolderProbe
from wai_relay.health.keys import KnownKey

from .fakes import Api, FakeNode, make_node

pytestmark = pytest.mark.anyio

SERVING = NodeStatus((ModelStatus("m", "llama"),))
DAY_S = 86_400.0


def _node(**changes: Any) -> FakeNode:
    return make_node(**{"answers": {"model.list": []}, **changes})


async def _problems(api: Api) -> list[tuple[str, str, str]]:
    status, answer = await api.call("GET", "/problems")
    assert status == 200
    assert all(problem["advice"] for problem in answer["data"])
    return [(problem["kind"], problem["subject"], problem["text"]) for problem in answer["data"]]


def _with(detail: dict[str, Any]) -> FakeNode:
    return _node(status=replace(SERVING, detail=detail))


async def test_a_node_whose_only_model_failed_is_not_told_to_deploy_one(api: Api) -> None:
    failed = NodeStatus(detail={"failed_models": {"m": "out of memory"}})
    api.fleet.known = [_node(status=failed)]
    assert await _problems(api) == []


@pytest.mark.parametrize("engine", [None, "x", [], {"problem": ""}, {"problem": 5}, {}])
async def test_what_an_engine_tells_oddly_is_no_problem(api: Api, engine: Any) -> None:
    api.fleet.known = [_with({"engine": engine})]
    assert await _problems(api) == []


async def test_a_fleet_that_serves_has_none(api: Api) -> None:
    api.fleet.known = [_node(status=SERVING)]
    assert await _problems(api) == []


@pytest.mark.parametrize(
    ("node", "kind", "text"),
    [
        (_node(state="offline"), "node", "it is offline"),
        (_node(state="reconnecting", status=SERVING), "node", "its connection was lost"),
        (_node(copied=True, status=SERVING), "node", "a second machine"),
        (_node(), "node", "it serves no model"),
        (
            _with({"upstreams": {"ollama@x": {"up": False, "error": "connection refused"}}}),
            *("upstream", "ollama@x is not used: connection refused"),
        ),
        (_with({"parts_down": {"discovery": "OSError"}}), "node", "its part 'discovery' fails"),
        (_with({"models_left_out": 3}), "node", "3 of its models"),
        (_with({"engine": {"problem": "it can't use its GPU"}}), "node", "it can't use its GPU"),
    ],
)
async def test_what_is_wrong_with_a_node(api: Api, node: FakeNode, kind: str, text: str) -> None:
    api.fleet.known = [node]
    [(found, subject, said)] = await _problems(api)
    assert (found, subject) == (kind, "box")
    assert said.startswith(text)


@pytest.mark.parametrize(
    "detail",
    [
        {"upstreams": [1]},
        {"upstreams": {"a": 7, "b": {"up": "no"}}},
        {"upstreams": {1: None}, "parts_down": "all"},
        {"models_left_out": "many"},
    ],
)
async def test_a_node_that_tells_nonsense_of_itself_breaks_nothing(
    api: Api, detail: dict[str, Any]
) -> None:
    api.fleet.known = [_with(detail)]
    assert await _problems(api) == []


async def test_a_long_reason_of_a_node_is_cut(api: Api) -> None:
    api.fleet.known = [_with({"upstreams": {"a": {"up": False, "error": "x" * 10_000}}})]
    [(_, _, text)] = await _problems(api)
    assert len(text) == 300


@pytest.mark.parametrize(
    ("ends_in_s", "text"),
    [(-1.0, "the certificate ended on"), (2 * DAY_S, "the certificate ends on"), (None, "")],
)
async def test_a_certificate_that_was_not_renewed(
    api: Api, clock: Clock, ends_in_s: float | None, text: str
) -> None:
    api.fleet.known = [_node(status=SERVING)]
    ends = None if ends_in_s is None else clock.now + ends_in_s
    health = api.context.health
    health.condition = replace(health.condition, certificate_ends=lambda: ends)
    found = await _problems(api)
    assert [(kind, said[: len(text)]) for kind, _, said in found] == (
        [("certificate", text)] if text else []
    )


async def test_what_is_wrong_with_the_relay_comes_first(api: Api) -> None:
    api.context.health.condition = RelayCondition(
        lambda: 0.0, lambda: UsageState(5, 2, behind=True), FolderProbe(Path("/nowhere"))
    )
    kinds = [kind for kind, _, _ in await _problems(api)]
    assert kinds == ["certificate", "database", "database", "setup"]


async def test_a_database_that_does_not_answer_for_limits(api: Api) -> None:
    api.fleet.known = [_node(status=SERVING)]
    health = api.context.health
    state = LimitsState(here=9, there=1, refused=0, unanswered=3, round_trips=2, away_since=None)
    health.condition = replace(health.condition, limits=lambda: state)
    assert await _problems(api) == []
    state = state._replace(away_since=1_795_435_200.0)
    [(kind, _, said)] = await _problems(api)
    assert kind == "database"
    assert "since 2026-11-23 12:00:00 UTC; 3 requests were refused" in said


async def test_a_failed_deployment_is_told_with_its_reason(api: Api) -> None:
    node = _node(status=SERVING)
    entry = {
        "model": "a/b:Q4",
        "state": "failed",
        "reason": "out of memory",
        "log_tail": [],
        "swap_error": "",
        "context": 512,
        "context_served": None,
        "slots": 1,
        "size_bytes": 1,
        "in_flight": 0,
        "progress": None,
    }
    node.answers["model.list"] = [entry]
    api.fleet.known = [node]
    assert await _problems(api) == [
        ("deployment", "a/b:Q4 on box", "it failed: out of memory"),
    ]


def _record(**fields: Any) -> RequestRecord:
    record = RequestRecord("req", 0.0, "POST", "/v1/chat/completions")
    for name, value in fields.items():
        setattr(record, name, value)
    return record


def _fail(api: Api, node: str, times: int = 3) -> None:
    for _ in range(times):
        tried = [Attempt(node, "m", "", 0.0, fault="upstream_broke")]
        api.context.health.outcomes.finish(
            _record(key_id="key_1", status=500, fault="upstream_broke", tried=tried, attempts=1)
        )


async def test_a_node_that_answers_only_errors_is_told(api: Api) -> None:
    api.fleet.known = [_node(status=SERVING)]
    _fail(api, "box")
    assert await _problems(api) == [
        (
            *("upstream", "box"),
            "the last 3 requests for m failed there: the server answered with an error, or broke"
            " off",
        )
    ]


@pytest.mark.parametrize(
    "node",
    [
        _node(state="offline"),
        _with({"upstreams": {"llama": {"up": False, "error": "connection refused"}}}),
    ],
)
async def test_a_failure_whose_cause_is_told_is_not_told_twice(api: Api, node: FakeNode) -> None:
    api.fleet.known = [node]
    _fail(api, "box")
    assert len(await _problems(api)) == 1


async def test_a_provider_that_only_fails_is_told_as_a_provider(api: Api) -> None:
    api.fleet.known = [_node(status=SERVING)]
    _fail(api, "provider:cloud")
    [(kind, subject, _)] = await _problems(api)
    assert (kind, subject) == ("provider", "provider:cloud")


@pytest.mark.parametrize(
    ("key", "fault", "subject", "text"),
    [
        ("key_1", "insufficient_quota", "app", "its tokens of this month are used up"),
        ("key_1", "rate_limit_exceeded", "app", "its limits of a minute are too low"),
        ("key_1", "forbidden", "app", "it asks for a model or a node"),
        ("key_2", "invalid_api_key", "old", "it is revoked, and still used"),
        ("wai_sk_abcd", "invalid_api_key", "wai_sk_abcd…", "no key of this relay begins so"),
    ],
)
async def test_a_key_that_is_refused_often_is_told_with_who_uses_it(
    api: Api, key: str, fault: str, subject: str, text: str
) -> None:
    api.fleet.known = [_node(status=SERVING)]
    known = {"key_1": KnownKey("app", "good"), "key_2": KnownKey("old", "revoked")}
    api.context.health.known_key = known.get
    for _ in range(60):
        api.context.health.outcomes.finish(
            _record(refused_key=key, status=429, fault=fault, address="10.0.0.7")
        )
    [(kind, named, said)] = await _problems(api)
    assert (kind, named) == ("key", subject)
    assert said.startswith(text)
    assert "60 requests of the last 10 minutes were refused, the last time from 10.0.0.7" in said


async def test_a_problem_keeps_its_id_and_its_beginning_while_it_lasts(
    api: Api, clock: Clock
) -> None:
    api.fleet.known = [_node(status=SERVING)]
    _fail(api, "box")
    [first] = api.context.health.problems()
    clock.now += 60.0
    _fail(api, "box")
    [later] = api.context.health.problems()
    assert (later.id, later.since) == (first.id, first.since)
    assert later.text != first.text


async def test_kinds_that_the_operator_ignores_are_not_told(api: Api) -> None:
    api.fleet.known = [_node(state="offline")]
    api.context.health.config = HealthConfig(("node",))
    assert await _problems(api) == []


def test_a_kind_that_does_not_exist_can_not_be_ignored() -> None:
    with pytest.raises(RequestError, match="'colck'"):
        HealthConfig(("colck",))


async def test_two_relays_that_tell_nodes_the_same_address_are_named(api: Api) -> None:
    relays = api.context.relays
    api.context.health.relays = relays
    here = RelayRecord(relays.own_id, "vps1", b"1" * 32, "https://llm.example.com", None, "0", 1.0)
    there = msgspec.structs.replace(here, id="relay_other", name="vps2", public_key=b"2" * 32)
    relays.all = (here, msgspec.structs.replace(there, url="https://vps2.example.com"))
    assert not any("same address" in text for _, _, text in await _problems(api))
    relays.all = (here, there)
    [(kind, _, text)] = [told for told in await _problems(api) if "same address" in told[2]]
    assert kind == "setup"
    assert "https://llm.example.com, for this relay and for vps2" in text


async def test_a_relay_that_hears_nothing_of_the_others_says_so(api: Api) -> None:
    relays = api.context.relays
    api.context.health.relays = relays
    relays.deaf_s = lambda: 5.0
    assert not any(kind == "database" for kind, _, _ in await _problems(api))
    relays.deaf_s = lambda: 61.0
    assert ("database", "relay", "what other relays change is not heard for 61 s") in (
        await _problems(api)
    )


async def test_a_clock_that_differs_from_the_databases_is_named(api: Api) -> None:
    relays = api.context.relays
    api.context.health.relays = relays
    relays.clock_ahead_s = 300.0
    told = ("clock", "relay", "the clock is 300 s behind that of the database")
    assert told in await _problems(api)
