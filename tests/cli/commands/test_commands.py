"""The `wai` command as people and scripts meet it: shapes, errors, exit statuses."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
from argparse import _SubParsersAction
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.harness.cluster import Cluster, cluster, wai
from tests.harness.processes import Daemon, free_port, wait_until
from tests.harness.real import script
from wai_cli.client import admin_client
from wai_cli.main import GROUPS, main, parser_for
from wai_relay.access.keys import MAX_LENT
from wai_relay.admin import deployments
from wai_relay.identity import load_self_signed
from wai_transport.folder import DataFolder

pytestmark = pytest.mark.xdist_group("commands")  # one relay


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


Captured = pytest.CaptureFixture[str]
AT = ("key", "list", "--relay")


def _run(capsys: Captured, *arguments: str | Path) -> tuple[int, str, str]:
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as ended:  # argparse's way, for --help and for mistakes
        status = ended.code if isinstance(ended.code, int) else 1
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_command_waits_longer_for_the_hub_than_the_relay_does() -> None:
    assert admin_client.HUB_TIMEOUT_S > deployments.HUB_TIMEOUT_S


def test_help_is_light(tmp_path: Path) -> None:
    code = (
        "import sys; from wai_cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'cryptography', 'starlette', 'msgspec', 'uvloop', 'asyncio', 'ssl', 'anyio'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("group", GROUPS)
def test_every_command_has_help(capsys: Captured, group: str) -> None:
    status, out, _ = _run(capsys, group, "--help")
    assert status == 0
    assert f"usage: wai {group}" in out
    assert "example" in out


@pytest.mark.parametrize("group", ["node", "invite", "key", "model"])
def test_every_action_has_an_example(group: str) -> None:
    found = next(
        action for action in parser_for([group])._actions if isinstance(action, _SubParsersAction)
    )
    actions = next(
        action for action in found.choices[group]._actions if isinstance(action, _SubParsersAction)
    )
    for name, parser in actions.choices.items():
        assert "example" in parser.format_help(), f"{group} {name}"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nothing",),
        ("key",),
        ("key", "create"),
        ("key", "create", "a", "--rpm", "many"),
        ("node", "join"),
        ("relay", "--nothing"),
    ],
)
def test_a_wrong_command_line_is_status_2_and_usage(
    capsys: Captured, arguments: tuple[str, ...]
) -> None:
    status, _, err = _run(capsys, *arguments)
    assert status == 2
    assert "usage: wai" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("key", "create", ""), "it is empty"),
        (("key", "revoke", " "), "it is empty"),
        (("key", "create", "a", "--rpm", "-5"), "'-5' is not a whole number from 1 on, or none"),
        (("key", "create", "a", "--rpm", "many"), "'many' is not a whole number"),
        (("key", "create", "a", "--tpm", "9" * 20), "is not a whole number"),
        (("key", "create", "a", "--priority", "9"), "'9' is not a whole number from -3 to 3"),
        (("key", "create", "a", "--expires", "yesterday"), "is not a date such as 2027-01-31"),
        (("key", "create", "a", "--expires", "2020-01-01"), "a date that is still to come"),
        (("invite", "create", "--hours", "-1"), "'-1' is not a number of hours"),
        (("invite", "create", "--hours", "nan"), "more than 0 and at most 720"),
        (("invite", "revoke", ""), "it is empty"),
        (("node", "logs", "box", "--lines", "-4"), "'-4' is not a whole number from 1 on"),
        (("model", "search", "a", "--limit", "0"), "'0' is not a whole number from 1 to 50"),
        (("model", "fit", "a/b", "--context", "-5"), "'-5' is not a whole number from 1 to"),
        (("model", "deploy", "a/b", "--node", ""), "it is empty"),
        (("model", "deploy", "a/b", "--node", "box", "--slots", "999"), "from 1 to 256"),
        (("model", "deploy", "a/b", "--node", "box", "--idle-unload", "nan"), "a time such as 90s"),
        (("key", "create", "a", "--model", ""), "it is empty"),
        (("key", "capture", "a", "--for", "2h"), "'2h' is not a time such as 90s or 10m, from 10s"),
        (("key", "rotate", "a", "--grace", "40d"), "at most 30d"),
        (("requests", "list", "--since", "5x"), "'5x' is not a time such as 30m, 12h"),
        (("usage", "--until", "2026-02-30"), "'2026-02-30' is not a time such as"),
        (("node", "upstream", "allow", "99999"), "'99999' is not a whole number from 1 to 65535"),
        (("model", "context", "a/b", "--node", "box", "--context", "x"), "'x' is not a whole"),
        (("node", "remove", ""), "it is empty"),
        (("key", "create", "a\udcff"), "is not text in UTF-8"),
    ],
)
def test_an_argument_that_cannot_be_is_told_in_our_words(
    capsys: Captured, arguments: tuple[str, ...], expected: str
) -> None:
    status, out, err = _run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert expected in err
    assert "_value" not in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("key", "list", "--data", "/nowhere"), "start it with `wai relay --data /nowhere`"),
        (("key", "list", "--relay", "https://x"), "--relay needs --token-file"),
        (("key", "list", "--pin", "00"), "need --relay"),
        (("key", "list", "--relay", "x", "--token-file", "/dev/null"), "--relay is a URL"),
        ((*AT, "https://", "--token-file", "/dev/null"), "--relay is a URL"),
        ((*AT, "https://a:b", "--token-file", "/dev/null"), "--relay is a URL"),
        ((*AT, "https://x", "--token-file", __file__), "is no admin token"),
        ((*AT, "https://x", "--token-file", "/dev/null", "--ca", "/no"), "/no cannot be read"),
        (
            (*AT, "https://x", "--token-file", "/dev/null", "--ca", __file__),
            f"{__file__} has no PEM certificate",
        ),
        (("restore", "/nowhere", "--data", "/tmp/nowhere"), "/nowhere: No such file"),
        (("node", "join", "wai_inv_x", "--data", "/nowhere"), "this invite cannot be used"),
        (("relay", "--listen", "nowhere"), "'nowhere' is not HOST:PORT"),
        (("relay", "--config", "/nowhere.toml"), "/nowhere.toml cannot be read"),
        (("node", "run", "--upstream", "ftp://x"), "is not http://HOST:PORT"),
        (("node", "run", "--upstream-key", "k"), "--upstream-key goes with --upstream"),
        (("relay", "--data", "/dev/null/x"), "the folder /dev/null/x cannot be used"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_1(
    capsys: Captured, arguments: tuple[str, ...], expected: str
) -> None:
    status, out, err = _run(capsys, *arguments)
    assert (status, out) == (1, "")
    assert err.startswith("wai: ")
    assert expected in err
    assert "Traceback" not in err


def test_a_keys_limits_are_set_changed_and_taken_away(running: Cluster, capsys: Captured) -> None:
    data = ("--data", running.data, "--json")
    flags = (
        "--rpm",
        "5",
        "--model",
        "a",
        "--model",
        "b",
        "--local-only",
        "--expires",
        "2099-01-31",
    )
    key = json.loads(_run(capsys, "key", "create", "limited", *flags, *data)[1])
    assert key["limits"]["rpm"] == 5
    assert key["limits"]["models"] == ["a", "b"]
    assert key["limits"]["local_only"] is True
    assert key["limits"]["expires_at"] == 4073500800.0
    changes = ("--rpm", "none", "--tpm", "900", "--model", "none", "--no-local-only", "--continue")
    changed = json.loads(_run(capsys, "key", "update", key["id"], *changes, *data)[1])["limits"]
    assert (changed["rpm"], changed["tpm"], changed["models"]) == (None, 900, [])
    assert (changed["local_only"], changed["continue"]) == (False, True)
    assert changed["expires_at"] == 4073500800.0
    status, _, err = _run(capsys, "key", "update", key["id"], "--data", running.data)
    assert (status, "nothing to change" in err) == (1, True)
    _run(capsys, "key", "revoke", key["id"], *data)


def test_a_change_of_limits_is_told_as_a_list_tells_them(
    running: Cluster, capsys: Captured
) -> None:
    at = ("--data", running.data)
    _run(capsys, "key", "create", "told", *at)
    flags = ("--rpm", "none", "--tpm", "9", "--model", "a", "--model", "b", "--no-local-only")
    _, out, _ = _run(capsys, "key", "update", "told", *flags, "--priority", "0", *at)
    assert out.partition(" has from now on: ")[2] == (
        "no limit by --rpm, 9 tok/min, only a + b, not own nodes only, priority 0\n"
    )
    _run(capsys, "key", "revoke", "told", *at)


def test_a_key_with_a_slash_in_its_name_is_found_by_it(running: Cluster, capsys: Captured) -> None:
    at = ("--data", running.data)
    _run(capsys, "key", "create", "team/web", *at)
    for action in (
        ("update", "team/web", "--rpm", "5"),
        ("rotate", "team/web"),
        ("rename", "team/web", "../web%2Fx?#"),
        ("revoke", "../web%2Fx?#"),
    ):
        status, _, err = _run(capsys, "key", *action, *at)
        assert (status, err) == (0, "")


@pytest.mark.parametrize("before", [True, False])
def test_the_relays_are_listed_wherever_the_folder_is_named(
    running: Cluster, capsys: Captured, before: bool
) -> None:
    at = ("--data", running.data)
    asked = ("relay", *at, "list") if before else ("relay", "list", *at)
    status, out, err = _run(capsys, *asked)
    assert (status, err) == (0, "")
    assert "(this one)" in out


def test_the_relays_are_looked_for_in_the_usual_folder(
    running: Cluster, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAI_RELAY_DATA", str(running.data))
    assert _run(capsys, "relay", "list")[0] == 0


def test_a_doctor_gives_its_key_back_so_that_the_next_one_gets_one(
    running: Cluster, capsys: Captured
) -> None:
    options = ("--data", running.data, "--json")
    for _ in range(MAX_LENT + 1):
        found = json.loads(_run(capsys, "doctor", *options)[1])
    assert not [finding for finding in found if "trials" in finding["text"]]


def test_the_shapes_that_scripts_build_on(running: Cluster, capsys: Captured) -> None:
    data = ("--data", running.data, "--json")
    invite = json.loads(_run(capsys, "invite", "create", *data)[1])
    assert invite["invite"].startswith("wai_inv_")
    key = json.loads(_run(capsys, "key", "create", "app", *data)[1])
    assert key["key"].startswith("wai_sk_")
    assert [k["id"] for k in json.loads(_run(capsys, "key", "list", *data)[1])] == [key["id"]]
    assert _run(capsys, "key", "revoke", key["id"], "--data", running.data)[0] == 0
    assert json.loads(_run(capsys, "key", "list", *data)[1]) == []
    assert json.loads(_run(capsys, "node", "list", *data)[1]) == []
    [listed] = json.loads(_run(capsys, "invite", "list", *data)[1])
    assert _run(capsys, "invite", "revoke", listed["id"], "--data", running.data)[0] == 0


def test_from_elsewhere_by_pin_by_certificate_and_not_without(
    running: Cluster, capsys: Captured, tmp_path: Path
) -> None:
    pin = json.loads((running.data / "relay.json").read_text())["pin"]
    token = tmp_path / "token"
    shutil.copy(running.data / "admin.token", token)
    there = ("key", "list", "--json", "--relay", running.url, "--token-file", token)
    assert _run(capsys, *there, "--pin", pin)[0] == 0
    assert _run(capsys, *there, "--ca", running.ca)[0] == 0
    status, _, err = _run(capsys, *there)
    assert (status, "--ca with a copy of its relay.crt" in err) == (1, True)
    status, _, err = _run(capsys, *there, "--pin", "00" * 32)
    assert (status, "is not the relay" in err) == (1, True)
    token.write_text("wai_at_wrong")
    status, _, err = _run(capsys, *there, "--pin", pin)
    assert (status, "admin token is not known" in err) == (1, True)


def test_unknown_names_are_said_to_be_unknown(running: Cluster, capsys: Captured) -> None:
    for arguments in (
        ("key", "revoke", "key_nobody"),
        ("node", "remove", "nobody"),
        ("node", "drain", "a/../b"),
        ("invite", "revoke", "inv_nobody"),
    ):
        status, _, err = _run(capsys, *arguments, "--data", running.data)
        assert status == 1
        assert "there is no" in err


def test_a_second_relay_in_the_same_folder_is_refused(running: Cluster, capsys: Captured) -> None:
    status, _, err = _run(capsys, "relay", "--data", running.data, "--listen", "127.0.0.1:0")
    assert status == 1
    assert str(running.data) in err


def test_doctor_says_what_to_do(running: Cluster, capsys: Captured, tmp_path: Path) -> None:
    options = ("--data", running.data, "--node-data", tmp_path, "--json")
    status, out, _ = _run(capsys, "doctor", *options)
    found = {finding["check"]: finding for finding in json.loads(out)}
    assert status == 1  # no node has joined this relay
    wrong = [name for name, finding in found.items() if not finding["ok"]]
    assert wrong == ["here", "node", "request"]
    assert "wai node join" in found["node"]["advice"]
    assert str(tmp_path) in found["here"]["text"]  # a folder that was given, and is no node's


def test_doctor_finds_that_the_node_here_was_removed(running: Cluster, capsys: Captured) -> None:
    running.join("gone")
    data = running.start_node("gone").data

    def said() -> str:
        options = ("--data", running.data, "--node-data", data, "--json")
        found = json.loads(_run(capsys, "doctor", *options)[1])
        return str(next(finding["text"] for finding in found if finding["check"] == "here"))

    wait_until(lambda: "is connected, but serves no model" in said(), "it is not connected")
    assert _run(capsys, "node", "remove", "gone", "--data", running.data)[0] == 0
    wait_until(lambda: "the node gone was removed from this relay" in said(), "still connected")


@pytest.mark.parametrize(
    ("certificate", "good", "said"),
    [
        ("self-signed", True, "nodes and callers reach it at https://localhost:{port}"),
        ("{relay}/relay.crt,{relay}/relay-tls.key", False, "refuse the certificate that"),
    ],
)
def test_doctor_on_the_relays_host_goes_the_way_that_nodes_go_too(
    certificate: str, good: bool, said: str, capsys: Captured, tmp_path: Path
) -> None:
    data, port = tmp_path / "relay", free_port()
    load_self_signed(DataFolder.open(data), ["localhost"])  # no authority vouches for it
    command = [script("wai"), "relay", "--data", str(data), "--listen", f"127.0.0.1:{port}"]
    command += [
        "--tls",
        certificate.format(relay=data),
        "--public-url",
        f"https://localhost:{port}",
    ]
    with Daemon(command, log=tmp_path / "relay.log") as relay:
        relay.wait_until((data / "relay.json").exists, "the relay does not start")
        options = ("--data", data, "--node-data", tmp_path / "none", "--json")
        found = json.loads(_run(capsys, "doctor", *options)[1])
    [public] = [finding for finding in found if finding["check"] == "public"]
    assert (public["ok"], said.format(port=port) in public["text"]) == (good, True)


def test_a_relay_that_was_killed_is_said_not_to_run(capsys: Captured, tmp_path: Path) -> None:
    with cluster(tmp_path) as started:
        started.relay.send(signal.SIGKILL)
        started.relay.wait()
        assert (started.data / "relay.json").exists()
        status, _, err = _run(capsys, "key", "list", "--data", started.data)
    assert status == 1
    assert f"start it with `wai relay --data {started.data}`" in err


def test_ctrl_c_ends_a_command_quietly(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; import wai_cli.commands.version as v\n"
        "from wai_cli.main import main\n"
        "import argparse\n"
        "def run(parsed): os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(30)\n"
        "v.configure = lambda parser: parser.set_defaults(run=run)\n"
        "sys.exit(main(['version']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "wai_cli", "version"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate(timeout=30)
    assert b"Traceback" not in err


@pytest.mark.parametrize("command", [["version"], ["key", "list", "--json"], ["top", "--json"]])
def test_output_that_cannot_be_written_is_said_in_a_sentence(
    command: list[str], running: Cluster
) -> None:
    at = [] if command == ["version"] else ["--data", str(running.data)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [script("wai"), *command, *at],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "wai: the output can't be written: No space left on device\n",
    )


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_closed_stdout_is_an_error_and_no_traceback(closed: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" version {closed}', script("wai")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = "wai: the output can't be written: Bad file descriptor\n"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == ("" if "2>&-" in closed else said)


def test_a_locale_without_our_characters_is_no_traceback(running: Cluster) -> None:
    def said(*arguments: str) -> str:
        at = ("--data", running.data)
        return wai("key", *arguments, *at, env={**os.environ, "PYTHONIOENCODING": "ascii"})

    said("create", "schl\xfcssel")
    try:
        assert "schl\\xfcssel" in said("list")
        assert [key["name"] for key in json.loads(said("list", "--json"))] == ["schl\xfcssel"]
    finally:
        said("revoke", "schl\xfcssel")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes a user that is not known")
@pytest.mark.parametrize(
    "command", [["--help"], ["up", "--help"], ["key", "list"], ["node", "run"]]
)
def test_a_user_without_a_home_gets_no_traceback(command: list[str]) -> None:
    become = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    done = subprocess.run(
        [*become, sys.executable, "-m", "wai_cli", *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == ("--help" not in command), done.stderr


def test_a_home_that_nobody_has_is_said_in_a_sentence(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAI_RELAY_ACME_CA", "~nobody-at-all/ca.pem")
    status, _, err = _run(capsys, "relay", "--data", "/nowhere")
    assert (status, "there is no home folder for '~nobody-at-all/ca.pem'" in err) == (1, True)
    monkeypatch.setenv("WAI_RELAY_DATA", "~nobody-at-all/relay")
    status, _, err = _run(capsys, "key", "list")
    assert (status, "the data folder ~nobody-at-all/relay" in err) == (1, True)


def test_an_expired_certificate_is_said_to_be_expired(capsys: Captured, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "relay")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=9))
        .not_valid_after(now - datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "relay.pem"
    pem.write_bytes(certificate.public_bytes(Encoding.PEM))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "key.pem").write_bytes(private)
    data, port = tmp_path / "relay", free_port()
    command = [script("wai"), "relay", "--data", str(data), "--listen", f"127.0.0.1:{port}"]
    command += ["--tls", f"{pem},{tmp_path / 'key.pem'}"]
    with Daemon(command, log=tmp_path / "relay.log") as relay:
        relay.wait_until((data / "relay.json").exists, "the relay does not start")
        there = ("--relay", f"https://localhost:{port}", "--token-file", data / "admin.token")
        status, _, err = _run(capsys, "status", *there, "--ca", pem)
    assert (status, f"the certificate of https://localhost:{port} has expired" in err) == (1, True)
