"""API keys that are refused often: somebody's program does not work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from wai_api.health import ProblemView
from wai_protocol.errors import Fault
from wai_relay.observe.outcomes import WINDOW_S, Refused

from .problem import problem


class KnownKey(NamedTuple):
    """What is said of a key. `state`: "good", "expired" or "revoked"."""

    name: str
    state: str


_OTHER_KEY: Final = (
    "give the program that uses it another one (`wai key create NAME`), or stop that program"
)
_WORDS: Final[dict[str, tuple[str, str]]] = {
    Fault.RATE_LIMITED.row.openai_code: (
        "its limits of a minute are too low for what it is used for",
        "raise its limits (`wai key update {name} --rpm N --tpm N --concurrency N`), or let the"
        " program that uses it wait",
    ),
    Fault.QUOTA_EXCEEDED.row.openai_code: (
        "its tokens of this month are used up",
        "raise its limit (`wai key update {name} --monthly-tokens N`), or wait for the next month",
    ),
    Fault.KEY_INVALID.row.openai_code: (
        "a former secret of it is still used, which was good until its grace was over",
        "give the program that uses it the secret that `wai key rotate {name}` printed, or rotate"
        " the key again",
    ),
    Fault.FORBIDDEN.row.openai_code: (
        "it asks for a model or a node that its limits do not allow",
        "allow it (`wai key update {name} --model M`), or change what the program asks for",
    ),
}


def key_problems(
    refused: Iterable[tuple[Refused, int]], known: Callable[[str], KnownKey | None]
) -> Iterator[ProblemView]:
    """`refused`: keys, and how often each was refused lately. `known`: finds a key by its id."""
    for one, count in refused:
        key = known(one.key)
        where = f", the last time from {one.address}" if one.address else ""
        times = f"{count} requests of the last {WINDOW_S / 60:.0f} minutes were refused{where}"
        if key is None:
            yield problem(
                *("key", f"{one.key}…", "unknown"),
                f"no key of this relay begins so; {times}",
                _OTHER_KEY,
            )
        elif key.state != "good":
            yield problem(
                *("key", key.name, f"{one.key} {key.state}"),
                f"it is {key.state}, and still used; {times}",
                _OTHER_KEY,
            )
        elif one.fault in _WORDS:
            why, advice = _WORDS[one.fault]
            yield problem(
                *("key", key.name, f"{one.key} {one.fault}"),
                f"{why}; {times}",
                advice.format(name=key.name),
            )
