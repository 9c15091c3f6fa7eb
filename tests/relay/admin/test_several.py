"""One deployment on several nodes: who gets it, who is left out, and what fails alone."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import pytest
from msgspec.structs import replace

from tests.relay.admin.test_api import DEPLOYED
from wai_api.models import DeploymentView, NodeFit, QuantFitView
from wai_protocol.errors import Fault, RequestError, WaiError
from wai_relay.admin.replicas import rank

from .fakes import Api, FakeNode, make_node

pytestmark = pytest.mark.anyio
MODEL: Final = "tiny/llama-GGUF"


def quant(name: str = "F16", verdict: str = "gpu", **more: Any) -> dict[str, Any]:
    told = {"quant": name, "size_bytes": 9, "low_bytes": 1, "high_bytes": 2, "gpu_layers": 0}
    reason = "needs 9 GiB, and only 1 GiB of RAM are free" if verdict == "no" else ""
    return {**told, "verdict": verdict, "largest_context": 512, "reason": reason, **more}


def fits(node: str, *quants: dict[str, Any], error: str | None = None) -> NodeFit:
    return NodeFit(node=node, quants=tuple(QuantFitView(**q) for q in quants), error=error)


def box(name: str, *quants: dict[str, Any], **answers: Any) -> FakeNode:
    node = make_node(
        answers={
            "model.fit": list(quants or (quant(),)),
            "model.deploy": {"model": f"{MODEL}:F16"},
            "model.list": [DEPLOYED],
            **answers,
        }
    )
    node.record = replace(node.record, name=name, id=f"node_{name}")
    return node


async def several(api: Api, **wanted: Any) -> list[dict[str, Any]]:
    status, answer = await api.call("POST", "/deployments/several", {"model": MODEL, **wanted})
    assert status == 202, answer
    return list(answer["data"])


def outcomes(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["node"]: row["outcome"] for row in rows}


async def test_one_that_fails_does_not_keep_the_others_from_it(api: Api) -> None:
    refusal = RequestError("it does not fit this node")
    api.fleet.known = [box("a"), box("b", **{"model.deploy": refusal}), box("c", connected=False)]
    api.fleet.known[2].connected = False
    rows = await several(api, nodes=["a", "b", "c", "nobody"], load="on_demand", priority=2)
    assert outcomes(rows) == {"a": "deployed", "b": "failed", "c": "failed", "nobody": "failed"}
    assert rows[0]["deployment"]["node"] == "a"
    assert rows[1]["reason"] == "it does not fit this node"
    assert "not connected" in rows[2]["reason"]
    [(_, sent), _] = api.fleet.known[0].calls
    assert (sent["load"], sent["priority"]) == ("on_demand", 2)


async def test_all_means_all_that_may_deploy(api: Api) -> None:
    barred = box("barred")
    barred.record = replace(barred.record, may_deploy=False)
    api.fleet.known = [box("a"), box("b"), barred]
    assert outcomes(await several(api)) == {"a": "deployed", "b": "deployed"}
    api.fleet.known = [barred]
    status, _ = await api.call("POST", "/deployments/several", {"model": MODEL})
    assert status == 503


async def test_replicas_go_where_it_fits_best_and_the_others_are_told_why_not(api: Api) -> None:
    ill = WaiError("the hub is down", Fault.UPSTREAM_UNREACHABLE)
    none: dict[str, Any] = {"model.list": []}
    api.fleet.known = [
        box("slow", quant(verdict="cpu"), **none),
        box("small", quant(), **none),
        box("large", quant(largest_context=4096), **none),
        box("full", quant(verdict="no"), **none),
        box("ill", **{"model.fit": ill, **none}),
    ]
    for node in api.fleet.known:
        answers = node.answers
        answers["model.list"] = [] if node.record.name == "full" else [DEPLOYED]
    rows = await several(api, replicas=2)
    assert outcomes(rows) == {
        "large": "deployed",
        "small": "deployed",
        "slow": "left_out",
        "full": "left_out",
        "ill": "left_out",
    }
    told = {row["node"]: row["reason"] for row in rows}
    assert "only 1 GiB" in told["full"]
    assert told["ill"] == "the hub is down"


async def test_a_replica_that_a_node_refuses_goes_to_the_next_best(api: Api) -> None:
    api.fleet.known = [
        box("best", quant(largest_context=4096), **{"model.deploy": RequestError("no room")}),
        box("next"),
    ]
    rows = await several(api, replicas=1)
    assert outcomes(rows) == {"best": "failed", "next": "deployed"}


@pytest.mark.parametrize("body", [{"replicas": 0}, {"nodes": []}, {"nodes": [""]}, {"node": "a"}])
async def test_what_makes_no_sense_reaches_no_node(api: Api, body: dict[str, Any]) -> None:
    api.fleet.known = [box("a")]
    status, _ = await api.call("POST", "/deployments/several", {"model": MODEL, **body})
    assert (status, api.fleet.known[0].calls) == (400, [])


def test_all_replicas_have_the_same_quantisation() -> None:
    found = rank(
        [fits("a", quant("Q4_0"), quant("Q8_0")), fits("b", quant("Q8_0"))], [], "some/repo"
    )
    assert found.model == "some/repo:Q4_0"
    assert [choice.node for choice in found.best] == ["a"]
    assert "Q4_0 is not to be had" in found.left_out[0].reason
    assert rank([fits("a", quant())], [], "./x.gguf").model == "./x.gguf"


def test_a_node_that_has_it_already_counts_as_a_replica() -> None:
    row = {**DEPLOYED, "model": "some/repo:F16", "id": "1", "node": "full", "node_id": "n"}
    there = msgspec.convert(row, DeploymentView)
    found = rank([fits("free", quant()), fits("full", quant(verdict="no"))], [there], "some/repo")
    assert [choice.node for choice in found.best] == ["full", "free"]
    assert "already" in found.best[0].reason
