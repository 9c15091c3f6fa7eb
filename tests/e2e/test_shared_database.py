"""A relay on a real PostgreSQL that is killed, comes back, and is replaced by its standby."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness.caller import chat, request
from tests.harness.cluster import Cluster, CommandError, cluster, wai
from tests.harness.keyed_server import MODEL, keyed_server
from tests.harness.postgres import GUEST, GUEST_PASSWORD, PostgresServer
from tests.harness.processes import Daemon, free_port, wait_until
from tests.harness.real import script

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.timeout(300)]
KEY: Final = "key-of-the-server"
BACK_WITHIN_S: Final = 10.0


def ask(running: Cluster, secret: str) -> int:
    """The status of a chat request with an API key."""
    headers = {"Authorization": f"Bearer {secret}"}
    with request(running, "/v1/chat/completions", chat(MODEL), headers) as answer:
        answer.read()
        return int(answer.status)


def problems(running: Cluster) -> dict[str, dict[str, Any]]:
    """What is wrong, by kind; the first of each."""
    found: dict[str, dict[str, Any]] = {}
    for one in running.admin("get", "/problems")["data"]:
        found.setdefault(one["kind"], one)
    return found


def database_problem(running: Cluster) -> str:
    """What is said of the database, "" if it is well."""
    return str(problems(running).get("database", {}).get("text", ""))


def counted(running: Cluster) -> int:
    """How many requests the usage has of known keys."""
    return sum(row["requests"] for row in running.usage("key") if row["group"])


def written(server: PostgresServer) -> list[str]:
    """How much is in a database."""
    sums = "SELECT count(*), (SELECT count(*) FROM api_keys WHERE revoked_at IS NULL)"
    return server.execute(f"{sums} FROM usage_requests", "relay")


def test_a_relay_serves_on_while_its_database_is_away(
    own_server: PostgresServer, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    own_server.add_guest()
    own_server.execute(f"ALTER DATABASE relay OWNER TO {GUEST}")
    standby = own_server.standby()
    password = tmp_path / "password"
    password.write_text(GUEST_PASSWORD + "\n")
    hosts = f"127.0.0.1:{own_server.port},127.0.0.1:{standby.port}"
    env = {"WAI_RELAY_DATABASE": f"postgresql://{GUEST}@{hosts}/relay"}
    with (
        keyed_server(KEY) as server,
        cluster(tmp_path, "--database-password-file", str(password), env=env) as running,
    ):
        running.add_node("box", server.url, upstream_key=KEY)
        key = running.create_key().secret
        other = running.create_key("other")
        assert not (running.data / "relay.db").exists()
        for _ in range(3):
            assert ask(running, key) == 200

        # Killed: known keys are served, the outage is told, changes wait and are then refused.
        own_server.kill()
        for _ in range(5):
            assert ask(running, key) == 200
        wait_until(lambda: "is away since" in database_problem(running), "nobody is told")
        told = problems(running)["database"]
        assert "known keys and nodes are served" in told["advice"]
        running.wait_for_state("box", "ready")
        with pytest.raises(CommandError, match="the database is away"):
            wai("key", "create", "late", "--data", running.data)
        with pytest.raises(CommandError, match=r"is refused.* now, but"):
            wai("key", "revoke", other.id, "--data", running.data)
        assert ask(running, other.secret) == 401
        assert ask(running, key) == 200

        # Back: it is found again, and nothing is lost.
        own_server.start()
        wait_until(lambda: "database" not in problems(running), "the outage is still told")
        wait_until(lambda: counted(running) == 9, "not all requests are counted")
        wai("key", "revoke", other.id, "--data", running.data)

        # Its standby takes over: what comes meanwhile waits for it.
        # (A standby that follows asynchronously lacks what the primary confirmed at last.)
        wait_until(lambda: written(standby) == written(own_server), "the standby does not follow")
        own_server.kill()
        standby.promote()
        began = time.monotonic()
        late = running.create_key("late")
        took_s = time.monotonic() - began
        assert took_s < BACK_WITHIN_S
        record_property("figure", f"written {took_s:.2f} s after the promotion")
        assert ask(running, late.secret) == 200
        wait_until(lambda: counted(running) == 10, "not all requests are counted")

        running.restart_relay()
        running.wait_for_state("box", "ready")
        assert ask(running, key) == 200
        assert ask(running, late.secret) == 200
        assert ask(running, other.secret) == 401
        log = running.relay.output()
        assert GUEST_PASSWORD not in log
        assert "Traceback" not in log, running.relay.explain("its log")


def test_a_password_in_the_command_line_is_warned_about_and_never_logged(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    own_server.add_guest()
    own_server.execute(f"ALTER DATABASE relay OWNER TO {GUEST}")
    url = own_server.url("relay", GUEST, GUEST_PASSWORD)
    with cluster(tmp_path, "--database", url, "--log-level", "debug") as running:
        log = running.relay.output()
        assert "every user of this machine can read the password" in log
        assert url not in log
        assert GUEST_PASSWORD not in log


def test_a_relay_moves_into_postgres_and_its_nodes_and_callers_notice_nothing(
    own_server: PostgresServer, tmp_path: Path
) -> None:
    url = own_server.url("relay")
    with keyed_server(KEY) as server, cluster(tmp_path) as running:
        running.add_node("box", server.url, upstream_key=KEY)
        key = running.create_key().secret
        assert ask(running, key) == 200
        data = running.data
        with pytest.raises(CommandError, match="another relay"):
            wai("relay", "import", data, "--data", data, "--database", url)
        running.relay.stop()
        with pytest.raises(CommandError, match="say where to move it"):
            wai("relay", "import", data, "--data", data)
        moved = json.loads(
            wai("relay", "import", data, "--data", data, "--database", url, "--json")
        )
        assert {name: moved["tables"][name] for name in ("nodes", "api_keys", "admins")} == {
            "nodes": 1,
            "api_keys": 1,
            "admins": 1,
        }
        with pytest.raises(CommandError, match=r"has no relay\.db"):
            wai("relay", "import", data, "--data", data, "--database", url)

        running._command += ["--database", url]
        running.start_relay_again()
        running.wait_for_state("box", "ready")
        assert ask(running, key) == 200
        wait_until(lambda: counted(running) == 2, "not all requests are counted")

        backup = tmp_path / "backup"
        with pytest.raises(CommandError, match="say so with --database"):
            wai("backup", backup, "--data", data)
        wai("backup", backup, "--data", data, "--database", url)
        running.relay.stop()

        # Back into a file, in another folder; and into another database.
        wai("restore", backup, "--data", tmp_path / "single" / "relay")
        with cluster(tmp_path / "single") as single:
            assert counted(single) == 2
        other = own_server.create_database("other")
        wai("restore", backup, "--data", tmp_path / "two" / "relay", "--database", other)
        with cluster(tmp_path / "two", "--database", other) as two:
            assert counted(two) == 2
            assert [node["name"] for node in two.list_nodes()] == ["box"]
        with pytest.raises(CommandError, match="is in use"):
            wai("restore", backup, "--data", tmp_path / "three" / "relay", "--database", other)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_relay_that_waits_for_its_database_can_be_stopped(
    tmp_path: Path, number: signal.Signals
) -> None:
    command = [script("wai"), "relay", "--data", str(tmp_path), "--listen", "127.0.0.1:0"]
    command += ["--database", f"postgresql://wai@127.0.0.1:{free_port()}/wai"]
    with Daemon(command, log=tmp_path / "relay.log") as relay:
        relay.wait_for_output("waiting for the database, for 20 s")
        relay.send(number)
        relay.wait()
        assert relay.exit_code == 0
        assert "Traceback" not in relay.log.read_text()
