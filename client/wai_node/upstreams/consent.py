"""Whether a server that was found by itself may have prompts: by its owner and by past answers.

Anybody on a shared machine can listen at a usual port. Servers of our own user, of root and of
service users are taken; another person's waits for this node's owner to say yes. The answer is for
a port and a user together, so that nobody else inherits it. A server that was named by its URL
(`--upstream`) needs none.
"""

from __future__ import annotations

import enum
import json
import logging
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from wai_protocol.errors import Fault, TransportError
from wai_protocol.foreign_json import ForeignJsonError, read_json
from wai_transport.folder import DataFolder

from .listeners import listening_uids

ANSWERS_FILE: Final = "upstreams.json"
FIRST_PERSON_UID: Final = 1000  # those below are the system's own (SYS_UID_MAX of login.defs)
DYNAMIC_UIDS: Final = range(61184, 65520)  # systemd's DynamicUser=; no login gets one
SERVICE_USERS: Final = frozenset({"ollama", "vllm", "llama-server", "localai", "wai-node"})
"""Users of known inference services, whichever uid they were given."""

_log = logging.getLogger("wai.node")


class Verdict(enum.Enum):
    """What may be sent to a server that was found. The strictest of several is the greatest."""

    ALLOWED = 0
    WAITING = 1
    DENIED = 2

    @property
    def text(self) -> str:
        """What it means, for people."""
        return _MEANINGS[self]


_MEANINGS: Final = {
    Verdict.ALLOWED: "used",
    Verdict.WAITING: "not used, it waits for your answer",
    Verdict.DENIED: "not used, you denied it",
}


class Judged(msgspec.Struct, frozen=True):
    """A port's verdict, and whose server it is, for people; `uid` is None where it is not known."""

    verdict: Verdict
    owner: str
    uid: int | None


class Consent:
    """The answers kept in a node's `data` folder, which need not exist.

    `uids` and `our_uid` are inputs for tests.
    """

    def __init__(
        self,
        data: Path,
        *,
        uids: Callable[[int, int | None], frozenset[int] | None] = listening_uids,
        our_uid: int | None = None,
    ) -> None:
        self._data = data
        self._uids = uids
        self._our_uid = os.geteuid() if our_uid is None else our_uid
        self._told: set[tuple[int, int | None]] = set()

    def owners(self, port: int) -> frozenset[int] | None:
        """The users who listen at `port` now; None where this system does not tell."""
        return self._uids(port, None)

    def judge(self, port: int, peer: int | None = None) -> Judged:
        """What may be sent to whoever listens at 127.0.0.1:`port` now, and to whoever has accepted
        our connection from port `peer`."""
        uids = self._uids(port, peer)
        if uids is None:
            return Judged(Verdict.ALLOWED, "an unknown user", None)  # this system does not tell
        answers = self._answers()
        judged = [self._judge(port, uid, answers) for uid in (uids or {None})]
        return max(judged, key=lambda one: one.verdict.value)

    def check(self, port: int, peer: int | None = None) -> None:
        """Raise `TransportError` where nothing may be sent to `port` now; `peer` as in `judge`."""
        judged = self.judge(port, peer)
        if judged.verdict is not Verdict.ALLOWED:
            raise TransportError(
                f"the server at port {port} belongs to {judged.owner}, and was not allowed;"
                f" see `wai node upstream list`",
                Fault.UPSTREAM_UNREACHABLE,
            )

    def tell(self, name: str, port: int, judged: Judged) -> None:
        """Say once in the log what waits for an answer."""
        if judged.verdict is Verdict.WAITING and (port, judged.uid) not in self._told:
            self._told.add((port, judged.uid))
            _log.warning(
                "%s was found, but belongs to %s: it gets no requests until you say"
                " `wai node upstream allow %d` (or deny)",
                *(name, judged.owner, port),
            )

    def answer(self, port: int, uid: int | None, *, allowed: bool) -> None:
        """Keep an answer for the server of user `uid` at `port`. Raises `StoreError`."""
        answers = {**self._answers(), (port, uid): allowed}
        rows = [{"port": p, "uid": u, "allowed": yes} for (p, u), yes in answers.items()]
        folder = DataFolder.open(self._data)
        folder.write(ANSWERS_FILE, json.dumps({"answers": rows}, indent=1).encode() + b"\n")

    def _judge(
        self, port: int, uid: int | None, answers: dict[tuple[int, int | None], bool]
    ) -> Judged:
        answer = answers.get((port, uid))
        if answer is not None:
            verdict = Verdict.ALLOWED if answer else Verdict.DENIED
        else:
            verdict = Verdict.ALLOWED if self._trusted(uid) else Verdict.WAITING
        return Judged(verdict, user_name(uid), uid)

    def _trusted(self, uid: int | None) -> bool:
        if uid is None:
            return False
        if uid == self._our_uid or uid < FIRST_PERSON_UID or uid in DYNAMIC_UIDS:
            return True
        return user_name(uid) in SERVICE_USERS

    def _answers(self) -> dict[tuple[int, int | None], bool]:
        """What is kept; nothing where the file is not there or makes no sense."""
        try:
            kept = (self._data / ANSWERS_FILE).read_bytes()
            rows = read_json(kept, dict[str, Any], ANSWERS_FILE)["answers"]
            return {(row["port"], row["uid"]): row["allowed"] is True for row in rows}
        except FileNotFoundError:
            return {}
        except (OSError, ForeignJsonError, KeyError, TypeError) as error:
            _log.warning("%s can't be read: %s", self._data / ANSWERS_FILE, error)
            return {}


def user_name(uid: int | None) -> str:
    """The name of a user, or its number."""
    if uid is None:
        return "an unknown user"
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
