"""The port's TLS by each of its modes: its own CA's, the operator's files, or an ACME authority's.

It decides which certificate is shown and follows its changes while the relay runs; it makes no
handshake (`http.served_certificate`) and issues nothing (`certificate`, `acme`).
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from wai_protocol.errors import StoreError
from wai_transport.folder import DataFolder

from .acme.proof import HttpProof, Proof, TlsAlpnProof
from .acme.renewal import CERTIFICATE_FILE, Authority, Renewal, kept_certificate
from .acme.shared import SharedCertificate
from .config import RelayConfig, split_address
from .http.served_certificate import Pair, ServedCertificate, load_pair
from .identity import TlsFiles, given_tls, load_self_signed, trusted_file

LOOK_S: Final = 5.0
"""How often the operator's files are looked at: two calls of stat. Who replaces a certificate that
is over wants to see at once that it is taken."""

LOOK_AT_OWN_S: Final = 3600.0
"""How often it is looked whether the relay's own certificate nears its end. Whether it is to have
another name is looked every `LOOK_S`."""

Stamp: TypeAlias = tuple[tuple[int, int, int], ...] | None

_log = logging.getLogger("wai.tls")


class PortTls:
    """What the port shows, now and later. Make it with `load`; `start` it once the port is open.

    `on_change` is called when another certificate is shown.
    """

    def __init__(
        self,
        config: RelayConfig,
        folder: DataFolder,
        files: TlsFiles,
        on_change: Callable[[], None],
    ) -> None:
        self._config = config
        self._folder = folder
        self._files = files
        self._on_change = on_change
        self._stamp = _stamp(files)
        self._task: asyncio.Task[None] | None = None
        self.settings_url: Callable[[], str | None] = lambda: None
        """The public URL that an admin has set: the relay's own certificate is for its name too."""
        self.shared: SharedCertificate | None = None
        """What is shared of an authority's certificate with other relays, if it is."""
        self.renews: Callable[[], bool] = lambda: True
        """Whether it is for this relay to renew what is shared."""
        self.served = ServedCertificate(_pair(files))

    @classmethod
    def load(
        cls, config: RelayConfig, folder: DataFolder, on_change: Callable[[], None]
    ) -> PortTls | None:
        """The certificate to begin with; None for a port without TLS. Raises `StoreError`."""
        if config.tls == "off":
            return None
        return cls(config, folder, _first_files(config, folder), on_change)

    @property
    def pin(self) -> bytes:
        """The SHA-256 of the shown certificate's SubjectPublicKeyInfo."""
        return self._files.pin

    @property
    def hosts(self) -> frozenset[str]:
        """The names and addresses that the shown certificate is good for."""
        return self._files.hosts

    @property
    def ends(self) -> float:
        """When the shown certificate is over, in seconds since 1970; 0 while the one that an
        authority is to give is not there yet."""
        return 0.0 if self._stands_in else self._files.ends

    @property
    def _stands_in(self) -> bool:
        return self._config.tls == "acme" and self._files.certificate.name != CERTIFICATE_FILE

    @property
    def pinned(self) -> bool:
        """Whether nodes know us by that pin, rather than by an authority."""
        return self._config.tls == "self-signed"

    @property
    def trusted_file(self) -> Path | None:
        """What callers must trust; None where an authority vouches that they know."""
        return trusted_file(self._folder) if self.pinned else None

    @property
    def context(self) -> ssl.SSLContext:
        """For the listener."""
        return self.served.context

    def start(self) -> None:
        """Follow the certificate's changes, as the configuration says now."""
        self._warn_if_over()
        self._task = asyncio.get_running_loop().create_task(self._follow(self._task))
        self._task.add_done_callback(_log_end)

    async def _follow(self, former: asyncio.Task[None] | None) -> None:
        """`former` followed another configuration, and is to end first."""
        if former is not None:
            former.cancel()
            await asyncio.wait((former,))
        if self._config.tls == "acme":
            await self._renewal().run()
        elif self._config.given_certificate is not None:
            await self._watch()
        else:
            await self._renew_own()

    async def close(self) -> None:
        """Follow them no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
        if self.shared is not None:
            await self.shared.close()

    def prepare(self, config: RelayConfig) -> Callable[[], None]:
        """Read the files again, those of a changed configuration; what is returned shows them.

        Raises `StoreError`: they can't be used.
        """
        files = self._files
        if config.tls != "acme" or _has_kept(config, self._folder):
            files = _first_files(config, self._folder)
        stamp = _stamp(files)
        pair = _pair(files)

        def use() -> None:
            former, self._config = self._config, config
            if (stamp, files) != (self._stamp, self._files):
                self._show(files, stamp, pair)
            if _followed(former) != _followed(config):
                self.start()

        return use

    def _read_again(self) -> None:
        """Show the operator's files anew; what can't be used is logged, and the old ones stay."""
        try:
            if given := self._config.given_certificate:
                self._read(given_tls(*given))
        except StoreError as error:
            _log.error("the new certificate can't be used, the old one stays: %s", error)

    def _read(self, files: TlsFiles) -> None:
        self._show(files, _stamp(files), _pair(files))

    def _show(self, files: TlsFiles, stamp: Stamp, pair: Pair) -> None:
        self.served.show(pair)
        self._files, self._stamp = files, stamp
        _log.info("a new certificate is shown from now on")
        self._warn_if_over()
        self._on_change()

    def _warn_if_over(self) -> None:
        """Callers and nodes would refuse it, and nobody else says so here."""
        if self._files.ends < time.time():
            over = datetime.datetime.fromtimestamp(self._files.ends, datetime.UTC)
            _log.warning("the certificate %s was good until %s", self._files.certificate, over)

    async def _watch(self) -> None:
        """Look after the operator's files."""
        failed: object = None
        while True:
            await asyncio.sleep(LOOK_S)
            stamp = _stamp(self._files)
            if stamp not in (self._stamp, failed):
                self._read_again()
                failed = stamp  # said once; the next change is tried again

    async def _renew_own(self) -> None:
        """Show the relay's own certificate anew when it is issued again: in time before its end,
        or for another name."""
        loop = asyncio.get_running_loop()
        named: str | None = None
        look_at = loop.time() + LOOK_AT_OWN_S
        while True:
            url = self.settings_url()
            if url != named or loop.time() >= look_at:
                named, look_at = url, loop.time() + LOOK_AT_OWN_S
                try:
                    files = _first_files(self._config, self._folder, url)
                    if _stamp(files) != self._stamp:
                        self._read(files)
                except (StoreError, ValueError) as error:  # ValueError: no name can be that
                    _log.error("the relay's certificate can't be renewed: %s", error)
            await asyncio.sleep(min(LOOK_S, LOOK_AT_OWN_S))

    @property
    def proof(self) -> Proof:
        """How the domain is proved to an authority."""
        if self._config.acme_challenge == "http-01":
            return HttpProof(*split_address(self._config.acme_http_listen))
        return TlsAlpnProof(self.served, self._folder)

    async def follow_files(self) -> None:
        """Take over the certificate that another relay has got. Raises `StoreError`."""
        if self.shared is None:
            return
        if CERTIFICATE_FILE in await self.shared.fetch() and self._config.tls == "acme":
            self._issued(self._folder.path / CERTIFICATE_FILE)

    async def follow_challenges(self) -> None:
        """Show the challenges of the other relays. Raises `StoreError`."""
        if self.shared is not None:
            await self.shared.follow_challenges(self.proof)

    def _renewal(self) -> Renewal:
        config = self._config
        assert config.domain is not None
        authority = Authority(
            config.acme_directory, config.acme_email, config.acme_ca, config.proxies
        )
        return Renewal(
            *(authority, config.domain, self._folder, self.proof, self._issued),
            shared=self.shared,
            ours=self.renews,
        )

    def _issued(self, file: Path) -> None:
        self._read(given_tls(file, file))


def _first_files(
    config: RelayConfig, folder: DataFolder, settings_url: str | None = None
) -> TlsFiles:
    if given := config.given_certificate:
        return given_tls(*given)
    if config.tls == "acme" and config.domain is not None:
        if _has_kept(config, folder):
            file = folder.path / CERTIFICATE_FILE
            return given_tls(file, file)
        # Something has to be shown until the authority has come by; commands on this machine
        # know it by its pin, and callers refuse it rightly.
        return load_self_signed(folder, [config.domain])
    hosts = [config.address[0]]
    hosts += [urlsplit(url).hostname or "" for url in (config.public_url, settings_url) if url]
    return load_self_signed(folder, [host for host in hosts if host])


def _has_kept(config: RelayConfig, folder: DataFolder) -> bool:
    return config.domain is not None and kept_certificate(folder, config.domain) is not None


def _pair(files: TlsFiles) -> Pair:
    try:
        return load_pair(files.certificate, files.key)
    except (ssl.SSLError, OSError) as error:
        raise StoreError(f"the certificate and its key can't be used: {error}") from error


def _followed(config: RelayConfig) -> tuple[object, ...]:
    """What the task that follows the certificate is told."""
    return (
        *(config.tls, config.domain, config.acme_directory, config.acme_email, config.acme_ca),
        *(config.acme_challenge, config.acme_http_listen, config.proxies),
    )


def _stamp(files: TlsFiles) -> Stamp:
    """What changes when the files do; None while one of them is missing."""
    try:
        found = [file.stat() for file in (files.certificate, files.key)]
    except OSError:
        return None
    return tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in found)


def _log_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("certificates are not renewed any more", exc_info=error)
