"""The admin API, driven as ASGI: who may ask, what is refused, what each change does."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

import pytest
from msgspec.structs import replace

from tests.relay.conftest import Clock
from wai_protocol.errors import AuthError, Fault, RequestError, WaiError
from wai_protocol.invite import decode
from wai_protocol.status import ModelStatus, NodeStatus
from wai_relay.access.admins import Admins
from wai_relay.admin.app import BASE, ENDPOINTS
from wai_relay.admin.endpoint import MAX_BODY_BYTES
from wai_relay.contracts.records import RequestRecord, TokenCounts
from wai_relay.observe.explain import Explanations
from wai_relay.storage import SqliteStore
from wai_relay.usage.rollups import writes_for

from .fakes import TOKEN, Api, FakeNode, make_node

pytestmark = pytest.mark.anyio


async def test_nothing_is_done_without_an_admin_token(api: Api) -> None:
    for endpoint in ENDPOINTS:
        path = endpoint.path.format(
            node="box",
            key="key_1",
            invite="inv_1",
            admin="a",
            request="req_1",
            sign_in="si_1",
            relay="vps",
            trial="trial_1",
        )
        for token in (None, "", "wai_at_wrong", "x" * 10_000):
            status, answer = await api.call(endpoint.method, path, token=token)
            assert status == 401, endpoint
            assert answer["error"]["type"] == "authentication_error"


async def test_a_401_says_how_to_sign_in(api: Api) -> None:
    _, headers, _ = await api.request("GET", "/nodes", None, token=None, raw=None)
    assert headers[b"www-authenticate"] == b"Bearer"
    assert headers[b"cache-control"] == b"no-store"


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"[]",
        b'"x"',
        b"{}",
        b'{"name": 3}',
        b'{"name": ""}',
        b'{"name": "a", "limit": {}}',
        b'{"name": "a", "limits": {"rpn": 5}}',
        b'{"name": "a", "limits": {"rpm": 0}}',
        b'{"name": "a", "limits": {"rpm": 1e99}}',
        b'{"name": "\xff"}',
        b"[" * 50_000,
    ],
)
async def test_a_body_that_is_not_what_is_expected_changes_nothing(api: Api, raw: bytes) -> None:
    status, answer = await api.call("POST", "/keys", raw=raw)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert await api.context.keys.list() == []


@pytest.mark.parametrize(
    ("method", "path", "body", "words"),
    [
        ("POST", "/invites", {"name": "Bad Name!"}, "name must be 1 to 63 letters, digits"),
        ("POST", "/admins", {"name": "a b"}, "name must be 1 to 64 letters, digits"),
        ("PATCH", "/settings", {"public_url": "ftp://a"}, "public_url must be an address that"),
    ],
)
async def test_nobody_has_to_read_a_regular_expression(
    api: Api, method: str, path: str, body: dict[str, str], words: str
) -> None:
    status, answer = await api.call(method, path, body)
    assert (status, answer["error"]["message"][: len(words)]) == (400, words)


async def test_an_over_long_body_is_refused(api: Api) -> None:
    status, answer = await api.call("POST", "/keys", raw=b" " * (MAX_BODY_BYTES + 1))
    assert (status, answer["error"]["code"]) == (413, "body_too_large")


async def test_unknown_paths_methods_and_parameters_are_told_apart(api: Api) -> None:
    assert (await api.call("GET", "/nothing"))[0] == 404
    status, headers, _ = await api.request("PUT", "/keys", None, token=TOKEN, raw=None)
    assert status == 405
    assert {m.strip() for m in headers[b"allow"].split(b",")} >= {b"GET", b"POST"}
    assert (await api.call("GET", "/keys?revokd=true"))[0] == 400
    assert (await api.call("GET", "/keys?revoked=maybe"))[0] == 400
    assert (await api.call("GET", "/audit?limit=0"))[0] == 400
    assert (await api.call("GET", "/audit?limit=99999999999999999999999"))[0] == 400


async def test_a_key_is_shown_once_and_works_until_it_is_revoked(api: Api) -> None:
    status, created = await api.call("POST", "/keys", {"name": "app", "limits": {"rpm": 5}})
    assert status == 201
    secret = created["key"]
    assert created["limits"]["rpm"] == 5
    _, listed = await api.call("GET", "/keys")
    assert secret not in json.dumps(listed)
    headers = [(b"x-api-key", secret.encode())]
    assert api.context.keys.authenticate(headers).id == created["id"]
    status, revoked = await api.call("DELETE", f"/keys/{created['id']}")
    assert status == 200
    assert revoked["revoked_at"] is not None
    with pytest.raises(AuthError):
        api.context.keys.authenticate(headers)
    assert (await api.call("GET", "/keys"))[1]["data"] == []
    assert len((await api.call("GET", "/keys?revoked=true"))[1]["data"]) == 1
    assert (await api.call("DELETE", "/keys/key_nobody"))[0] == 404


async def test_a_change_of_limits_leaves_the_others_as_they_are(api: Api) -> None:
    body = {"name": "app", "limits": {"rpm": 5, "models": ["m"], "continue": True}}
    _, created = await api.call("POST", "/keys", body)
    path = f"/keys/{created['id']}"
    _, changed = await api.call("PATCH", path, {"limits": {"rpm": None, "tpm": 100}})
    assert changed["limits"]["rpm"] is None
    assert changed["limits"]["tpm"] == 100
    assert changed["limits"]["models"] == ["m"]
    assert changed["limits"]["continue"] is True
    assert (await api.call("PATCH", "/keys/key_nobody", {"limits": {}}))[0] == 404


@pytest.mark.parametrize(("priority", "words"), [(4, "at most 3"), (-100, "at least -3")])
async def test_a_priority_that_the_queue_does_not_count_is_refused(
    api: Api, priority: int, words: str
) -> None:
    body = {"name": "app", "limits": {"priority": priority}}
    status, answer = await api.call("POST", "/keys", body)
    assert status == 400
    assert f"limits.priority must be a whole number, {words}" in answer["error"]["message"]


async def test_an_invite_names_the_relay_as_the_settings_say(api: Api) -> None:
    status, created = await api.call("POST", "/invites", {"name": "box", "ttl_s": 60})
    assert status == 201
    assert decode(created["invite"]).url == "https://relay.example:8443"
    await api.call("PATCH", "/settings", {"public_url": "https://other.example"})
    _, second = await api.call("POST", "/invites")
    assert decode(second["invite"]).url == "https://other.example"
    _, listed = await api.call("GET", "/invites")
    assert [i["state"] for i in listed["data"]] == ["open", "open"]
    assert created["invite"] not in json.dumps(listed)
    status, revoked = await api.call("DELETE", f"/invites/{created['id']}")
    assert (status, revoked["state"]) == (200, "revoked")
    assert (await api.call("DELETE", "/invites/inv_nobody"))[0] == 404
    assert (await api.call("POST", "/invites", {"name": "not a name"}))[0] == 400
    assert (await api.call("POST", "/invites", {"ttl_s": 1e8}))[0] == 400


async def test_settings_that_make_no_sense_change_nothing(api: Api) -> None:
    before = (await api.call("GET", "/settings"))[1]
    urls = ("relay.example", "https://", "https://a b", "https://a\n", "")
    bodies = [{"public_url": url} for url in urls]
    for body in (*bodies, {"invite_ttl_s": 1e8}, {"nothing": 1}):
        assert (await api.call("PATCH", "/settings", body))[0] == 400
    assert (await api.call("GET", "/settings"))[1] == before
    _, changed = await api.call("PATCH", "/settings", {"invite_ttl_s": 60})
    assert changed == {**before, "invite_ttl_s": 60.0}


async def test_a_node_is_listed_drained_and_removed_by_name_or_id(api: Api) -> None:
    model = ModelStatus("m", "llama", slots_total=4, slots_busy=1)
    api.fleet.known = [make_node(status=NodeStatus((model, replace(model, upstream="other"))))]
    _, listed = await api.call("GET", "/nodes")
    [node] = listed["data"]
    assert (node["name"], node["state"], node["models"]) == ("box", "ready", ["m"])
    assert (node["slots_total"], node["slots_busy"], len(node["serving"])) == (8, 2, 2)
    assert (await api.call("GET", f"/nodes/{node['id']}"))[1] == node
    assert (await api.call("POST", "/nodes/box/drain"))[1]["state"] == "draining"
    assert (await api.call("POST", "/nodes/box/undrain"))[1]["state"] == "ready"
    assert (await api.call("PATCH", "/nodes/box", {"name": "desk"}))[1]["name"] == "desk"
    assert (await api.call("PATCH", "/nodes/desk", {"name": "a b"}))[0] == 400
    assert (await api.call("PATCH", "/nodes/desk", {"name": "box"}))[0] == 200
    _, changed = await api.call("PATCH", "/nodes/box", {"slots": {"llama": 7}})
    assert changed["slots_set"] == {"llama": 7}
    _, changed = await api.call("PATCH", "/nodes/box", {"slots": {"llama": None}})
    assert changed["slots_set"] == {}
    assert (await api.call("PATCH", "/nodes/box", {"slots": {"llama": 0}}))[0] == 400
    status, answer = await api.call("PATCH", "/nodes/box", {"slots": {"lama": 7}})
    assert (status, "did you mean 'llama'" in answer["error"]["message"]) == (404, True)
    assert (await api.call("DELETE", "/nodes/box"))[0] == 200
    status, answer = await api.call("DELETE", "/nodes/box")
    assert (status, answer["error"]["code"]) == (404, "node_not_found")


async def test_an_offline_node_serves_nothing_whatever_it_said_last(api: Api) -> None:
    api.fleet.known = [make_node(state="offline", status=NodeStatus((ModelStatus("m", "u"),)))]
    _, node = await api.call("GET", "/nodes/box")
    assert (node["models"], node["slots_total"]) == ([], None)


async def test_a_model_that_is_still_downloading_has_no_slots_to_give(api: Api) -> None:
    serving = ModelStatus("m", "llama", slots_total=4, slots_busy=1)
    coming = replace(serving, id="big", upstream="managed", ready=False)
    api.fleet.known = [make_node(status=NodeStatus((serving, coming)))]
    _, node = await api.call("GET", "/nodes/box")
    assert (node["slots_total"], node["slots_busy"], node["models"]) == (4, 1, ["m", "big"])


async def test_every_change_is_in_the_audit_log_and_no_secret_is(api: Api, clock: Clock) -> None:
    api.fleet.known = [make_node()]
    _, key = await api.call("POST", "/keys", {"name": "app"})
    await api.call("PATCH", f"/keys/{key['id']}", {"limits": {"rpm": 1}})
    await api.call("DELETE", f"/keys/{key['id']}")
    _, invite = await api.call("POST", "/invites")
    await api.call("DELETE", f"/invites/{invite['id']}")
    await api.call("PATCH", "/settings", {"invite_ttl_s": 60})
    await api.call("POST", "/nodes/box/drain")
    await api.call("DELETE", "/nodes/box")
    _, log = await api.call("GET", "/audit")
    assert [entry["action"] for entry in reversed(log["data"])] == [
        *("key.create", "key.change", "key.revoke", "invite.create", "invite.revoke"),
        *("settings.change", "node.drain", "node.remove"),
    ]
    assert {entry["actor"] for entry in log["data"]} == {"local"}
    assert key["key"] not in json.dumps(log)
    assert invite["invite"] not in json.dumps(log)
    newest = log["data"][0]["id"]
    _, page = await api.call("GET", f"/audit?limit=3&before={newest}")
    assert [entry["id"] for entry in page["data"]] == [newest - 1, newest - 2, newest - 3]


async def test_the_audit_log_says_what_a_key_may_use_from_then_on(api: Api) -> None:
    _, key = await api.call("POST", "/keys", {"name": "app", "limits": {"rpm": 5}})
    await api.call("PATCH", f"/keys/{key['id']}", {"limits": {"rpm": None, "models": ["m"]}})
    _, log = await api.call("GET", "/audit")
    assert [entry["detail"] for entry in log["data"]] == [
        {"name": "app", "rpm": None, "models": ["m"]},
        {"name": "app", "rpm": 5},
    ]


async def test_the_audit_log_says_which_model_of_which_node(api: Api) -> None:
    answers = {"model.context": [DEPLOYED], "model.remove": []}
    api.fleet.known = [make_node(answers=answers)]
    model = DEPLOYED["model"]
    await api.call("PATCH", f"/deployments/box?model={model}", {"context": 1024})
    await api.call("DELETE", f"/deployments/box?model={model}")
    _, log = await api.call("GET", "/audit")
    assert [(entry["action"], entry["detail"]) for entry in log["data"]] == [
        ("model.remove", {"name": "box", "model": model}),
        ("model.context", {"name": "box", "model": model, "context": 1024}),
    ]


@pytest.mark.parametrize("verb", ["load", "unload"])
async def test_a_model_is_loaded_and_unloaded_by_its_server(api: Api, verb: str) -> None:
    row = DEPLOYED | {"model": "ollama:qwen3:8b", "served_by": "ollama", "called": "qwen3:8b"}
    node = make_node(answers={f"model.{verb}": [row]})
    api.fleet.known = [node]
    status, view = await api.call("POST", f"/deployments/box/{verb}?model=ollama:qwen3:8b")
    assert (status, view["called"]) == (200, "qwen3:8b")
    assert node.calls == [(f"model.{verb}", {"model": "ollama:qwen3:8b"})]
    _, log = await api.call("GET", "/audit")
    assert log["data"][0]["action"] == f"model.{verb}"


async def test_whoami_tells_name_and_time(api: Api, clock: Clock) -> None:
    _, who = await api.call("GET", "/whoami")
    assert (who["name"], who["time"]) == ("local", clock.now)


async def test_a_new_token_in_the_folder_replaces_the_old_one(
    store: SqliteStore, clock: Clock
) -> None:
    await Admins.load(store, "first", clock)
    admins = await Admins.load(store, "second", clock)
    assert admins.authenticate(b"second") == "local"
    with pytest.raises(AuthError):
        admins.authenticate(b"first")


async def test_a_broken_handler_answers_500_in_the_same_format(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Iterable[FakeNode]:
        raise RuntimeError("a bug")

    monkeypatch.setattr(api.fleet, "nodes", broken)
    with pytest.raises(RuntimeError):  # Starlette answers first, then lets the server log it
        await api.call("GET", "/nodes")


async def test_the_openapi_document_describes_every_endpoint(api: Api) -> None:
    status, document = await api.call("GET", "/openapi.json", token=None)
    assert status == 200
    described = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    beside = {(method, "/dashboard/session") for method in ("POST", "GET", "DELETE")}
    beside.add(("GET", f"{BASE}/events"))
    assert described == beside | {(e.method, BASE + e.path) for e in ENDPOINTS}
    references = json.dumps(document).split('"$ref": "#/components/schemas/')[1:]
    assert {ref.split('"')[0] for ref in references} <= set(document["components"]["schemas"])
    ids = [op["operationId"] for methods in document["paths"].values() for op in methods.values()]
    assert len(ids) == len(set(ids))


async def test_usage_is_told_as_json_and_as_csv_that_no_spreadsheet_runs(
    api: Api, store: SqliteStore, clock: Clock
) -> None:
    key, _ = await api.context.keys.create("=cmd()")
    tokens = TokenCounts(7, 0, 3, exact=True)
    used = RequestRecord("req_1", clock.now - 10, "POST", "/v1/chat/completions", tokens=tokens)
    used.key_id, used.model, used.node, used.status, used.attempts = key.id, "m", "box", 200, 1
    await store.write(*writes_for([(used, "m")]))
    status, answer = await api.call("GET", "/usage?by=key")
    assert status == 200
    (row,) = answer["data"]
    assert (row["group"], row["requests"], row["prompt_tokens"]) == (key.id, 1, 7)
    assert answer["names"] == {key.id: "=cmd()"}
    _, headers, text = await api.request(
        "GET", "/usage?by=key&format=csv", None, token=TOKEN, raw=None
    )
    assert headers[b"content-type"].startswith(b"text/csv")
    assert text.splitlines()[1].startswith(f"{key.id},'=cmd(),1,".encode())
    api.fleet.known = [make_node(status=NodeStatus((ModelStatus("new", "u"),)))]
    for only, requests in (("node=box", 1), ("model=m", 1), ("model=new", 0), ("key=%3Dcmd()", 1)):
        _, answer = await api.call("GET", f"/usage?{only}")
        assert sum(row["requests"] for row in answer["data"]) == requests
    for only, nearest in (("node=bix", "box"), ("model=mew", "new"), ("key=cmd", "=cmd()")):
        status, answer = await api.call("GET", f"/usage?{only}")
        assert (status, f"did you mean {nearest!r}" in answer["error"]["message"]) == (404, True)


async def test_finished_requests_are_told_and_explained_after_a_restart(
    api: Api, store: SqliteStore, clock: Clock
) -> None:
    key, _ = await api.context.keys.create("app")
    for number, status in enumerate((200, 503, 200)):
        over = RequestRecord(f"req_{number}", clock.now + number, "POST", "/v1/chat/completions")
        over.key_id, over.model, over.status = key.id, "m", status
        await store.write(*writes_for([(over, "m")]))
    _, page = await api.call("GET", "/requests/finished?limit=2")
    assert [one["id"] for one in page["data"]] == ["req_2", "req_1"]
    assert page["key_names"] == {key.id: "app"}
    _, page = await api.call("GET", f"/requests/finished?before={page['next']}&key=app")
    assert ([one["id"] for one in page["data"]], page["next"]) == (["req_0"], None)
    _, failed = await api.call("GET", "/requests/finished?failed=true")
    assert [one["status"] for one in failed["data"]] == [503]
    _, headers, text = await api.request(
        "GET", "/requests/finished?format=csv", None, token=TOKEN, raw=None
    )
    assert (headers[b"content-type"][:8], len(text.splitlines())) == (b"text/csv", 4)
    assert (await api.call("GET", "/requests/finished?key=nobody"))[0] == 404
    _, explained = await api.call("GET", "/requests/req_1/explain")
    assert (explained["status"], explained["attempts"]) == (503, [])
    assert (await api.call("GET", "/requests/req_9/explain"))[0] == 404


async def test_usage_of_ten_thousand_keys_is_asked_for_in_part(
    api: Api, store: SqliteStore, clock: Clock
) -> None:
    first, _ = await api.context.keys.create("first")
    await api.context.keys.create("unused")
    for number, key in enumerate((first.id, first.id, "key_b", "key_c")):
        used = RequestRecord(f"req_{number}", clock.now - 10, "POST", "/v1/chat/completions")
        used.key_id, used.model, used.node, used.status = key, "m", "box", 200
        await store.write(*writes_for([(used, "m")]))
    _, answer = await api.call("GET", "/usage?by=key&limit=1")
    assert [row["group"] for row in answer["data"]] == [first.id]
    assert answer["names"] == {first.id: "first"}
    assert (answer["others"]["requests"], answer["other_groups"]) == (2, 2)
    _, answer = await api.call("GET", "/usage?by=key&limit=3")
    assert (len(answer["data"]), answer["others"], answer["other_groups"]) == (3, None, 0)


@pytest.mark.parametrize(
    "query",
    [
        "by=caller",
        "by=day&limit=5",
        "by=key&limit=5&format=csv",
        "by=key&limit=0",
        "by=key&limit=501",
        "since=5&until=5",
        "since=-1",
        "format=xml",
        "by=hour&since=0",
        "model=" + "m" * 300,
        "who=me",
    ],
)
async def test_a_question_about_usage_that_makes_no_sense_is_refused(api: Api, query: str) -> None:
    assert (await api.call("GET", f"/usage?{query}"))[0] == 400


async def test_running_requests_are_listed_ended_and_explained(api: Api) -> None:
    ended: list[str] = []
    record = RequestRecord("req_1", 1.0, "POST", "/v1/chat/completions", model="m")
    live = api.context.live.enter(record, 0.0, lambda: ended.append("req_1"))
    _, listed = await api.call("GET", "/requests")
    assert [(view["id"], view["state"]) for view in listed["data"]] == [("req_1", "queued")]
    assert (await api.call("GET", "/requests/req_1/explain"))[1]["running"] is True
    assert (await api.call("DELETE", "/requests/req_1"))[0] == 200
    assert ended == ["req_1"]
    api.context.live.leave(live)
    api.context.explanations.remember(record)
    assert (await api.call("DELETE", "/requests/req_1"))[0] == 404
    assert (await api.call("GET", "/requests/req_1/explain"))[1]["running"] is False
    status, answer = await api.call("GET", "/requests/req_2/explain")
    assert status == 404
    assert "is kept" in answer["error"]["message"]


def test_the_oldest_explanations_are_forgotten_first() -> None:
    kept = Explanations(2)
    for n in range(3):
        kept.remember(RequestRecord(f"req_{n}", 1.0, "POST", "/v1/chat/completions"))
    assert kept.find("req_0") is None
    assert kept.find("req_2") is not None


DEPLOYED: Final = {
    "model": "tiny/llama-GGUF:F16",
    "state": "ready",
    "reason": "",
    "log_tail": [],
    "swap_error": "",
    "context": 512,
    "context_served": 512,
    "slots": 2,
    "changing": False,
    "size_bytes": 640_000,
    "in_flight": 0,
    "served_by": "",
    "called": "",
    "lora": "",
    "cpu_moe": None,
    "gpus": [],
    "reasoning_format": "auto",
    "environment": [],
    "draft": "",
    "draft_max": None,
    "alias": "",
    "estimated_bytes": None,
    "seen_bytes": None,
    "progress": None,
    "purpose": "chat",
    "mmproj": "",
    "idle_unload_s": None,
    "cache_type": "f16",
    "gpu_layers": None,
    "flash_attention": "auto",
    "engine_flags": [],
    "load": "keep_loaded",
    "priority": 0,
    "load_ms": None,
}


async def test_a_deployment_is_the_nodes_word_with_the_nodes_name(api: Api) -> None:
    node = make_node(
        answers={"model.deploy": {"model": DEPLOYED["model"]}, "model.list": [DEPLOYED]}
    )
    api.fleet.known = [node]
    status, view = await api.call(
        "POST", "/deployments", {"node": "box", "model": "tiny/llama-GGUF", "context": 512}
    )
    named = {"id": f"{node.record.id} {DEPLOYED['model']}", "node_id": node.record.id}
    assert (status, view) == (202, {"node": "box", **named, **DEPLOYED})
    assert node.calls[0] == (
        "model.deploy",
        {"model": "tiny/llama-GGUF", "context": 512, "slots": None, "idle_unload_s": None},
    )
    [entry] = await api.context.audit.list(limit=1)
    assert (entry.action, entry.detail["model"]) == ("model.deploy", DEPLOYED["model"])


async def test_a_failed_deployment_is_tried_again_and_that_is_in_the_audit_log(api: Api) -> None:
    again = {**DEPLOYED, "state": "downloading"}
    node = make_node(answers={"model.retry": [again]})
    api.fleet.known = [node]
    path = f"/deployments/box/retry?model={DEPLOYED['model']}"
    status, view = await api.call("POST", path)
    assert (status, view["state"]) == (200, "downloading")
    assert node.calls == [("model.retry", {"model": DEPLOYED["model"]})]
    [entry] = await api.context.audit.list(limit=1)
    assert (entry.action, entry.detail["model"]) == ("model.retry", DEPLOYED["model"])
    node.answers["model.retry"] = RequestError("it has not failed: it is ready")
    status, answer = await api.call("POST", path)
    assert (status, answer["error"]["message"]) == (400, "it has not failed: it is ready")


async def test_an_answer_that_makes_no_sense_is_the_nodes_fault_not_a_crash(api: Api) -> None:
    for answer in ("nonsense", [1, 2], [{**DEPLOYED, "slots": "two"}], None):
        api.fleet.known = [
            make_node(answers={"model.deploy": answer, "model.list": answer, "model.logs": answer})
        ]
        status, _ = await api.call("POST", "/deployments", {"node": "box", "model": "a/b"})
        assert status in (500, 502)
        status, _ = await api.call("GET", "/deployments/box/logs?model=a")
        assert status == 502


async def test_one_node_that_can_not_tell_does_not_hide_what_the_others_say(api: Api) -> None:
    quant = {
        "quant": "F16",
        "size_bytes": 1,
        "verdict": "cpu",
        "low_bytes": 1,
        "high_bytes": 2,
        "largest_context": 512,
        "gpu_layers": 0,
        "reason": "",
    }
    well = make_node(answers={"model.fit": [quant]})
    ill = make_node(answers={"model.fit": WaiError("the hub is down", Fault.UPSTREAM_UNREACHABLE)})
    mad = make_node(answers={"model.fit": [{**quant, "size_bytes": "much"}]})
    api.fleet.known = [well, ill, mad]
    status, found = await api.call("GET", "/models/fit?repo=a/b")
    assert status == 200
    assert [(row["error"], len(row["quants"])) for row in found["data"][:2]] == [
        (None, 1),
        ("the hub is down", 0),
    ]
    assert "makes no sense" in found["data"][2]["error"]


async def test_a_node_without_the_hub_does_not_hide_what_another_finds(api: Api) -> None:
    down = WaiError("the hub is down", Fault.UPSTREAM_UNREACHABLE)
    ill = make_node(answers={"model.search": down})
    well = make_node(answers={"model.search": []})
    api.fleet.known = [ill, well]
    assert await api.call("GET", "/models/search?q=tiny") == (200, {"data": []})
    api.fleet.known = [ill, ill]
    status, answer = await api.call("GET", "/models/search?q=tiny")
    assert (status, answer["error"]["message"]) == (502, "box: the hub is down")


async def test_a_node_that_may_not_deploy_or_is_away_is_not_asked(api: Api) -> None:
    barred = make_node()
    barred.record = replace(barred.record, may_deploy=False)
    api.fleet.known = [barred]
    wanted = {"node": "box", "model": "a/b"}
    status, _ = await api.call("POST", "/deployments", wanted)
    assert status == 403
    api.fleet.known = [make_node(connected=False)]
    status, _ = await api.call("POST", "/deployments", wanted)
    assert status == 503
    status, _ = await api.call("GET", "/models/search?q=tiny")
    assert status == 503
    assert [node.calls for node in (barred, *api.fleet.known)] == [[], []]


async def test_a_missing_query_parameter_is_named(api: Api) -> None:
    status, answer = await api.call("GET", "/models/search")
    assert status == 400
    assert "'q'" in answer["error"]["message"]


async def test_a_whole_number_may_be_written_with_a_point(api: Api) -> None:
    status, created = await api.call("POST", "/keys", raw=b'{"name":"a","limits":{"rpm":5.0}}')
    assert (status, created["limits"]["rpm"]) == (201, 5)
    for number in (b"5.5", b"1e300", b'"5"'):
        raw = b'{"name":"a","limits":{"rpm":' + number + b"}}"
        assert (await api.call("POST", "/keys", raw=raw))[0] == 400


async def test_the_admin_of_this_machine_is_not_revoked_over_the_api(api: Api) -> None:
    status, answer = await api.call("DELETE", "/admins/local")
    assert (status, answer["error"]["code"]) == (403, "forbidden")


async def test_keys_are_listed_in_pages(api: Api, clock: Clock) -> None:
    made = []
    for n in range(5):
        clock.now += 1
        made.append((await api.call("POST", "/keys", {"name": f"app-{n}"}))[1]["id"])
    _, first = await api.call("GET", "/keys?limit=2")
    assert [key["id"] for key in first["data"]] == made[:2]
    _, rest = await api.call("GET", f"/keys?after={made[1]}&revoked=true")
    assert [key["id"] for key in rest["data"]] == made[2:]
    assert (await api.call("GET", f"/keys?after={made[-1]}"))[1]["data"] == []
    assert (await api.call("GET", "/keys?after=key_nobody"))[0] == 400
    assert (await api.call("GET", "/keys?limit=0"))[0] == 400


@pytest.mark.parametrize(
    ("body", "call"),
    [
        ({"context": 1024}, ("model.context", {"context": 1024})),
        ({"context": 1024, "slots": 2}, ("model.context", {"context": 1024, "slots": 2})),
        ({"slots": 2}, ("model.edit", {"slots": 2})),
        ({"cache_type": "q8_0"}, ("model.edit", {"cache_type": "q8_0"})),
        ({"gpu_layers": None}, ("model.edit", {"gpu_layers": None})),
        ({"idle_unload_s": None}, ("model.edit", {"idle_unload_s": None})),
        ({"engine_flags": []}, ("model.edit", {"engine_flags": []})),
        ({"load": "on_demand"}, ("model.edit", {"load": "on_demand"})),
        ({"priority": 0, "context": 512}, ("model.edit", {"priority": 0, "context": 512})),
    ],
)
async def test_an_edit_sends_what_was_named_and_what_older_nodes_know(
    api: Api, body: dict[str, Any], call: tuple[str, dict[str, Any]]
) -> None:
    node = make_node(answers={"model.context": [DEPLOYED], "model.edit": [DEPLOYED]})
    api.fleet.known = [node]
    model = DEPLOYED["model"]
    status, _ = await api.call("PATCH", f"/deployments/box?model={model}", body)
    method, params = node.calls[0]
    told = {name: list(v) if isinstance(v, tuple) else v for name, v in params.items()}
    assert (status, method, told) == (200, call[0], {"model": model, **call[1]})


@pytest.mark.parametrize(
    "body",
    [
        *({}, {"cache_type": "q2"}, {"gpu_layers": -1}, {"flash_attention": 1}),
        *({"engine_flags": [""]}, {"load": "ttl"}, {"priority": 101}, {"priority": 1.5}),
    ],
)
async def test_an_edit_that_makes_no_sense_reaches_no_node(api: Api, body: dict[str, Any]) -> None:
    node = make_node(answers={})
    api.fleet.known = [node]
    status, _ = await api.call("PATCH", f"/deployments/box?model={DEPLOYED['model']}", body)
    assert (status, node.calls) == (400, [])


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", "/nodes/box", {"name": "desk\n"}),
        ("POST", "/invites", {"name": "desk\n"}),
        ("POST", "/admins", {"name": "ann\n"}),
        ("PATCH", "/settings", {"public_url": "https://relay.example\n"}),
    ],
)
async def test_a_name_that_ends_with_a_line_end_is_refused(
    api: Api, method: str, path: str, body: dict[str, Any]
) -> None:
    api.fleet.known = [make_node()]
    status, _ = await api.call(method, path, body)
    assert status == 400


async def test_requests_of_a_time_that_ends_before_it_begins_are_refused(api: Api) -> None:
    status, answer = await api.call("GET", "/requests/finished?since=200&until=100")
    assert (status, answer["error"]["message"]) == (400, "since must be before until")
    assert (await api.call("GET", "/requests/finished?until=100"))[0] == 200


async def test_a_name_with_a_slash_is_one_part_of_a_path(api: Api) -> None:
    await api.call("POST", "/keys", {"name": "team/web %2F"})
    status, answer = await api.call("PATCH", "/keys/team%2Fweb%20%252F", {"limits": {"rpm": 5}})
    assert (status, answer["name"]) == (200, "team/web %2F")
    assert (await api.call("PATCH", "/keys/team/web", {"limits": {"rpm": 5}}))[0] == 404


async def test_a_key_that_may_use_one_node_only_follows_it_when_it_is_renamed(api: Api) -> None:
    api.fleet.known = [make_node()]
    limits = {"rpm": 5, "nodes": ["box", "cloud"]}
    _, key = await api.call("POST", "/keys", {"name": "app", "limits": limits})
    _, other = await api.call("POST", "/keys", {"name": "other", "limits": {"nodes": ["boxes"]}})
    assert (await api.call("PATCH", "/nodes/box", {"name": "desk"}))[0] == 200
    _, listed = await api.call("GET", "/keys")
    found = {one["id"]: one["limits"] for one in listed["data"]}
    assert found[key["id"]]["nodes"] == ["desk", "cloud"]
    assert found[key["id"]]["rpm"] == 5
    assert found[other["id"]]["nodes"] == ["boxes"]
    entries = await api.context.audit.list()
    assert ("key.change", {"name": "app", "nodes": ["desk", "cloud"]}) in [
        (entry.action, entry.detail) for entry in entries
    ]
