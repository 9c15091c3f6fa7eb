"""Where the daemons' log goes: stderr, one line an event; a service manager keeps it.

Whatever a message holds of somebody else's, it stays one line, and steers no terminal.
"""

from __future__ import annotations

import datetime
import json
import logging
import time
from typing import Any, Final, Literal

from wai_transport.plain_text import lines, one_line

LogFormat = Literal["text", "json"]
TRACE_INDENT: Final = "    "


def log_to_stderr(level: str, log_format: LogFormat = "text") -> None:
    """Show everything from `level` on ("debug", "info", "warning", "error"); also once more, in
    another way."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter()
        if log_format == "json"
        else TextFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    # No format here shows them, and finding them out takes 7 µs a line (logging, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Each selector, refused header table and question to the hub are of no use to an operator.
    for talkative in ("asyncio", "hpack", "httpx2"):
        logging.getLogger(talkative).setLevel(logging.WARNING)


class TextFormatter(logging.Formatter):
    """Writes a second's date once: the access log has a line for each request."""

    _second = 0
    _text = ""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The message as one line; a traceback follows it, indented."""
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """The lines of a traceback, none of which looks like a message."""
        return lines(super().formatException(ei), TRACE_INDENT)

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 - logging's name
        """As a traceback."""
        return lines(super().formatStack(stack_info), TRACE_INDENT)

    def formatTime(  # noqa: N802 - logging's name
        self, record: logging.LogRecord, datefmt: str | None = None
    ) -> str:
        """As logging's own, with milliseconds."""
        second = int(record.created)
        if second != self._second:
            self._text = time.strftime(self.default_time_format, self.converter(record.created))
            self._second = second
        return f"{self._text},{record.msecs:03.0f}"


class JsonFormatter(logging.Formatter):
    """An object a line: time (RFC 3339), level, logger, message; or, for a record that has fields
    (the access log), those in the message's place."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; an exception's trace is in it as text."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, object] = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, "fields", None)
        line.update(fields if isinstance(fields, dict) else {"message": record.getMessage()})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
