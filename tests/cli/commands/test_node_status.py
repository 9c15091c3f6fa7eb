"""What `wai node status` says of a node whose parts fail, whatever the node told of them."""

from __future__ import annotations

from typing import Any

import pytest

from wai_api.nodes import NodeView
from wai_cli.commands.fleet import _say_parts_down, _say_upstreams_down


def box(detail: dict[str, Any]) -> NodeView:
    return NodeView(
        id="node_1",
        name="box",
        state="ready",
        models=(),
        serving=(),
        slots_total=None,
        slots_busy=0,
        queued=0,
        reconnects=0,
        connected_at=None,
        version="",
        tags=(),
        may_deploy=True,
        joined_at=0.0,
        detail=detail,
    )


@pytest.mark.parametrize("told", [None, {}, [], "x", 1])
def test_a_node_without_failed_parts_gets_no_line(
    told: object, capsys: pytest.CaptureFixture[str]
) -> None:
    _say_parts_down(box({"parts_down": told}))
    _say_parts_down(box({}))
    assert capsys.readouterr().out == ""


def test_each_failed_part_gets_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    down = {"discovery": "KeyError", "managed models": "the disk is full"}
    _say_parts_down(box({"parts_down": down}))
    assert capsys.readouterr().out.splitlines() == [
        "its part 'discovery' fails and is started again (KeyError): the node's log says more",
        "its part 'managed models' fails and is started again (the disk is full):"
        " the node's log says more",
    ]


@pytest.mark.parametrize("told", [None, [], "x", {"a": None}, {"a": {}}, {"a": {"up": True}}])
def test_servers_that_are_used_or_told_oddly_get_no_line(
    told: object, capsys: pytest.CaptureFixture[str]
) -> None:
    _say_upstreams_down(box({"upstreams": told}))
    assert capsys.readouterr().out == ""


def test_a_server_that_is_not_used_gets_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    down = {"openai@h:1": {"up": False, "error": "connection refused"}, "b": {"up": True}}
    _say_upstreams_down(box({"upstreams": down}))
    assert capsys.readouterr().out == "openai@h:1 is not used: connection refused\n"
