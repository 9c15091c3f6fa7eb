"""A CLI and a relay of different versions: what one does not know does not stop the other."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import pytest
from msgspec import Struct

from wai_api.invites import CreateInvite
from wai_api.keys import CreateKey, KeyList, KeyView
from wai_api.limits import LimitChanges
from wai_api.nodes import NodeView
from wai_api.relay import ChangeSettings
from wai_api.schema import api_types
from wai_cli.client.answers import read_as
from wai_protocol.errors import TransportError

_KEY: Final[dict[str, Any]] = {
    "id": "key_1",
    "name": "app",
    "prefix": "wai_sk_abcd",
    "created_at": 1.0,
    "revoked_at": None,
    "limits": {"rpm": 5},
}
_NODE: Final[dict[str, Any]] = {
    "id": "node_1",
    "name": "box",
    "state": "ready",
    "models": ["m"],
    "serving": [],
    "slots_total": None,
    "slots_busy": 0,
    "queued": 0,
    "reconnects": 0,
    "connected_at": None,
    "version": "0.1.0",
    "tags": [],
    "may_deploy": True,
    "joined_at": 1.0,
    "detail": {},
}


def test_an_older_cli_ignores_what_a_newer_relay_adds() -> None:
    limits = {"rpm": 5, "invented_later": [1]}
    answer = {"data": [{**_KEY, "limits": limits, "owner": {"name": "x"}}], "next": "key_1"}
    [key] = read_as(KeyList, answer).data
    assert (key.id, key.limits.rpm) == ("key_1", 5)


def test_an_older_cli_shows_a_state_that_it_does_not_know() -> None:
    assert read_as(NodeView, {**_NODE, "state": "upgrading"}).state == "upgrading"


def test_a_newer_cli_reads_an_older_relays_key_with_fewer_limits_and_a_wider_range() -> None:
    key = read_as(KeyView, {**_KEY, "limits": {"priority": 100}})
    assert (key.limits.priority, key.limits.rpm, key.limits.models) == (100, None, ())


def test_a_newer_cli_reads_a_node_of_a_relay_that_does_not_tell_of_copies() -> None:
    assert read_as(NodeView, _NODE).copied is False


@pytest.mark.parametrize("struct", api_types(), ids=lambda struct: struct.__name__)
def test_only_requests_refuse_what_they_do_not_know(struct: type[Struct]) -> None:
    asked = struct.__name__.startswith(
        ("Create", "Change", "Rotate", "ReplayRequest", "Start", "LimitChanges", "SignInRequest")
    )
    is_answer = struct.__name__.startswith("Created") or struct.__name__ == "Changed"
    assert struct.__struct_config__.forbid_unknown_fields is (asked and not is_answer)


@pytest.mark.parametrize("request_type", [CreateKey, LimitChanges, CreateInvite, ChangeSettings])
def test_a_relay_refuses_a_field_that_it_does_not_know(request_type: type[Struct]) -> None:
    with pytest.raises(msgspec.ValidationError, match=r"unknown field|required field"):
        msgspec.convert({"invented_later": 1}, request_type)


@pytest.mark.parametrize("answer", [{}, [], None, {**_KEY, "id": 5}, {**_KEY, "limits": []}])
def test_an_answer_that_is_none_is_told_in_words(answer: object) -> None:
    with pytest.raises(TransportError, match="install the same version"):
        read_as(KeyView, answer)
