"""A real ACME authority on this machine: Debian's `pebble`, in strict mode, with its own DNS.

It refuses every second nonce, as an authority with many front ends may do.
"""

from __future__ import annotations

import json
import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trustme

from .processes import Daemon, free_port

REFUSED_NONCES_PERCENT: Final = 50
_ANSWER_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Pebble:
    """A running authority. `ca` is the certificate that authenticates `directory`."""

    directory: str
    ca: Path
    daemon: Daemon
    _management: str

    def root(self) -> str:
        """The root certificate, in PEM, that its certificates hang on; another after each start."""
        context = ssl.create_default_context(cafile=str(self.ca))
        with urllib.request.urlopen(
            f"{self._management}/roots/0", timeout=_ANSWER_TIMEOUT_S, context=context
        ) as answer:
            pem: bytes = answer.read()
            return pem.decode()


@contextmanager
def pebble(folder: Path, *, tls_port: int, http_port: int, lifetime_s: int) -> Iterator[Pebble]:
    """An authority that checks names at these ports of this machine, whatever the name."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    pair = authority.issue_cert("localhost", "127.0.0.1")
    pair.private_key_pem.write_to_path(str(folder / "server.key"))
    pair.cert_chain_pems[0].write_to_path(str(folder / "server.crt"))
    acme, management, dns, dns_management = (free_port() for _ in range(4))
    (folder / "pebble.json").write_text(
        json.dumps(
            {
                "pebble": {
                    "listenAddress": f"127.0.0.1:{acme}",
                    "managementListenAddress": f"127.0.0.1:{management}",
                    "certificate": str(folder / "server.crt"),
                    "privateKey": str(folder / "server.key"),
                    "httpPort": http_port,
                    "tlsPort": tls_port,
                    "certificateValidityPeriod": lifetime_s,
                }
            }
        )
    )
    names = ["pebble-challtestsrv", "-dns01", f"127.0.0.1:{dns}", "-defaultIPv6", ""]
    names += ["-management", f"127.0.0.1:{dns_management}"]
    for unused in ("-http01", "-https01", "-tlsalpn01"):
        names += [unused, ""]
    command = ["pebble", "-strict", "-config", str(folder / "pebble.json")]
    command += ["-dnsserver", f"127.0.0.1:{dns}"]
    env = {
        "PEBBLE_VA_NOSLEEP": "1",
        "PEBBLE_WFE_NONCEREJECT": str(REFUSED_NONCES_PERCENT),
        "PEBBLE_AUTHZREUSE": "0",  # every renewal proves the name anew
    }
    with ExitStack() as ending:
        ending.enter_context(Daemon(names, log=folder / "dns.log"))
        daemon = ending.enter_context(Daemon(command, log=folder / "pebble.log", env=env))
        running = Pebble(
            f"https://127.0.0.1:{acme}/dir",
            folder / "ca.pem",
            daemon,
            f"https://127.0.0.1:{management}",
        )
        daemon.wait_for_output("ACME directory available")
        yield running
