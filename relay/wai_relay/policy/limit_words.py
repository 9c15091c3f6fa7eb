"""What a caller is told whose key has used up a limit, as the error that it gets.

One set of words, whether this relay alone judges (`admission`) or all relays' judge has
(`shared_admission`). Pure.
"""

from __future__ import annotations

from typing import Final

from wai_protocol.errors import Fault, RequestError

from .minutes import GRAIN_S

# Other requests of the key are in progress, and nobody knows when one ends.
CONCURRENCY_RETRY_S: Final = 1.0
_SMALLER: Final = "Lower `max_tokens` or shorten the prompt"
_BEGINS: Final = " the next month begins at 00:00 UTC on its first day."


def limited(message: str, retry_after_s: float) -> RequestError:
    """A limit that has room again after `retry_after_s`."""
    return RequestError(message, Fault.RATE_LIMITED, retry_after_s=max(retry_after_s, GRAIN_S))


def too_many_at_once(running: int) -> RequestError:
    """`running`: its requests in progress."""
    return limited(
        f"This API key has {running} requests in progress, which is its limit.",
        CONCURRENCY_RETRY_S,
    )


def too_many_requests(limit: int, wait_s: float) -> RequestError:
    """`limit`: requests a minute."""
    return limited(f"This API key may make {limit} requests a minute.", wait_s)


def too_many_tokens(limit: int, used: float, wait_s: float) -> RequestError:
    """`limit`: tokens a minute; `used`: in the last one."""
    return limited(
        f"This API key may use {limit} tokens a minute, and has used {used:.0f}.", wait_s
    )


def no_more_tokens(limit: int, wait_s: float) -> RequestError:
    """A conversation that must not go on."""
    return limited(f"This API key may use {limit} tokens a minute.", wait_s)


def takes_too_many(takes: str, limit: int, used: float, wait_s: float) -> RequestError:
    """A request that does not fit into this minute; `takes`: see `takes_tokens`."""
    return limited(
        f"{takes}, and this API key may use {limit} tokens a minute, of which it has"
        f" used {used:.0f}.",
        wait_s,
    )


def never_fits_a_minute(takes: str, limit: int) -> RequestError:
    """A request that takes more than any minute has."""
    return RequestError(
        f"{takes}, and this API key may use {limit} tokens a minute. {_SMALLER}.",
        Fault.RATE_LIMITED,
    )


def others_have_reserved(reserved: int | None, room: float) -> RequestError:
    """Requests in progress may take what is left. `reserved`: by them, None if nobody knows."""
    may_take = "what is left" if reserved is None else f"{reserved}"
    return limited(
        f"Requests of this API key that are in progress may take {may_take} of the"
        f" {room:.0f} tokens that it has left, and with this one it may be more than that."
        " Try again when one of them is over; with a lower `max_tokens` more fit at once.",
        CONCURRENCY_RETRY_S,
    )


def month_is_used_up(limit: int, month: str, left_s: float) -> RequestError:
    """`month`: such as "2026-11"; `left_s`: until the next one."""
    return RequestError(
        f"This API key has used its {limit} tokens of {month};{_BEGINS}",
        Fault.QUOTA_EXCEEDED,
        retry_after_s=left_s,
    )


def month_has_too_few(
    takes: str, limit: int, left: int, month: str, left_s: float, *, ever: bool
) -> RequestError:
    """A request that takes more than the `left` tokens of the month. `ever`: whether a whole month
    has enough."""
    return RequestError(
        f"{takes}, and this API key has {left} left of its {limit} tokens of"
        f" {month}. {_SMALLER}" + (f";{_BEGINS}" if ever else "."),
        Fault.QUOTA_EXCEEDED,
        retry_after_s=left_s if ever else None,
    )


def takes_tokens(prompt: int, answer: int | None, least: int) -> str:
    """What a request takes, as the beginning of a sentence."""
    if not answer:
        return f"This request takes about {least} tokens"
    return (
        f"This request may take about {least} tokens (a prompt of {prompt} and the"
        f" {answer} of answer that it allows)"
    )
