"""What requests cost, added up."""

from __future__ import annotations

from typing import Final, Literal, get_args

from msgspec import Struct

Grouping = Literal["key", "label", "model", "node", "day", "hour"]
GROUPINGS: Final[tuple[Grouping, ...]] = get_args(Grouping)


class UsageRow(Struct, frozen=True):
    """The sums of one group. `group` is an id or a name, "" for requests that never got to one or
    whose key has no label, or the UTC day or hour as ISO 8601 has it. What a key with several
    labels took is in the sums of each. `queue_ms` is the mean. None: nothing to tell from."""

    group: str
    requests: int
    errors: int
    cancelled: int
    fallbacks: int
    retried: int
    estimated: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    bytes_in: int
    bytes_out: int
    queue_ms: float
    ttft_p50_ms: float | None
    ttft_p99_ms: float | None
    tokens_per_s: float | None
    cost: float


class UsageList(Struct, frozen=True):
    """Sums of what began from `since` up to `until`. `names`: what the keys that are groups are
    called. With `limit`, `others` adds up the `other_groups` that are not in `data`."""

    by: Grouping
    since: float
    until: float
    data: list[UsageRow]
    names: dict[str, str]
    others: UsageRow | None = None
    other_groups: int = 0
