"""What is said of the port's certificate: one that is over, and one that is not there yet."""

from __future__ import annotations

import asyncio
import datetime
import logging
from pathlib import Path

import pytest

from wai_protocol.errors import RequestError
from wai_relay import certificate as certificates
from wai_relay import port_tls
from wai_relay.config import RelayConfig
from wai_relay.identity import load_self_signed
from wai_relay.port_tls import PortTls
from wai_transport.folder import DataFolder

pytestmark = pytest.mark.anyio
LONG_AGO = datetime.datetime(2010, 1, 1, tzinfo=datetime.UTC)


def test_a_stand_in_is_not_taken_for_the_authoritys(tmp_path: Path) -> None:
    """It is good for ten years, which would hide that ACME gets nothing."""
    folder = DataFolder.open(tmp_path)
    config = RelayConfig(tmp_path, tls="acme", domain="llm.example.com")
    tls = PortTls.load(config, folder, lambda: None)
    assert tls is not None
    assert tls.ends == 0.0
    own = PortTls.load(RelayConfig(tmp_path), folder, lambda: None)
    assert own is not None
    assert own.ends > datetime.datetime.now(datetime.UTC).timestamp()


async def test_a_given_certificate_that_is_over_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = DataFolder.open(tmp_path)
    given = load_self_signed(folder, [], LONG_AGO)
    config = RelayConfig(tmp_path, tls=f"{given.certificate},{given.key}")
    tls = PortTls.load(config, folder, lambda: None)
    assert tls is not None
    with caplog.at_level(logging.WARNING, "wai.tls"):
        tls.start()
        await tls.close()
    assert [entry.getMessage() for entry in caplog.records] == [
        f"the certificate {given.certificate} was good until 2012-03-11 00:00:00+00:00"
    ]


async def test_the_relays_own_certificate_is_renewed_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_tls, "LOOK_AT_OWN_S", 0.001)
    shown = asyncio.Event()
    folder = DataFolder.open(tmp_path)
    tls = PortTls.load(RelayConfig(tmp_path), folder, shown.set)
    assert tls is not None
    pin, before = tls.pin, tls.served.hashes
    authority = (tmp_path / "relay-ca.crt").read_bytes()
    tls.start()
    (tmp_path / "relay.crt").unlink()  # as if it were near its end: it is to be issued again
    await asyncio.wait_for(shown.wait(), 10)
    await tls.close()
    assert before < tls.served.hashes
    assert tls.pin == pin
    assert (tmp_path / "relay-ca.crt").read_bytes() == authority


async def test_the_address_of_the_settings_reaches_the_relays_own_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_tls, "LOOK_S", 0.001)
    shown = asyncio.Event()
    folder = DataFolder.open(tmp_path)
    tls = PortTls.load(RelayConfig(tmp_path), folder, shown.set)
    assert tls is not None
    pin = tls.pin
    tls.start()
    tls.settings_url = lambda: "https://llm.home.example:8443"
    await asyncio.wait_for(shown.wait(), 10)
    await tls.close()
    leaf, *_ = certificates.certificates_from_pem((tmp_path / "relay.crt").read_bytes())
    assert "llm.home.example" in certificates.hosts_of(leaf)
    assert tls.pin == pin
    again = PortTls.load(RelayConfig(tmp_path), folder, lambda: None)  # it stays over a restart
    assert again is not None
    assert again.served.hashes < tls.served.hashes


@pytest.mark.parametrize("url", ["https://", "http://[::1", "https://ex ample"])
async def test_an_address_of_the_settings_that_is_none_does_not_stop_the_renewal(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_tls, "LOOK_S", 0.001)
    tls = PortTls.load(RelayConfig(tmp_path), DataFolder.open(tmp_path), lambda: None)
    assert tls is not None
    tls.settings_url = lambda: url
    tls.start()
    await asyncio.sleep(0.02)
    assert tls._task is not None
    assert not tls._task.done()
    await tls.close()


@pytest.mark.parametrize("tls", ["self-signed", "off", "/a.pem,/b.pem"])
def test_a_domain_that_nothing_would_get_a_certificate_for_is_refused(
    tmp_path: Path, tls: str
) -> None:
    with pytest.raises(RequestError, match="add --tls acme"):
        RelayConfig(tmp_path, tls=tls, domain="llm.example.com")
