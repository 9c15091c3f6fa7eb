"""An outage drill: what breaks is known within 15 s on the Overview page (its API), in `wai status`
and in `wai doctor`, in words and with what to do; and it is gone when it is mended."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from tests.harness.caller import chat, request
from tests.harness.cluster import cluster
from tests.harness.kernel_clock import kernel_clock
from tests.harness.keyed_server import MODEL, keyed_server
from tests.harness.processes import Daemon, free_port, wait_until
from tests.harness.real import script
from wai_relay import certificate as certificates
from wai_relay.identity import load_self_signed
from wai_transport.folder import DataFolder

pytestmark = [pytest.mark.long, pytest.mark.e2e, pytest.mark.timeout(400)]

KNOWN_WITHIN_S: Final = 15.0
DISK_MIB: Final = 320  # more than what counts as a low disk, and a little of it is used
KEY: Final = "key-of-the-server"


@dataclass(frozen=True, slots=True)
class Operator:
    """Who looks: runs `wai` beside the relay. `through`: how to get to where that is."""

    data: Path
    through: tuple[str, ...] = ()

    def run(self, *arguments: str) -> tuple[int, str]:
        """The status and the output of a command."""
        done = subprocess.run(
            [*self.through, script("wai"), *arguments, "--data", str(self.data)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def problems(self) -> list[dict[str, Any]]:
        """What the Overview page shows: `wai status --json` passes on the same answer."""
        found: list[dict[str, Any]] = json.loads(self.run("status", "--json")[1])["problems"]
        return found

    def sees(self, kind: str, text: str) -> None:
        """It is known in time, by all three ways, with what to do."""
        found: list[dict[str, Any]] = []

        def known() -> bool:
            found[:] = [
                one for one in self.problems() if one["kind"] == kind and text in one["text"]
            ]
            return bool(found)

        wait_until(known, f"{kind}: {text!r} is not known", KNOWN_WITHIN_S)
        [problem] = found
        assert len(problem["advice"]) > 20
        for command in ("status", "doctor"):
            status, said = self.run(command)
            assert status == 1
            assert text in said, said
            assert f"→ {problem['advice']}" in said

    def is_content(self, kind: str) -> None:
        """Nothing of the kind is wrong any more."""
        wait_until(
            lambda: all(one["kind"] != kind for one in self.problems()),
            f"{kind} is still told",
            KNOWN_WITHIN_S,
        )


def test_a_fleet_that_breaks_is_known_and_so_is_its_mending(tmp_path: Path) -> None:
    with keyed_server(KEY) as server, cluster(tmp_path) as running:
        operator = Operator(running.data)
        running.add_node("box", server.url, upstream_key=KEY)
        headers = {"Authorization": f"Bearer {running.create_key().secret}"}
        before = _books(operator)

        def ask() -> int:
            with request(running, "/v1/chat/completions", chat(MODEL), headers) as answer:
                answer.read()
                return answer.status

        status, said = operator.run("status")
        assert (status, "nothing is wrong" in said) == (0, True), said
        status, said = operator.run("doctor")
        assert (status, f"{MODEL} on box answered" in said) == (0, True), said

        server.key = "changed"
        operator.sees("upstream", "is not used")
        server.key = KEY
        operator.is_content("upstream")

        server.status = 500  # it lists its models all the same
        status, said = operator.run("doctor")
        assert status == 1
        assert f"{MODEL} on box: 500" in said  # found before a caller was hit
        assert _books(operator) == before  # and nothing is left of all that
        for _ in range(3):
            assert ask() == 500
        operator.sees("upstream", f"requests for {MODEL} failed there")
        server.status = 200
        assert ask() == 200
        operator.is_content("upstream")

        box = running.nodes["box"]
        box.daemon.send(signal.SIGKILL)
        box.daemon.wait()
        operator.sees("node", "it has not come back yet")
        running.run_node("box", "--upstream", server.url, "--upstream-key", KEY)
        operator.is_content("node")
        box = running.nodes["box"]
        box.daemon.stop()
        operator.sees("node", "it is offline")
        running.run_node("box", "--upstream", server.url, "--upstream-key", KEY)
        operator.is_content("node")
        assert operator.run("status")[0] == 0


def _books(operator: Operator) -> list[tuple[str, int]]:
    """How many rows each table has."""
    with sqlite3.connect(f"file:{operator.data}/relay.db?mode=ro", uri=True) as books:
        tables = [
            row[0] for row in books.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        counts = [
            (name, books.execute(f"SELECT count(*) FROM {name}").fetchone()[0]) for name in tables
        ]
    books.close()
    return counts


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted by root")
def test_a_relay_whose_machine_fails_it_is_known_and_so_is_its_mending(tmp_path: Path) -> None:
    clock = kernel_clock(tmp_path / "kernel")
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    kept = load_self_signed(DataFolder.open(tmp_path / "made"), ["localhost"])
    for made, given in zip((kept.certificate, kept.key), files, strict=True):
        shutil.copy(made, given)
    with _on_a_small_disk(tmp_path / "relay", files, clock.env) as operator:
        assert {one["kind"] for one in operator.problems()} == {"setup"}  # it has no node

        good = files[0].read_bytes()
        files[0].write_bytes(_ended(files[1]))
        operator.sees("certificate", "the certificate ended on")
        files[0].write_bytes(good)
        operator.is_content("certificate")

        clock.say(synchronised=False)
        operator.sees("clock", "nothing sets the clock right any more")
        clock.say(synchronised=True)
        operator.is_content("clock")

        inside = _seen_from_here(operator)
        with (inside / "big").open("wb") as big:
            os.posix_fallocate(big.fileno(), 0, (DISK_MIB - 200) << 20)
        operator.sees("disk", "MiB left")
        (inside / "big").unlink()
        operator.is_content("disk")

        with _locked(operator):
            operator.sees("database", "database is locked")
        operator.is_content("database")


@contextmanager
def _on_a_small_disk(
    data: Path, files: tuple[Path, Path], env: dict[str, str]
) -> Iterator[Operator]:
    """A relay with a disk of its own as its data folder, which only its mount namespace has."""
    data.mkdir()
    mount = f'mount -t tmpfs -o size={DISK_MIB}m,mode=0700 tmpfs "$0" && exec "$@"'
    relay = [script("wai"), "relay", "--data", str(data), "--listen", f"127.0.0.1:{free_port()}"]
    relay += ["--tls", f"{files[0]},{files[1]}"]
    argv = ["unshare", "--mount", "sh", "-c", mount, str(data), *relay]
    with Daemon(argv, log=data.with_suffix(".log"), env=env) as running:
        try:
            running.wait_for_output("relay ready on")
        except AssertionError:
            if "unshare failed" in running.output() or "mount:" in running.output():
                pytest.skip("no mount namespace can be made here")
            raise
        yield Operator(data, ("nsenter", f"--mount=/proc/{running.pid}/ns/mnt", "--"))


@contextmanager
def _locked(operator: Operator) -> Iterator[None]:
    """Another program holds the database's lock, until the end of the block."""
    holding = (
        "import sqlite3, sys; books = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "books.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read()"
    )
    argv = [*operator.through, sys.executable, "-c", holding, str(operator.data / "relay.db")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as locker:
        assert locker.stdout is not None
        assert locker.stdout.readline() == b"locked\n"
        yield
        locker.communicate(timeout=30)


def _seen_from_here(operator: Operator) -> Path:
    """The relay's data folder, by way of its process."""
    pid = operator.through[1].split("/")[2]
    return Path(f"/proc/{pid}/root{operator.data}")


def _ended(key_file: Path) -> bytes:
    """A certificate for the key, which was good until a minute ago."""
    key = certificates.key_from_pem(key_file.read_bytes())
    now = datetime.datetime.fromtimestamp(time.time(), datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=90))
        .not_valid_after(now - datetime.timedelta(minutes=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM)
