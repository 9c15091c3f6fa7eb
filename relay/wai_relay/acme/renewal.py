"""Obtain a certificate if there is none, and renew it in time, while the relay runs.

Key and chain are in one file, so that they are replaced together. A failure is logged and tried
again later; the current certificate stays in use. The requests are made by `client`, the times are
computed by `schedule`.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import random
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509

from wai_protocol.errors import StoreError, WaiError
from wai_relay import certificate as certificates
from wai_transport.folder import DataFolder
from wai_transport.http_proxy import DIRECT, ProxySettings

from .client import AcmeClient, AcmeError
from .jose import AccountKey
from .proof import Proof
from .schedule import Random, renewal_due, retry_in_s, window_due
from .shared import SharedCertificate

ACCOUNT_FILE: Final = "acme-account.key"
CERTIFICATE_FILE: Final = "acme.pem"
LOOK_S: Final = 3600.0
"""Interval of the checks whether a renewal is due. A machine that slept, or whose clock was set,
notices it within an hour."""
LOOK_FOR_WORK_S: Final = 5.0
"""Interval in which a relay that shares a certificate looks whether it is the one that renews."""
ASK_S: Final = 6 * 3600.0
"""Interval of the requests for the authority's renewal window (RFC 9773 section 4.3.2)."""

_log = logging.getLogger("wai.acme")


class Authority(msgspec.Struct, frozen=True):
    """A certificate authority.

    `ca`: a file with certificates that verify the authority's server; None: those of the system.
    `proxies`: the way to it.
    """

    directory_url: str
    email: str | None = None
    ca: Path | None = None
    proxies: ProxySettings = DIRECT


class Renewal:
    """Keeps a valid certificate for `name`.

    `proof`: serves the challenges. `on_issued`: called with the file of each new certificate.
    `shared`: other relays have the same certificate, and `ours` says whether this one renews it.
    `chance`: returns random numbers from 0 to 1.
    """

    def __init__(
        self,
        authority: Authority,
        name: str,
        folder: DataFolder,
        proof: Proof,
        on_issued: Callable[[Path], None],
        *,
        shared: SharedCertificate | None = None,
        ours: Callable[[], bool] = lambda: True,
        chance: Random = random.random,
    ) -> None:
        self._shared = shared
        self._ours = ours
        self._authority = authority
        self._name = name
        self._folder = folder
        self._proof = proof
        self._on_issued = on_issued
        self._chance = chance

    async def run(self) -> None:
        """Obtain and renew the certificate until cancelled."""
        failures = 0
        while True:
            if not self._ours():  # another relay renews it
                await asyncio.sleep(LOOK_FOR_WORK_S)
                continue
            certificate = kept_certificate(self._folder, self._name)
            if certificate is not None:
                await self._until_due(certificate)
                if not self._ours() or kept_certificate(self._folder, self._name) != certificate:
                    continue
            try:
                self._account_key()  # made if there is none
                await self._publish(ACCOUNT_FILE)
                await self.issue(certificate)
                await self._publish(CERTIFICATE_FILE)
                failures = 0
            except (WaiError, ssl.SSLError, OSError) as error:
                failures += 1
                asked_s = error.retry_after_s if isinstance(error, WaiError) else None
                wait_s = max(retry_in_s(failures, self._chance), asked_s or 0.0)
                _log.warning(
                    "no certificate for %s: %s; next try in %.0f s", self._name, error, wait_s
                )
                await asyncio.sleep(wait_s)

    async def issue(self, previous: x509.Certificate | None) -> None:
        """Obtain a certificate now. `previous`: the one that it replaces, None if there is none.

        Raises `WaiError`, and has changed nothing then.
        """
        client = self._client()
        try:
            await client.open_account(self._authority.email)
            order = await client.new_order(self._name, previous)
            for url in order.authorizations:
                challenge = await client.challenge(url, self._proof.kind)
                if challenge.valid:
                    continue
                authorization = self._account_key().authorization(challenge.token)
                shown = (challenge.name, challenge.token, authorization)
                async with self._proof.shown(*shown), self._told(*shown):
                    await client.prove(challenge)
            key = certificates.generate_key()
            chain = await client.finalize(order, key, self._name)
        finally:
            await client.close()
        fresh = certificates.certificate_from_pem(chain)
        if fresh.public_key() != key.public_key():
            raise AcmeError("the authority's certificate is not for this relay's key")
        self._folder.write(CERTIFICATE_FILE, certificates.key_to_pem(key) + chain)
        self._on_issued(self._folder.path / CERTIFICATE_FILE)
        _log.info("certificate for %s, valid until %s", self._name, fresh.not_valid_after_utc)

    async def _publish(self, file: str) -> None:
        """Give a file to the relays that share it."""
        if self._shared is not None:
            await self._shared.publish(file)

    def _told(self, name: str, token: str, authorization: str) -> AbstractAsyncContextManager[None]:
        """Within the block the other relays show the challenge too."""
        if self._shared is None:
            return nullcontext()
        return self._shared.told(name, token, authorization)

    async def _until_due(self, certificate: x509.Certificate) -> None:
        """Wait until `certificate` should be renewed."""
        by_age = renewal_due(
            certificate.not_valid_before_utc, certificate.not_valid_after_utc, self._chance
        )
        due = await self._asked(certificate, by_age)
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        while (left_s := (due - _now()).total_seconds()) > 0:
            await asyncio.sleep(min(left_s, LOOK_S))
            if loop.time() - asked_at >= ASK_S:
                asked_at = loop.time()
                due = await self._asked(certificate, by_age)

    async def _asked(
        self, certificate: x509.Certificate, by_age: datetime.datetime
    ) -> datetime.datetime:
        """Return when to renew by the authority's window, or `by_age` if there is none.

        The window can make the renewal earlier (because the certificate will be revoked). It can
        delay it only up to the middle between `by_age` and the certificate's end.
        """
        client = self._client()
        try:
            window = await client.renewal_window(certificate)
        except WaiError as error:
            _log.info("the authority's renewal window could not be read: %s", error)
            return by_age
        finally:
            await client.close()
        if window is None:
            return by_age
        latest = certificate.not_valid_after_utc - (certificate.not_valid_after_utc - by_age) / 2
        return min(window_due(window, self._chance), latest)

    def _client(self) -> AcmeClient:
        ca = self._authority.ca
        try:
            tls = ssl.create_default_context(cafile=str(ca)) if ca is not None else None
        except (OSError, ssl.SSLError) as error:
            raise StoreError(f"{ca} is not a certificate: {error}") from error
        return AcmeClient(
            self._authority.directory_url,
            self._account_key(),
            tls=tls,
            proxies=self._authority.proxies,
        )

    def _account_key(self) -> AccountKey:
        kept = self._folder.read(ACCOUNT_FILE)
        if kept is not None:
            return AccountKey(certificates.key_from_pem(kept))
        key = certificates.generate_key()
        self._folder.write(ACCOUNT_FILE, certificates.key_to_pem(key))
        return AccountKey(key)


def kept_certificate(folder: DataFolder, name: str) -> x509.Certificate | None:
    """Return the stored certificate for `name`, None if there is none or it is not valid."""
    pem = folder.read(CERTIFICATE_FILE)
    if pem is None:
        return None
    try:
        certificate = certificates.certificate_from_pem(pem)
        key = certificates.key_from_pem(pem)
    except StoreError as error:
        file = folder.path / CERTIFICATE_FILE
        _log.warning("%s cannot be used, a new certificate will be obtained: %s", file, error)
        return None
    fits = name in certificates.hosts_of(certificate) and _now() < certificate.not_valid_after_utc
    return certificate if fits and certificate.public_key() == key.public_key() else None


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
