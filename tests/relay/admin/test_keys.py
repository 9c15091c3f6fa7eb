"""Keys in the admin API: rotated, labelled, and what they used, by label too."""

from __future__ import annotations

from typing import Any

import pytest

from tests.relay.conftest import Clock
from wai_relay.contracts.records import RequestRecord, TokenCounts
from wai_relay.storage import SqliteStore
from wai_relay.usage.rollups import writes_for

from .fakes import Api

pytestmark = pytest.mark.anyio


async def _audit(api: Api) -> list[tuple[str, dict[str, Any]]]:
    entries = await api.context.audit.list()
    return [(entry.action, entry.detail) for entry in entries]


async def test_a_key_is_rotated_by_its_name_and_that_is_audited(api: Api, clock: Clock) -> None:
    _, made = await api.call("POST", "/keys", {"name": "app", "labels": ["team=web"]})
    status, rotated = await api.call("POST", "/keys/app/rotate", {"grace_s": 3600})
    assert status == 200
    assert rotated["key"] != made["key"]
    assert (rotated["id"], rotated["former_until"]) == (made["id"], clock.now + 3600)
    [(action, detail), *_] = await _audit(api)
    assert (action, detail) == ("key.rotate", {"name": "app", "grace_s": 3600})
    assert rotated["key"] not in str(await _audit(api))
    _, listed = await api.call("GET", "/keys")
    [key] = listed["data"]
    assert (key["labels"], key["former_until"]) == (["team=web"], clock.now + 3600)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/keys/apq/rotate", {}, 404),
        ("/keys/app/rotate", {"grace_s": -1}, 400),
        ("/keys/app/rotate", {"grace_s": 1e9}, 400),
        ("/keys/app/rotate", {"grace": 5}, 400),
    ],
)
async def test_a_rotation_that_makes_no_sense_is_refused(
    api: Api, path: str, body: dict[str, Any], status: int
) -> None:
    await api.call("POST", "/keys", {"name": "app"})
    found, answer = await api.call("POST", path, body)
    assert found == status
    if status == 404:
        assert "did you mean 'app'?" in answer["error"]["message"]


@pytest.mark.parametrize(
    "labels", [["a b"], [""], ["-a"], ["a" * 64], ["x"] * 17, "prod", [5], ["a\n"]]
)
async def test_labels_that_make_no_sense_are_refused(api: Api, labels: Any) -> None:
    status, _ = await api.call("POST", "/keys", {"name": "app", "labels": labels})
    assert status == 400


async def test_keys_are_listed_by_label(api: Api) -> None:
    for name, labels in (("a", ["web"]), ("b", ["web", "prod"]), ("c", [])):
        await api.call("POST", "/keys", {"name": name, "labels": labels})
    _, changed = await api.call("PATCH", "/keys/a", {"labels": []})
    assert changed["labels"] == []
    _, listed = await api.call("GET", "/keys?label=web")
    assert [key["name"] for key in listed["data"]] == ["b"]
    _, page = await api.call("GET", "/keys?label=web&limit=1")
    assert [key["name"] for key in page["data"]] == ["b"], "the first page is of those with it"


async def test_a_key_was_not_used_before_it_was_made(
    api: Api, store: SqliteStore, clock: Clock
) -> None:
    await _use(api, store, clock.now, "a", [])  # usage is kept by the hour
    _, listed = await api.call("GET", "/keys")
    (key,) = listed["data"]
    assert key["last_used_at"] == key["created_at"]


async def _use(api: Api, store: SqliteStore, at: float, name: str, labels: list[str]) -> None:
    key, _ = await api.context.keys.create(name, None, labels)
    tokens = TokenCounts(10, 0, 5, exact=True)
    used = RequestRecord(f"req_{name}", at, "POST", "/v1/chat/completions", tokens=tokens)
    used.key_id, used.model, used.node, used.status, used.attempts = key.id, "m", "box", 200, 1
    used.ttft_ms = 100.0
    await store.write(*writes_for([(used, "m")]))
    api.context.months.add(key.id, at, tokens.total)


async def test_usage_is_added_up_by_label(api: Api, store: SqliteStore, clock: Clock) -> None:
    await _use(api, store, clock.now - 10, "a", ["web"])
    await _use(api, store, clock.now - 10, "b", ["web", "prod"])
    await _use(api, store, clock.now - 10, "c", [])
    _, answer = await api.call("GET", "/usage?by=label")
    found = {row["group"]: (row["requests"], row["prompt_tokens"]) for row in answer["data"]}
    assert found == {"web": (2, 20), "prod": (1, 10), "": (1, 10)}
    assert all(row["ttft_p50_ms"] for row in answer["data"])
    _, top = await api.call("GET", "/usage?by=label&limit=1")
    assert [row["group"] for row in top["data"]] == ["web"]
    assert (top["others"]["requests"], top["other_groups"]) == (2, 2)
    _, only = await api.call("GET", "/usage?by=key&label=prod")
    assert [row["requests"] for row in only["data"]] == [1]
    _, both = await api.call("GET", "/usage?by=label&label=prod")
    assert {row["group"] for row in both["data"]} == {"prod", "web"}
    status, refused = await api.call("GET", "/usage?by=key&label=prpd")
    assert status == 404
    assert "did you mean 'prod'?" in refused["error"]["message"]


async def test_the_list_tells_what_each_key_took_this_month(
    api: Api, store: SqliteStore, clock: Clock
) -> None:
    await _use(api, store, clock.now, "a", [])
    _, listed = await api.call("GET", "/keys")
    assert [key["month_tokens"] for key in listed["data"]] == [15]
