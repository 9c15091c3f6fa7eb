"""Admins of a real relay: a replaced token, browsers that are signed in, a folder that is full."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.harness.cluster import Cluster, cluster, wai
from tests.harness.processes import Daemon, free_port, wait_until
from tests.harness.real import script

pytestmark = pytest.mark.e2e


def ask(running: Cluster, path: str, headers: dict[str, str]) -> int:
    """The status of a GET."""
    asked = urllib.request.Request(running.url + path, headers=headers)
    try:
        with urllib.request.urlopen(asked, context=running.tls(), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def sign_in(running: Cluster) -> dict[str, str]:
    """The headers of a browser that has just signed in."""
    token = (running.data / "admin.token").read_text().strip()
    headers = {"Content-Type": "application/json", "User-Agent": "Browser/1"}
    body = json.dumps({"token": token}).encode()
    asked = urllib.request.Request(running.url + "/dashboard/session", body, headers)
    with urllib.request.urlopen(asked, context=running.tls(), timeout=10) as answer:
        return {"Cookie": answer.headers["set-cookie"].partition(";")[0]}


def test_a_token_that_is_replaced_while_the_relay_runs_ends_what_it_had_signed_in(
    tmp_path: Path,
) -> None:
    with cluster(tmp_path) as running:
        browser = sign_in(running)
        old = {"Authorization": "Bearer " + (running.data / "admin.token").read_text().strip()}
        for headers in (browser, old):
            assert ask(running, "/admin/v1/keys", headers) == 200
        (running.data / "admin.token").unlink()
        running.relay.send(signal.SIGHUP)
        wait_until((running.data / "admin.token").exists, "no new token is made")
        wait_until(lambda: ask(running, "/admin/v1/keys", old) == 401, "the old token is good")
        assert ask(running, "/admin/v1/keys", browser) == 401
        wai("key", "list", "--data", running.data)  # finds the new one


def test_a_token_that_is_replaced_before_a_restart_ends_what_it_had_signed_in(
    tmp_path: Path,
) -> None:
    with cluster(tmp_path) as running:
        browser = sign_in(running)
        running.restart_relay()
        assert ask(running, "/admin/v1/keys", browser) == 200
        (running.data / "admin.token").write_text("wai_at_" + "n" * 43)
        running.restart_relay()
        assert ask(running, "/admin/v1/keys", browser) == 401


def test_browsers_are_listed_and_signed_out_by_the_command(tmp_path: Path) -> None:
    with cluster(tmp_path) as running:
        first, second = sign_in(running), sign_in(running)
        listed = json.loads(wai("sign-in", "list", "--data", running.data, "--json"))
        assert [entry["user_agent"] for entry in listed] == ["Browser/1"] * 2
        assert "Browser/1" in wai("sign-in", "list", "--data", running.data)
        wai("sign-in", "end", listed[0]["id"], "--data", running.data)
        statuses = [ask(running, "/admin/v1/keys", one) for one in (first, second)]
        assert sorted(statuses) == [200, 401]
        wai("sign-in", "end", "--all", "--data", running.data)
        for one in (first, second):
            assert ask(running, "/admin/v1/keys", one) == 401
        assert "no browser is signed in" in wai("sign-in", "list", "--data", running.data)


def test_a_relay_starts_though_relay_json_cannot_be_written(tmp_path: Path) -> None:
    data = tmp_path / "relay"
    (data / "relay.json" / "in the way").mkdir(parents=True)
    data.chmod(0o700)
    command = [script("wai"), "relay", "--data", str(data), "--listen", f"127.0.0.1:{free_port()}"]
    with Daemon(command, log=tmp_path / "relay.log") as relay:
        relay.wait_for_output("will not find this relay")
        relay.wait_for_output("relay ready")


_STEPS = """
wai=$1 disk=$2 port=$3
mount -t tmpfs -o size=1m tmpfs "$disk"
"$wai" relay --data "$disk/relay" --listen "127.0.0.1:$port" &
relay=$!
trap 'kill $relay; wait $relay' EXIT
until [ -e "$disk/relay/relay.json" ]; do sleep 0.1; done
id=$("$wai" key create app --data "$disk/relay" --json | grep -o 'key_[0-9a-f]*' | head -n 1)
head -c 2000000 /dev/zero > "$disk/fill" || true
! "$wai" key revoke "$id" --data "$disk/relay"
"$wai" key list --data "$disk/relay"
rm "$disk/fill"
"$wai" key revoke "$id" --data "$disk/relay"
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted by root")
def test_on_a_full_disk_a_key_is_refused_at_once_and_revoked_by_a_second_try(
    tmp_path: Path,
) -> None:
    (tmp_path / "disk").mkdir()
    steps = [
        "sh",
        "-eu",
        "-c",
        _STEPS,
        "sh",
        script("wai"),
        str(tmp_path / "disk"),
        str(free_port()),
    ]
    done = subprocess.run(  # in a mount namespace of its own: nobody else sees the small disk
        ["unshare", "-m", *steps], capture_output=True, text=True, timeout=60, check=False
    )
    if "unshare failed" in done.stderr:
        pytest.skip("no mount namespace can be made here")
    assert done.returncode == 0, done.stderr
    assert "would be undone by a restart" in done.stderr
    assert "no API keys" in done.stdout
    assert "is revoked" in done.stdout
