"""A mail server that takes mail from who signs in (RFC 5321, 3207, 4954), and its bad relatives.

It uses a thread for each connection, and plain sockets, so that it can break each rule.
"""

from __future__ import annotations

import base64
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Final

import trustme

USER: Final = "wai"
PASSWORD: Final = "hush"
_AT_ONCE_BYTES: Final = 1 << 16


@dataclass(slots=True)
class SmtpServer:
    """A running one. `fault`: how it misbehaves, see `_Session`; "" for not at all."""

    port: int
    ca_file: Path
    tls: str = "starttls"
    fault: str = ""
    mails: list[EmailMessage] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    """What came, outside of mails; "TLS" where TLS began."""
    closed: threading.Event = field(default_factory=threading.Event)
    """Set when a connection has ended."""


@contextmanager
def smtp_server(folder: Path, *, tls: str = "starttls", fault: str = "") -> Iterator[SmtpServer]:
    """Serve until the end of the block; `folder` gets the authority's certificate."""
    authority = trustme.CA()
    ca_file = folder / "mail-ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server = _Server(("127.0.0.1", 0), _Session)
    state = SmtpServer(server.server_address[1], ca_file, tls, fault)
    server.state, server.context = state, context
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    state: SmtpServer
    context: ssl.SSLContext

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients may go away at any time."""


class _Session(socketserver.BaseRequestHandler):
    """One connection."""

    server: _Server
    request: socket.socket

    def handle(self) -> None:
        self.state = self.server.state
        self._secure = False
        self._signed_in = False
        try:
            if self.state.tls == "tls":
                self._wrap()
            self._file = self.request.makefile("rb")
            self._serve()
        finally:
            with suppress(OSError):
                self.request.close()
            self.state.closed.set()

    def _serve(self) -> None:
        match self.state.fault:
            case "silent":
                self._wait_for_the_end()
            case "web":
                self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            case "drips":
                while True:  # never a whole line
                    self.request.sendall(b"2")
                    threading.Event().wait(0.05)
            case "endless line":
                while True:
                    self.request.sendall(b"2" * _AT_ONCE_BYTES)
            case "endless reply":
                while True:
                    self.request.sendall(b"220-more\r\n" * 1000)
            case "busy":
                self._say("421 4.3.2 too busy, come back later")
            case _:
                self._say("220 mail.test ESMTP")
                while line := self._file.readline(4096):
                    if not self._answer(line.decode().strip()):
                        return

    def _answer(self, line: str) -> bool:
        verb = line.split(" ")[0].upper()
        fault = self.state.fault
        self.state.lines.append(line if verb != "AUTH" else "AUTH")
        if verb == "EHLO":
            offers = ["mail.test"]
            if self.state.tls == "starttls" and not self._secure and fault != "no starttls":
                offers.append("STARTTLS")
            if self._secure:
                offers.append("AUTH PLAIN")
            for offer in offers[:-1]:
                self._say(f"250-{offer}")
            self._say(f"250 {offers[-1]}")
        elif verb == "STARTTLS":
            return self._start_tls(fault)
        elif verb == "AUTH":
            _, user, password = base64.b64decode(line.split(" ")[2]).decode().split("\0")
            self._signed_in = (user, password) == (USER, PASSWORD)
            good = self._signed_in
            self._say("235 2.7.0 welcome" if good else "535 5.7.8 bad user or password")
        elif verb == "MAIL" and self.state.tls != "off" and not self._signed_in:
            self._say("530 5.7.0 sign in first")
        elif verb == "RCPT" and fault == "no such user":
            self._say("550 5.1.1 nobody is called that")
        elif verb in ("MAIL", "RCPT", "RSET", "NOOP"):
            if verb == "RCPT":
                self.state.recipients.append(line.partition(":")[2].strip())
            self._say("250 2.1.0 ok")
        elif verb == "DATA":
            return self._take_mail(fault)
        elif verb == "QUIT":
            self._say("221 2.0.0 bye")
            return False
        else:
            self._say("500 5.5.1 what?")
        return True

    def _start_tls(self, fault: str) -> bool:
        if fault == "hangs in starttls":
            self._say("220 2.0.0 go ahead")
            self._wait_for_the_end()
            return False
        if fault == "injects":  # plain text that a careless client takes for TLS's
            self.request.sendall(b"220 go ahead\r\n250-mail.test\r\n250 AUTH PLAIN\r\n")
        else:
            self._say("220 2.0.0 go ahead")
        self._file.close()
        self._wrap()
        self._file = self.request.makefile("rb")
        return True

    def _take_mail(self, fault: str) -> bool:
        self._say("354 go on")
        lines = []
        while (line := self._file.readline(1 << 16)) not in (b".\r\n", b""):
            lines.append(line.removeprefix(b"."))
        if fault == "hangs after data":
            self._wait_for_the_end()
            return False
        if fault == "spam":
            self._say("554 5.7.1 looks like spam")
            return True
        parsed = message_from_bytes(b"".join(lines), policy=policy.default)
        assert isinstance(parsed, EmailMessage)
        self.state.mails.append(parsed)
        self._say("250 2.0.0 queued")
        return True

    def _wrap(self) -> None:
        self.request = self.server.context.wrap_socket(self.request, server_side=True)
        self._secure = True
        self.state.lines.append("TLS")

    def _wait_for_the_end(self) -> None:
        while self.request.recv(4096):
            pass

    def _say(self, line: str) -> None:
        self.request.sendall(line.encode() + b"\r\n")
