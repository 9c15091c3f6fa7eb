"""E-mail by SMTP (RFC 5321, 3207), with the standard library's client in a thread of its own.

That client waits without an end for a server that sends a byte now and then, and keeps whatever it
sends. So lines and their number are bounded here, and after `DELIVER_S` the socket is shut down
under it.
"""

from __future__ import annotations

import asyncio
import smtplib
import socket
import ssl
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from email.utils import format_datetime, localtime
from typing import Any, Final

from wai_protocol.errors import Fault, TransportError
from wai_transport.plain_text import one_line, shortened

from .config import EmailConfig
from .message import Message
from .post import trusting
from .receiver import DELIVER_S

MAX_LINES: Final = 100  # of one reply: EHLO's have a dozen
MAX_LINE_BYTES: Final = 2048  # RFC 5321 allows 512
_WORDS_CHARS: Final = 200


class Email:
    """See `Receiver`."""

    def __init__(self, config: EmailConfig) -> None:
        """Raises `WaiError` for a password or a file that can't be read."""
        self._config = config
        self._password = config.read_password()
        self._tls = None if config.tls == "off" else trusting(config.ca_file)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="notify-email")
        host, port = config.address
        self._server = f"{host}:{port}"
        self.name = f"email {self._server}"

    async def deliver(self, message: Message) -> None:
        """See `Receiver`."""
        mail, connection = self._mail(message), _Smtp(self._tls, self._config.tls == "tls")
        loop = asyncio.get_running_loop()
        sending = loop.run_in_executor(self._thread, self._send, connection, mail)
        sending.add_done_callback(_read_exception)
        try:
            async with asyncio.timeout(DELIVER_S):
                await asyncio.shield(sending)
        except TimeoutError:
            raise TransportError(
                f"{self._server} did not take the mail within {DELIVER_S:g} s",
                Fault.UPSTREAM_TIMEOUT,
            ) from None
        finally:
            connection.cut()  # ends the thread's work, if it has not ended

    async def aclose(self) -> None:
        """See `Receiver`."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _mail(self, message: Message) -> EmailMessage:
        mail = EmailMessage()
        mail["From"] = self._config.sender
        mail["To"] = ", ".join(self._config.to)
        mail["Subject"] = f"[wai] {message.title}"
        mail["Date"] = format_datetime(localtime())
        mail["Message-ID"] = f"<{uuid.uuid4().hex}@{self._config.sender.rpartition('@')[2]}>"
        mail["Auto-Submitted"] = "auto-generated"  # no holiday replies (RFC 3834)
        mail.set_content(message.text)
        return mail

    # -- in the thread
    def _send(self, connection: _Smtp, mail: EmailMessage) -> None:
        try:
            connection.connect(*self._config.address)
            connection.ehlo_or_helo_if_needed()
            if self._config.tls == "starttls":
                connection.starttls(context=self._tls)
                connection.ehlo_or_helo_if_needed()
            if self._config.user is not None:
                connection.login(self._config.user, self._password)
            refused = connection.send_message(mail)
            if refused:
                raise smtplib.SMTPRecipientsRefused(refused)
            connection.quit()
        except smtplib.SMTPRecipientsRefused as error:
            address, (_, words) = next(iter(error.recipients.items()))
            raise TransportError(
                f"{self._server} does not take mail for {address}: {_shown(words)}"
            ) from error
        except smtplib.SMTPResponseException as error:
            text = f"{self._server} answers {error.smtp_code} {_shown(error.smtp_error)}"
            raise TransportError(text) from error
        except TimeoutError:
            raise  # `deliver` says how long it waited
        except (smtplib.SMTPException, OSError, ValueError) as error:
            raise TransportError(f"{self._server}: {_shown(str(error))}") from error
        finally:
            connection.close()


class _Smtp(smtplib.SMTP):
    """The library's client, with bounds. `cut` may be called from another thread."""

    def __init__(self, tls: ssl.SSLContext | None, from_the_start: bool) -> None:  # noqa: FBT001
        super().__init__(timeout=DELIVER_S)
        self._wrap = tls if from_the_start else None
        self._lock = threading.Lock()
        self._cut = False

    def cut(self) -> None:
        """End whatever it waits for."""
        with self._lock:
            self._cut = True
            if self.sock is not None:
                _shut(self.sock)

    def connect(self, host: str = "localhost", port: int = 0, *_: Any) -> tuple[int, bytes]:
        """Connect and read the greeting. Raises `SMTPException` or `OSError`."""
        self._host = host
        sock = socket.create_connection((host, port), DELIVER_S)
        if self._wrap is not None:
            sock = self._wrap.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        with self._lock:
            self.sock = sock
            if self._cut:
                raise TimeoutError("too late")
        if isinstance(sock, ssl.SSLSocket):
            sock.do_handshake()
        self.file = None
        code, words = self.getreply()
        if code != 220:
            raise smtplib.SMTPConnectError(code, words)
        return code, words

    def getreply(self) -> tuple[int, bytes]:
        """Read one reply of at most `MAX_LINES` lines. Raises `SMTPException` or `OSError`."""
        if self.file is None:
            if self.sock is None:
                raise smtplib.SMTPServerDisconnected("it closed the connection")
            self.file = self.sock.makefile("rb")
        words: list[bytes] = []
        while len(words) < MAX_LINES:
            line = self.file.readline(MAX_LINE_BYTES + 1)
            if not line:
                raise smtplib.SMTPServerDisconnected("it closed the connection")
            if len(line) > MAX_LINE_BYTES or not line[:3].isdigit():
                raise smtplib.SMTPException("what it sends is not SMTP")
            words.append(line[4:].strip())
            if line[3:4] != b"-":
                return int(line[:3]), b"\n".join(words)
        raise smtplib.SMTPException(f"a reply has more than {MAX_LINES} lines")


def _shut(sock: socket.socket) -> None:
    try:
        # The plain socket's method: that of an SSL socket changes what the other thread uses.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        return  # it is closed already


def _shown(words: bytes | str) -> str:
    text = words.decode(errors="replace") if isinstance(words, bytes) else words
    return shortened(one_line(" ".join(text.split())), _WORDS_CHARS)


def _read_exception(sending: asyncio.Future[None]) -> None:
    """Whoever waited may have gone by then."""
    if not sending.cancelled():
        sending.exception()
