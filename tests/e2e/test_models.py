"""Models deployed from the relay: search, fit, deploy, chat, swap, remove; and faults."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.harness.caller import chat, events, request
from tests.harness.cluster import Cluster, CommandError, wai
from tests.harness.model_fleet import (
    MODEL,
    REPO,
    ask,
    llama_servers,
    model,
    model_fleet,
)
from tests.harness.processes import Daemon, wait_until
from tests.harness.real import script
from tests.harness.supervised import write_script
from tests.harness.tiny_gguf import tiny_gguf
from wai_cli.client.admin_client import AdminClient
from wai_cli.client.target import local_target

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return tiny_gguf(tmp_path_factory.mktemp("gguf")).read_bytes()


def deploy(running: Cluster, context: int = 512) -> dict[str, Any]:
    options = ("--node", "box", "--context", str(context), "--slots", "2")
    view: dict[str, Any] = model(running, "deploy", MODEL, *options)
    running.nodes["box"].daemon.wait_until(
        lambda: MODEL in running.list_nodes()[0]["models"], "the relay does not see the model"
    )
    return view


def test_search_fit_deploy_chat_swap_remove(tmp_path: Path, gguf: bytes) -> None:
    with model_fleet(tmp_path, gguf) as (running, _):
        assert [found["repo"] for found in model(running, "search", "tiny")] == [REPO]
        [fits] = model(running, "fit", REPO, "--context", "512")
        assert fits["node"] == "box"
        assert [(quant["quant"], quant["verdict"]) for quant in fits["quants"]] == [("F16", "cpu")]
        view = deploy(running)
        assert (view["state"], view["context_served"], view["slots"]) == ("ready", 512, 2)
        secret = running.create_key().secret
        headers = {"Authorization": f"Bearer {secret}"}
        body = chat(MODEL, stream=True, max_tokens=8)
        with request(running, "/v1/chat/completions", body, headers) as answer:
            assert answer.status == 200
            assert list(events(answer))[-1] == "[DONE]"
        failed = swap_under_load(running, secret, context=1024)
        assert failed == []
        wait_until(lambda: served_context(running) == 1024, "the relay never hears of it")
        changed = model(running, "context", MODEL, "--node", "box", "--context", "512")
        assert changed["context_served"] == 512, "told as done before it was"
        assert any(
            "llama" in line or "srv" in line
            for line in model(running, "logs", MODEL, "--node", "box")
        )
        assert MODEL in wai("node", "logs", "box", "--data", running.data)
        edited = model(
            running, "edit", MODEL, "--node", "box", "--slots", "1", "--flash-attention", "on"
        )
        assert (edited["slots"], edited["flash_attention"]) == (1, "on")
        [listed] = model(running, "list")
        assert (listed["context_served"], listed["purpose"]) == (512, "chat")
        with pytest.raises(CommandError, match="allow_engine_flags"):
            model(running, "edit", MODEL, "--node", "box", "--engine-flag=--no-warmup")
        with pytest.raises(CommandError, match="nothing to change"):
            model(running, "edit", MODEL, "--node", "box")
        model(running, "remove", MODEL, "--node", "box")
        wait_until(lambda: model(running, "list") == [], "the model is still there")
        assert ask(running, secret) == 404
        assert list((tmp_path / "box" / "models").rglob("*.gguf")) == []


def served_context(running: Cluster) -> int:
    """The context per slot that the relay knows of."""
    context: int = running.list_nodes()[0]["serving"][0]["context_tokens"]
    return context


def swap_under_load(running: Cluster, secret: str, *, context: int) -> list[int]:
    """Change the context while four callers ask all the time; the statuses that were not 200."""
    stop, statuses = threading.Event(), []

    def keep_asking() -> None:
        while not stop.is_set():
            statuses.append(ask(running, secret, stream=True))

    callers = [threading.Thread(target=keep_asking) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        changed = model(running, "context", MODEL, "--node", "box", "--context", str(context))
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert changed["context_served"] == context
    assert statuses
    return [status for status in statuses if status != 200]


def test_no_secret_in_the_process_list_or_in_the_relays_folder(tmp_path: Path, gguf: bytes) -> None:
    from wai_node.membership import load_key
    from wai_protocol.identity import INFERENCE_KEY_PREFIX
    from wai_transport.folder import DataFolder

    with model_fleet(tmp_path, gguf) as (running, _):
        deploy(running)
        node_key = load_key(DataFolder(tmp_path / "box"))
        secrets = (node_key.to_bytes(), INFERENCE_KEY_PREFIX.encode())
        listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, check=True).stdout
        assert all(secret not in listing for secret in secrets)
        for file in running.data.rglob("*"):
            if file.is_file():
                content = file.read_bytes()
                assert all(secret not in content for secret in secrets), file
        [server] = llama_servers(running)
        assert not [c for c in server.net_connections() if c.status == "LISTEN"]
        command = server.cmdline()
        path = command[command.index("--host") + 1]
        status = subprocess.run(
            [
                *("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-d", "{}"),
                *("--unix-socket", path, "http://localhost/v1/chat/completions"),
            ],
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        assert status == "401"


def test_who_watches_a_deployment_sees_its_end_over_a_restart_of_the_relay(
    tmp_path: Path, gguf: bytes
) -> None:
    with model_fleet(tmp_path, gguf) as (running, hub):
        hub.faults.pause_s = 0.2
        command = [script("wai"), "model", "deploy", MODEL, "--node", "box", "--context", "512"]
        command += ["--data", str(running.data)]
        with Daemon(command, log=tmp_path / "deploy.log") as watching:
            watching.wait_for_output("downloading")
            running.relay.stop()
            watching.wait_for_output("the relay is away; box continues")
            running.restart_relay()
            hub.faults.pause_s = 0
            assert watching.wait(60) == 0, watching.output()
            assert f"{MODEL} is ready on box" in watching.output()


def test_node_joined_with_no_deploy_refuses(tmp_path: Path, gguf: bytes) -> None:
    with (
        model_fleet(tmp_path, gguf, "--no-deploy") as (running, _),
        pytest.raises(CommandError, match="takes no deployments"),
    ):
        model(running, "deploy", MODEL, "--node", "box")


def test_unknown_repository_is_one_clear_sentence(tmp_path: Path, gguf: bytes) -> None:
    with (
        model_fleet(tmp_path, gguf) as (running, _),
        pytest.raises(CommandError, match="nobody/nothing"),
    ):
        model(running, "deploy", "nobody/nothing", "--node", "box")


def test_a_deployment_that_failed_is_not_offered_and_a_call_says_why(
    tmp_path: Path, gguf: bytes
) -> None:
    crashing = tmp_path / "llama-server"
    write_script(crashing, "echo 'ggml: out of memory'\nexit 1\n")
    with model_fleet(tmp_path, gguf, server=str(crashing)) as (running, _):
        secret = running.create_key().secret
        headers = {"Authorization": f"Bearer {secret}"}
        with pytest.raises(CommandError, match="not enough memory"):
            deploy(running)

        def said() -> dict[str, Any]:
            body = chat(MODEL, max_tokens=8)
            with request(running, "/v1/chat/completions", body, headers) as answer:
                told = json.loads(answer.read())
                return {"status": answer.status, **told["error"]}

        wait_until(lambda: "failed there" in said()["message"], "the caller is not told")
        assert said()["status"] == 503
        assert "not enough memory" in said()["message"]
        with request(running, "/v1/models", None, headers) as answer:
            assert json.loads(answer.read())["data"] == []
        assert running.list_nodes()[0]["models"] == []
        with AdminClient(local_target(running.data)) as relay:
            problems = {
                problem["kind"]: problem["text"] for problem in relay.get("/problems")["data"]
            }
        assert "not enough memory" in problems["deployment"]
