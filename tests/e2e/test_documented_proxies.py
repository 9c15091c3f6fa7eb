"""docs/behind-a-proxy.md: its files are run as they stand there, but for names and ports."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trustme
import yaml

from tests.docs.blocks import ROOT, blocks, the_block
from tests.harness.caller import chat, events
from tests.harness.cluster import CommandError, cluster, wai
from tests.harness.front_proxy import caddy_with, haproxy_with, nginx_with
from tests.harness.odd_upstream import MODELS, OddUpstream, odd_upstream
from tests.harness.processes import Daemon, free_port, wait_until
from tests.harness.real import require_real, script
from wai_relay.certificate import certificate_from_pem, pin_of

pytestmark = [pytest.mark.long, pytest.mark.e2e]

PAGE: Final = "behind-a-proxy.md"
CALLER: Final = "127.0.0.4"  # the proxies are 127.0.0.1
FORGED: Final = "127.0.0.9"
LARGE_BYTES: Final = 3 << 20
Runs = Callable[[Path, str, int], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class EndsTls:
    """A proxy that ends TLS: its block on the page, what of it is another for the test, and the
    site's certificate, key, and both in one file in the terms of that block."""

    runs: Runs
    language: str
    holding: str
    replaced: dict[str, str]


PROXIES: Final = {
    "nginx": EndsTls(
        nginx_with,
        "nginx",
        "server_name",
        {
            "listen 443 ssl http2": "listen 127.0.0.1:{port} ssl http2",
            "/etc/letsencrypt/live/llm.example.com/fullchain.pem": "{certificate}",
            "/etc/letsencrypt/live/llm.example.com/privkey.pem": "{key}",
        },
    ),
    "haproxy": EndsTls(
        haproxy_with,
        "haproxy",
        "mode http",
        {"bind :443": "bind 127.0.0.1:{port}", "/etc/haproxy/llm.example.com.pem": "{both}"},
    ),
    "caddy": EndsTls(
        caddy_with,
        "caddyfile",
        "llm.example.com",
        {"llm.example.com {": "https://127.0.0.1:{port} {\n    tls {certificate} {key}"},
    ),
}


@dataclass(frozen=True, slots=True)
class Site:
    """The files of the proxy's certificate, and how callers trust it."""

    certificate: Path
    key: Path
    both: Path
    context: ssl.SSLContext

    @property
    def pin(self) -> str:
        """The SHA-256 of its public key, in hex."""
        return pin_of(certificate_from_pem(self.certificate.read_bytes())).hex()


def make_site(folder: Path) -> Site:
    authority = trustme.CA()
    made = authority.issue_cert("127.0.0.1")
    site = Site(
        folder / "site.pem", folder / "site.key", folder / "both.pem", ssl.create_default_context()
    )
    site.certificate.write_bytes(b"".join(one.bytes() for one in made.cert_chain_pems))
    made.private_key_pem.write_to_path(site.key)
    site.both.write_bytes(site.certificate.read_bytes() + site.key.read_bytes())
    authority.configure_trust(site.context)
    return site


def connect(port: int, context: ssl.SSLContext) -> http.client.HTTPSConnection:
    return http.client.HTTPSConnection(
        "127.0.0.1", port, timeout=30, source_address=(CALLER, 0), context=context
    )


def text_for(proxy: EndsTls, site: Site, port: int, relay_port: int) -> str:
    text = the_block(PAGE, proxy.language, holding=proxy.holding)
    given = {"port": port, "certificate": site.certificate, "key": site.key, "both": site.both}
    for old, new in {**proxy.replaced, "127.0.0.1:8080": f"127.0.0.1:{relay_port}"}.items():
        assert text.count(old) == 1, old
        for name, value in given.items():
            new = new.replace("{" + name + "}", str(value))
        text = text.replace(old, new)
    return text


@contextmanager
def relay_behind(folder: Path, site: Site, port: int, relay_port: int) -> Iterator[Daemon]:
    """A relay as the page starts it, for a proxy at `port`."""
    settings = folder / "relay.toml"
    settings.write_text(the_block(PAGE, "toml", holding='trusted = ["127.0.0.1"]'))
    command = [script("wai"), "relay", "--data", str(folder / "relay"), "--config", str(settings)]
    command += ["--listen", f"127.0.0.1:{relay_port}", "--tls", "off"]
    command += ["--public-url", f"https://127.0.0.1:{port}", "--proxy-pin", site.pin]
    with Daemon(command, log=folder / "relay.log") as relay:
        relay.wait_for_output("relay ready")
        yield relay


def join(folder: Path) -> None:
    """Have a node join by the proxy's address."""
    data = folder / "relay"
    invite = json.loads(wai("invite", "create", "--data", data, "--json"))["invite"]
    wai("node", "join", invite, "--data", folder / "box", "--name", "box")


@contextmanager
def node_behind(
    proxy: EndsTls, folder: Path, odd: OddUpstream
) -> Iterator[tuple[Daemon, Callable[[], http.client.HTTPSConnection], str]]:
    """A relay behind the proxy, and a node that came in through it: the relay, a function that
    connects a caller, and an API key."""
    site, port, relay_port, data = make_site(folder), free_port(), free_port(), folder / "relay"
    with ExitStack() as ending:
        relay = ending.enter_context(relay_behind(folder, site, port, relay_port))
        ending.enter_context(proxy.runs(folder, text_for(proxy, site, port, relay_port), port))
        join(folder)
        node = [script("wai"), "node", "run", "--data", str(folder / "box"), "--upstream", odd.url]
        ending.enter_context(Daemon(node, log=folder / "node.log"))
        wait_until(lambda: _serves(data), "the node is not ready")
        key = json.loads(wai("key", "create", "app", "--data", data, "--json"))["key"]
        yield relay, partial(connect, port, site.context), key


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_that_ends_tls_carries_nodes_streams_and_large_bodies(
    tmp_path: Path, name: str
) -> None:
    require_real(name)
    with odd_upstream() as odd, node_behind(PROXIES[name], tmp_path, odd) as (relay, connect, key):
        headers = {
            "Authorization": f"Bearer {key}",
            "Content-Type": "application/json",
            "X-Forwarded-For": FORGED,
        }
        odd.seen.release.clear()
        connection = connect()
        connection.request("POST", "/v1/chat/completions", chat("waits", stream=True), headers)
        arriving = events(connection.getresponse())
        assert "first" in next(arriving)  # while the upstream holds the second back
        odd.seen.release.set()
        assert [*arriving][-1] == "[DONE]"
        connection.close()
        relay.wait_for_output(f"address={CALLER} ")

        connection = connect()
        large = chat("answers", user="x" * LARGE_BYTES)
        connection.request("POST", "/v1/chat/completions", large, headers)
        assert connection.getresponse().status == 200
        connection.close()
        assert odd.seen.body_bytes > LARGE_BYTES
        assert FORGED not in relay.log.read_text()


def test_a_proxy_that_drops_upgrade_is_not_named(tmp_path: Path) -> None:
    require_real("nginx")
    site, port, relay_port = make_site(tmp_path), free_port(), free_port()
    whole = text_for(PROXIES["nginx"], site, port, relay_port)
    text = whole.replace("proxy_set_header Upgrade $http_upgrade;", "")
    assert text != whole
    with (
        relay_behind(tmp_path, site, port, relay_port),
        nginx_with(tmp_path, text, port),
        pytest.raises(CommandError, match="a proxy in front of it does not pass Upgrade on"),
    ):
        join(tmp_path)


def test_a_proxy_that_passes_tcp_on_leaves_tls_to_the_relay(tmp_path: Path) -> None:
    require_real("haproxy")
    trusted = {"WAI_RELAY_PROXY": '{trusted = ["127.0.0.1"]}'}
    port = free_port()
    with cluster(tmp_path, env=trusted) as running:
        text = the_block(PAGE, "haproxy", holding="listen relay")
        text = text.replace("bind :443", f"bind 127.0.0.1:{port}")
        text = text.replace("127.0.0.1:8443", f"127.0.0.1:{running.port}")
        with haproxy_with(tmp_path, text, port):
            connection = connect(port, running.tls())
            key = running.create_key().secret
            connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert connection.getresponse().status == 200
            connection.close()
            running.relay.wait_for_output(f"address={CALLER} ")
            running.join("box")
            node = running.start_node(
                "box", "--relay", f"127.0.0.1:{port}", "--upstream", "http://127.0.0.1:9"
            )
            node.daemon.wait_for_output("connected to the relay as box")


def test_nodes_are_told_from_callers_by_what_they_offer(tmp_path: Path) -> None:
    require_real("haproxy")
    trusted = {"WAI_RELAY_PROXY": '{trusted = ["127.0.0.1"]}'}
    port = free_port()
    with cluster(tmp_path / "nodes", env=trusted) as nodes, cluster(tmp_path / "sites") as sites:
        text = the_block(PAGE, "haproxy", holding="use_backend nodes")
        text = text.replace("bind :443", f"bind 127.0.0.1:{port}")
        text = text.replace("127.0.0.1:8443", f"127.0.0.1:{nodes.port}")
        text = text.replace("127.0.0.1:8444", f"127.0.0.1:{sites.port}")
        with haproxy_with(tmp_path, text, port):
            nodes.join("box")
            node = nodes.start_node(
                "box", "--relay", f"127.0.0.1:{port}", "--upstream", "http://127.0.0.1:9"
            )
            node.daemon.wait_for_output("connected to the relay as box")
            connection = connect(port, sites.tls())  # it trusts only the relay of `sites`
            connection.request("GET", "/healthz")
            assert connection.getresponse().status == 200
            connection.close()


def test_callers_come_through_a_proxy_and_nodes_by_a_way_of_their_own(tmp_path: Path) -> None:
    require_real("nginx")
    site, port, proxy = make_site(tmp_path), free_port(), PROXIES["nginx"]
    trusted = {"WAI_RELAY_PROXY": '{trusted = ["127.0.0.1"]}'}
    with odd_upstream() as odd, cluster(tmp_path, env=trusted) as running:
        text = text_for(proxy, site, port, running.port).replace(
            "proxy_pass http:", "proxy_pass https:"
        )
        running.add_node("box", odd.url, models=len(MODELS))  # by the relay's own address
        with proxy.runs(tmp_path, text, port):
            connection = connect(port, site.context)
            headers = {"Authorization": f"Bearer {running.create_key().secret}"}
            headers["Content-Type"] = "application/json"
            connection.request("POST", "/v1/chat/completions", chat("answers"), headers)
            assert connection.getresponse().status == 200
            connection.close()
            running.relay.wait_for_output(f"address={CALLER} ")


def test_what_can_not_be_run_is_no_yaml() -> None:
    read = [
        yaml.safe_load(block.text)
        for block in blocks(ROOT / "docs" / PAGE)
        if block.language == "yaml"
    ]
    assert [sorted(one) for one in read] == [["http"], ["tcp"]]
    for one in read:
        (kind,) = one.values()
        assert kind["routers"]["wai"]["service"] in kind["services"]


def _serves(data: Path) -> bool:
    nodes = json.loads(wai("node", "list", "--data", data, "--json"))
    return any(node["serving"] for node in nodes)
