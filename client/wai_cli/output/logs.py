"""Set up the daemons' logging to stderr, one line for each record; a service manager keeps it.

Messages may contain foreign text, so they are escaped: each stays one line without control
characters.
"""

from __future__ import annotations

import datetime
import json
import logging
import time
from typing import Any, Final, Literal

from wai_transport.access_lines import Entry
from wai_transport.plain_text import lines, one_line

LogFormat = Literal["text", "json"]
TRACE_INDENT: Final = "    "


def log_to_stderr(level: str, log_format: LogFormat = "text") -> None:
    """Log records of at least `level` ("debug", "info", "warning", "error") to stderr.

    May be called again to change level or format.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter()
        if log_format == "json"
        else TextFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    # No format here shows these, and collecting them takes 7 µs a line (logging, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # These log selectors, header tables and queries to the hub, which are of no use to operators.
    for talkative in ("asyncio", "hpack", "httpx2"):
        logging.getLogger(talkative).setLevel(logging.WARNING)


class TextFormatter(logging.Formatter):
    """Formats lines of text. The date is formatted once a second, since each request is a line."""

    _second = 0
    _text = ""

    def format(self, record: logging.LogRecord) -> str:
        """Return a line, or one for each of the record's `entries` (the access log)."""
        entries: list[tuple[float, Entry]] | None = getattr(record, "entries", None)
        if entries is None:
            return super().format(record)
        name = f"{record.levelname:<7} {record.name}: "
        return "\n".join(
            f"{self._time_text(at)} {name}{one_line(entry.text())}" for at, entry in entries
        )

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the message as one line; a traceback follows it, indented."""
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Return an indented traceback, so that none of its lines looks like a message."""
        return lines(super().formatException(ei), TRACE_INDENT)

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 - logging's name
        """Return an indented stack, as `formatException` does."""
        return lines(super().formatStack(stack_info), TRACE_INDENT)

    def formatTime(  # noqa: N802 - logging's name
        self, record: logging.LogRecord, datefmt: str | None = None
    ) -> str:
        """Return the time in logging's own format, with milliseconds."""
        return self._time_text(record.created)

    def _time_text(self, at: float) -> str:
        second = int(at)
        if second != self._second:
            self._text = time.strftime(self.default_time_format, self.converter(at))
            self._second = second
        return f"{self._text},{int((at - second) * 1000):03d}"


class JsonFormatter(logging.Formatter):
    """Formats each record as a JSON object: time (RFC 3339), level, logger, and message.

    A record with `fields` has those instead of the message; one with `entries` (the access log) is
    a line for each of them, with its fields.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; an exception's traceback is a string in it."""
        entries: list[tuple[float, Entry]] | None = getattr(record, "entries", None)
        if entries is not None:
            return "\n".join(
                json.dumps({**_head(record, at), **entry.fields()}) for at, entry in entries
            )
        line = _head(record, record.created)
        fields = getattr(record, "fields", None)
        line.update(fields if isinstance(fields, dict) else {"message": record.getMessage()})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _head(record: logging.LogRecord, created: float) -> dict[str, Any]:
    """Return what each line of JSON begins with. `created`: seconds since 1970."""
    at = datetime.datetime.fromtimestamp(created, datetime.UTC)
    return {
        "time": at.isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
    }
