"""ACME's rules without an authority: when to renew, what a challenge shows, who sees it."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from tests.harness.connect_proxy import connect_proxy
from wai_protocol.errors import WaiError
from wai_relay import certificate as certificates
from wai_relay.acme.challenge import tls_alpn_certificate
from wai_relay.acme.client import AcmeClient, AcmeError, certificate_id
from wai_relay.acme.jose import AccountKey
from wai_relay.acme.schedule import (
    LONGEST_RETRY_S,
    Window,
    renewal_due,
    retry_in_s,
    window_due,
)
from wai_relay.http.edge import Edge
from wai_relay.http.listener import Listener
from wai_relay.http.served_certificate import OLD_GRACE_S, ServedCertificate, load_pair
from wai_transport.http_proxy import ProxySettings

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
DAYS_90 = datetime.timedelta(days=90)
NAME = "llm.example.com"


def pair(folder: Path, name: str) -> Path:
    """A certificate and its key in one file."""
    key, now = certificates.generate_key(), datetime.datetime.now(datetime.UTC)
    authority = certificates.issue_authority(key, [NAME], now)
    issued = certificates.issue(key, [NAME], now, authority, key)
    file = folder / name
    file.write_bytes(certificates.key_to_pem(key) + issued.public_bytes(Encoding.PEM))
    return file


@pytest.mark.parametrize("chance", [0.0, 0.5, 0.999])
def test_a_renewal_is_due_at_about_two_thirds(chance: float) -> None:
    age = renewal_due(START, START + DAYS_90, lambda: chance) - START
    assert datetime.timedelta(days=55) < age <= datetime.timedelta(days=60)


def test_the_authoritys_window_is_kept() -> None:
    window = Window(START, START + datetime.timedelta(days=2))
    assert window_due(window, lambda: 0.25) == START + datetime.timedelta(hours=12)


def test_failures_wait_longer_each_time_and_never_for_ever() -> None:
    waits = [retry_in_s(failures, lambda: 1.0) for failures in range(1, 2000)]
    assert waits == sorted(waits)
    assert waits[0] == 60.0
    assert waits[-1] == LONGEST_RETRY_S


def test_a_window_is_asked_for_by_the_name_of_rfc_9773() -> None:
    # The example of its section 4.1, rebuilt from its parts.
    key = certificates.generate_key()
    name = x509.Name([])
    key_id = bytes.fromhex("69885b6b87464041e1b37b847bd0ae2cde01c8d4")
    authority_key = x509.AuthorityKeyIdentifier(key_id, None, None)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(0x87654321)
        .not_valid_before(START)
        .not_valid_after(START + DAYS_90)
        .add_extension(authority_key, critical=False)
        .sign(key, SHA256())
    )
    assert certificate_id(certificate) == "aYhba4dGQEHhs3uEe9CuLN4ByNQ.AIdlQyE"


async def shake(port: int, alpn: str, name: str) -> bytes:
    """The certificate that a peer which offers `alpn` is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return shown


@pytest.mark.anyio
async def test_only_an_authority_sees_the_challenge_and_only_while_it_is_shown(
    tmp_path: Path,
) -> None:
    own = pair(tmp_path, "own.pem")
    served = ServedCertificate(load_pair(own, own))

    async def unused(_: object) -> None:
        raise AssertionError("nobody sends a request here")

    edge = Edge(unused)
    listener = Listener(edge)
    await listener.open(host="127.0.0.1", tls=served.context)
    port = listener.addresses[0][1]
    authorization = AccountKey(certificates.generate_key()).authorization("token")
    challenge = tmp_path / "challenge.pem"
    now = datetime.datetime.now(datetime.UTC)
    challenge.write_bytes(tls_alpn_certificate(NAME, authorization, now))
    try:
        usual = await shake(port, "h2", NAME)
        with served.challenge(NAME, challenge):
            shown = x509.load_der_x509_certificate(await shake(port, "acme-tls/1", NAME))
            (proof,) = (e.value for e in shown.extensions if e.critical)
            assert isinstance(proof, x509.UnrecognizedExtension)
            assert proof.value[2:] == hashlib.sha256(authorization.encode()).digest()
            assert await shake(port, "h2", NAME) == usual
            assert await shake(port, "wai/1", NAME) == usual
            assert await shake(port, "acme-tls/1", "other.example.com") == usual
        assert await shake(port, "acme-tls/1", NAME) == usual
    finally:
        await listener.close()
        await edge.drain(0.1)


def test_nodes_may_have_seen_the_old_certificate_a_moment_ago_and_not_for_ever(
    tmp_path: Path,
) -> None:
    now = [0.0]
    old, new = pair(tmp_path, "old.pem"), pair(tmp_path, "new.pem")
    served = ServedCertificate(load_pair(old, old), clock=lambda: now[0])
    before = served.hashes
    served.show(load_pair(new, new))
    assert before < served.hashes
    now[0] = OLD_GRACE_S
    assert before.isdisjoint(served.hashes)


@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_of_a_hundred_thousand_brackets_is_the_authoritys_error(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    client = AcmeClient("https://ca.example/directory", AccountKey(certificates.generate_key()))

    async def send(method: str, url: str, body: bytes) -> tuple[int, list[object], bytes]:
        return status, [], b"[" * 100_000

    monkeypatch.setattr(client, "_send", send)
    with pytest.raises(AcmeError):
        asyncio.run(client.open_account(None))


def test_the_authority_is_asked_through_the_proxy() -> None:
    async def ask(proxies: ProxySettings) -> None:
        key = AccountKey(certificates.generate_key())
        client = AcmeClient("https://ca.example/directory", key, proxies=proxies)
        try:
            await client.open_account(None)
        finally:
            await client.close()

    with (
        connect_proxy(answer=b"HTTP/1.1 403 Forbidden\r\n\r\n") as proxy,
        pytest.raises(WaiError, match=r"refuses a connection to ca\.example"),
    ):
        asyncio.run(ask(ProxySettings(proxy.url)))
    assert proxy.asked == ["CONNECT ca.example:443 HTTP/1.1"]
