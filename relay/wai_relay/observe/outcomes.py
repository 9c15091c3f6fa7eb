"""Which upstreams only fail, and which API keys are refused often: a `Recorder` that remembers.

Only what fails is kept, in bounded numbers. A request that is served costs two comparisons, and
takes away what was held against its upstream and its key.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import msgspec

from wai_protocol.errors import Fault
from wai_relay.contracts.api_keys import TRIAL_KEY_ID
from wai_relay.contracts.records import Recorder, RequestRecord

FAILURES: Final = 3
"""So many failures in a row, without an answer in between, are no chance."""

REFUSALS: Final = 10
RATE_REFUSALS: Final = 60
"""A program that waits and tries again is refused now and then by its limits of a minute."""

WINDOW_S: Final = 600.0
"""Nothing older counts: who does not try any more has no problem now."""

MAX_KEPT: Final = 256  # upstreams with their models, and as many keys

_UPSTREAMS_FAULT: Final = frozenset(
    fault.row.openai_code
    for fault in (
        *(Fault.INTERNAL, Fault.UPSTREAM_UNREACHABLE, Fault.UPSTREAM_TIMEOUT),
        *(Fault.UPSTREAM_BROKE, Fault.FLOW_CONTROL, Fault.PROTOCOL),
    )
)
_RATE: Final = Fault.RATE_LIMITED.row.openai_code
_REFUSED: Final = frozenset(
    fault.row.openai_code
    for fault in (Fault.RATE_LIMITED, Fault.QUOTA_EXCEEDED, Fault.FORBIDDEN, Fault.KEY_INVALID)
)


class Failing(msgspec.Struct):
    """An upstream and a model whose requests fail: how many in a row, how the last one did."""

    node: str
    model: str
    count: int = 0
    fault: str = ""
    last_at: float = 0.0


class Refused(msgspec.Struct):
    """A key that is refused: its id, or its first characters where it is no key of this relay.
    `address`: whence it came last."""

    key: str
    fault: str = ""
    address: str = ""
    times: deque[float] = msgspec.field(default_factory=lambda: deque(maxlen=RATE_REFUSALS))


Name = TypeVar("Name")
Kept = TypeVar("Kept")


class Outcomes:
    """See the module. `onward` gets every record but those of the doctor's trial key."""

    def __init__(self, onward: Recorder, clock: Callable[[], float] = time.monotonic) -> None:
        self._onward = onward
        self._clock = clock
        self._failing: OrderedDict[tuple[str, str], Failing] = OrderedDict()
        self._refused: OrderedDict[str, Refused] = OrderedDict()

    def finish(self, record: RequestRecord) -> None:
        """See `Recorder`."""
        if record.failed or record.attempts > 1:
            self._look(record)
        elif (self._failing or self._refused) and not record.cancelled:
            self._served(record)
        if record.key_id != TRIAL_KEY_ID:
            self._onward.finish(record)

    def failing(self) -> list[Failing]:
        """Upstreams that answered no request for a model lately, and failed `FAILURES` or more."""
        since = self._clock() - WINDOW_S
        return [
            one for one in self._failing.values() if one.count >= FAILURES and one.last_at > since
        ]

    def refused(self) -> list[tuple[Refused, int]]:
        """Keys that were refused often lately, and how often."""
        return list(self._often(self._clock() - WINDOW_S))

    def _often(self, since: float) -> Iterator[tuple[Refused, int]]:
        for one in self._refused.values():
            count = sum(at > since for at in one.times)
            if count >= (RATE_REFUSALS if one.fault == _RATE else REFUSALS):
                yield one, count

    def _look(self, record: RequestRecord) -> None:
        for attempt in record.tried:
            if attempt.fault in _UPSTREAMS_FAULT:
                place = (attempt.node, attempt.model)
                failing = _kept(self._failing, place, Failing(*place))
                failing.count += 1
                failing.fault, failing.last_at = attempt.fault, self._clock()
            elif not attempt.fault and not record.cancelled:
                self._failing.pop((attempt.node, attempt.model), None)
        key = record.key_id or record.refused_key
        if key and key != TRIAL_KEY_ID and record.fault in _REFUSED:
            refused = _kept(self._refused, key, Refused(key))
            refused.fault, refused.address = record.fault, record.address
            refused.times.append(self._clock())

    def _served(self, record: RequestRecord) -> None:
        self._failing.pop((record.node, record.served_model), None)
        refused = self._refused.get(record.key_id)
        if refused is not None and refused.fault != _RATE:
            del self._refused[record.key_id]


def _kept(kept: OrderedDict[Name, Kept], name: Name, new: Kept) -> Kept:
    """The entry of `name`, as the youngest one; `new` if there is none, in the oldest one's place
    where there are many."""
    found = kept.setdefault(name, new)
    kept.move_to_end(name)
    if len(kept) > MAX_KEPT:
        kept.popitem(last=False)
    return found
