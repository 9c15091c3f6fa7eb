"""What the relay knows of its own condition: its certificate, its database and its disk."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from wai_api.health import ProblemView
from wai_relay.contracts.records import LimitsState, UsageState
from wai_relay.storage import Away

from .folder_probe import FolderProbe
from .problem import RELAY, problem

CERTIFICATE_LATE_S: Final = 3 * 86400.0
"""A certificate that ends sooner was not renewed: renewal begins weeks before."""

LOW_DISK_BYTES: Final = 256 << 20
"""What usage may need while the database takes none, and some room for the database itself."""

LOW_INODES: Final = 64  # files that the relay makes: a few, and new ones before old ones go


class RelayCondition(msgspec.Struct, frozen=True):
    """Reads what changes while the relay runs.

    `certificate_ends`: when the shown certificate is over, in seconds since 1970; 0 while the one
    that an authority is to give is not there; None without TLS. `folder`: looks into the data
    folder. `away`: the outage of a database that relays share, if it has one now. `limits`: how the
    limits are kept that relays share, None where they share none.
    """

    certificate_ends: Callable[[], float | None]
    usage: Callable[[], UsageState]
    folder: FolderProbe
    away: Callable[[], Away | None] = lambda: None
    limits: Callable[[], LimitsState | None] = lambda: None

    def problems(self, now: float) -> Iterator[ProblemView]:
        """`now`: seconds since 1970."""
        yield from _of_certificate(self.certificate_ends(), now)
        yield from self._of_database()
        yield from self._of_limits()
        yield from self._of_disk()

    def _of_database(self) -> Iterator[ProblemView]:
        usage, state, away = self.usage(), self.folder.state, self.away()
        if away is not None:
            yield problem(
                *("database", RELAY, "away"),
                f"the database is away since {_time_of_day(away.since)}: {away.why}",
                "start it, or see to the network; the relay finds it again by itself. Meanwhile"
                " known keys and nodes are served and usage is kept on the relay's disk"
                f" ({usage.unwritten} requests); new keys, nodes and sign-ins, and reports, wait",
            )
        elif usage.behind:
            yield problem(
                *("database", RELAY, "behind"),
                f"the database takes no usage; {usage.unwritten} requests wait to be written",
                "free some space, or end the program that locks relay.db; nothing is lost meanwhile"
                if self.folder.database is not None
                else "see PostgreSQL's log: is its disk full, or is a table locked? Nothing is lost"
                " meanwhile",
            )
        elif state.database:
            yield problem(
                *("database", RELAY, "unwritable"),
                f"the database can't be written: {state.database}",
                f"end the program that locks {self.folder.database} (`fuser` names it), or see that"
                " the relay's user may write that file",
            )
        if usage.lost:
            yield problem(
                *("database", RELAY, "lost"),
                f"the usage of {usage.lost} requests is lost since the start",
                "usage and monthly limits are too low by that; see the relay's log (wai.usage)",
            )

    def _of_limits(self) -> Iterator[ProblemView]:
        limits = self.limits()
        if limits is not None and limits.away_since is not None:
            yield problem(
                *("database", RELAY, "limits"),
                "the database has not answered for the limits that all relays keep together since"
                f" {_time_of_day(limits.away_since)}; {limits.unanswered} requests were refused for"
                " want of an answer since the start",
                "start it, or see to the network. Meanwhile keys without limits are served, and"
                " those with generous limits within what this relay holds of them",
            )

    def _of_disk(self) -> Iterator[ProblemView]:
        state, folder = self.folder.state, self.folder.path
        if state.trouble:
            yield problem(
                *("disk", RELAY, "unwritable"),
                f"the data folder can't be used: {state.trouble}",
                f"see that {folder} is there, and that the relay's user may write in it; a disk"
                " that was mounted read-only has a fault: `dmesg` says which",
            )
        elif state.free_bytes is not None and state.free_bytes < LOW_DISK_BYTES:
            left = state.free_bytes >> 20
            has = f"has {left} MiB left" if left else "is full"
            yield problem(
                *("disk", RELAY, "full"),
                f"the disk of the data folder {has}",
                f"free some space on the disk of {folder}",
            )
        elif state.free_inodes is not None and state.free_inodes < LOW_INODES:
            yield problem(
                *("disk", RELAY, "inodes"),
                f"the disk of the data folder has room for {state.free_inodes} more files only",
                f"remove files on the disk of {folder}: `df -i` shows the count",
            )


def _time_of_day(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _of_certificate(ends: float | None, now: float) -> Iterator[ProblemView]:
    if ends == 0:
        yield problem(
            *("certificate", RELAY, "missing"),
            "the authority has not given a certificate yet",
            "the relay's log (wai.acme) says why; port 443 of the name must lead here, or port 80",
        )
    elif ends is not None and ends - now < CERTIFICATE_LATE_S:
        day = datetime.datetime.fromtimestamp(ends, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        text = f"the certificate ends on {day}, and was not renewed"
        if ends <= now:
            text = f"the certificate ended on {day}, and was not renewed: callers refuse it"
        yield problem(
            *("certificate", RELAY, "ends"),
            text,
            "put a new one into the files that --tls names, or see why the relay's log (wai.tls,"
            " wai.acme) says that it could not renew it",
        )
