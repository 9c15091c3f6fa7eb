"""What is wrong is said in words, with what to do; what is right is not mentioned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.relay.conftest import Clock
from wai_protocol.status import ModelStatus, NodeStatus
from wai_relay.admin.condition import RelayCondition
from wai_relay.contracts.records import UsageState

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
    api.context.condition = replace(api.context.condition, certificate_ends=lambda: ends)
    found = await _problems(api)
    assert [(kind, said[: len(text)]) for kind, _, said in found] == (
        [("certificate", text)] if text else []
    )


async def test_what_is_wrong_with_the_relay_comes_first(api: Api) -> None:
    api.context.condition = RelayCondition(
        lambda: 0.0, lambda: UsageState(5, 2, behind=True), Path("/nowhere")
    )
    kinds = [kind for kind, _, _ in await _problems(api)]
    assert kinds == ["certificate", "database", "database", "setup"]


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
