"""Keys, invites and nodes: what an administrator does takes effect on the very next request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import INFERENCE_KEY, Served
from tests.harness.caller import chat, events, request
from tests.harness.cluster import Cluster, CommandError, cluster, wai
from tests.harness.odd_upstream import MODELS, OddUpstream, odd_upstream
from tests.harness.processes import wait_until

pytestmark = pytest.mark.e2e


@pytest.fixture
def odd() -> Iterator[OddUpstream]:
    with odd_upstream() as upstream:
        yield upstream


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path) as running:
        yield running


def status_of(running: Cluster, secret: str, model: str = "answers") -> int:
    headers = {"Authorization": f"Bearer {secret}"}
    with request(running, "/v1/chat/completions", chat(model), headers) as response:
        response.read()
        return response.status


@pytest.mark.xdist_group("served")
def test_a_revoked_key_is_refused_at_once_and_no_other_is(served: Served) -> None:
    first, second = served.cluster.create_key("first"), served.cluster.create_key("second")
    assert status_of(served.cluster, first.secret) == 200
    served.cluster.revoke(first)
    assert status_of(served.cluster, first.secret) == 401
    assert status_of(served.cluster, second.secret) == 200


def test_an_invite_serves_once(own: Cluster, tmp_path: Path) -> None:
    invite = own.invite()
    wai("node", "join", invite, "--data", tmp_path / "one", "--name", "one")
    with pytest.raises(CommandError, match=r"(?i)invite"):
        wai("node", "join", invite, "--data", tmp_path / "two", "--name", "two")
    assert [node["name"] for node in own.list_nodes()] == ["one"]


def test_a_name_is_taken_once(own: Cluster, tmp_path: Path) -> None:
    wai("node", "join", own.invite(), "--data", tmp_path / "one", "--name", "box")
    with pytest.raises(CommandError, match="box"):
        wai("node", "join", own.invite(), "--data", tmp_path / "two", "--name", "box")


def test_a_removed_node_loses_its_session_and_stays_out(own: Cluster, odd: OddUpstream) -> None:
    key = own.create_key()
    node = own.add_node("box", odd.url, models=len(MODELS))
    assert status_of(own, key.secret) == 200
    wai("node", "remove", "box", "--data", own.data)
    assert own.state_of("box") is None
    assert status_of(own, key.secret) == 404
    node.daemon.wait_for_output("(?i)removed")


def test_a_node_that_comes_back_serves_again(own: Cluster, odd: OddUpstream) -> None:
    key = own.create_key()
    node = own.add_node("box", odd.url, models=len(MODELS))
    node.daemon.kill()
    own.run_node("box", "--upstream", odd.url, models=len(MODELS))
    assert status_of(own, key.secret) == 200


def test_keys_and_nodes_outlive_the_relay(own: Cluster, odd: OddUpstream) -> None:
    key = own.create_key()
    own.add_node("box", odd.url, models=len(MODELS))
    own.restart_relay()
    own.wait_for_state("box", "ready")
    wait_until(lambda: status_of(own, key.secret) == 200, "the node serves no request")


def test_a_drain_and_a_new_name_outlive_the_relay(own: Cluster, odd: OddUpstream) -> None:
    key = own.create_key()
    own.add_node("box", odd.url, models=len(MODELS))
    wai("node", "rename", "box", "desk", "--data", own.data)
    wai("node", "drain", "desk", "--data", own.data)
    own.restart_relay()
    own.wait_for_state("desk", "draining")
    assert status_of(own, key.secret) == 503
    wai("node", "undrain", "desk", "--data", own.data)
    assert status_of(own, key.secret) == 200


@pytest.mark.xdist_group("served")
def test_no_secret_is_kept_where_it_is_not_needed(served: Served) -> None:
    """The relay's folder has no API key in clear and nothing of the node's; no log has either."""
    for path in served.cluster.data.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert served.key.secret.encode() not in content, path
            assert INFERENCE_KEY.encode() not in content, path
            assert path.stat().st_mode & 0o077 == 0 or path.suffix == ".crt", path
    for log in served.cluster.folder.glob("*.log"):
        assert served.key.secret not in log.read_text(errors="replace"), log


@pytest.mark.xdist_group("served")
def test_prompts_and_answers_are_not_logged(served: Served) -> None:
    body = chat("tiny", messages=[{"role": "user", "content": "xyzzy plugh"}], stream=True)
    with request(served.cluster, "/v1/chat/completions", body, served.authorization) as response:
        assert list(events(response))[-1] == "[DONE]"
    for name in ("relay.log", "node-box.log"):
        assert "xyzzy" not in (served.cluster.folder / name).read_text(errors="replace")
