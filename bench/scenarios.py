"""The scenarios: load, number of rounds, paths, and figures of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

DIRECT: Final = "direct"
OURS: Final = "wai"
FLOOR: Final = "floor"
HAPROXY: Final = "haproxy two hops"
NGINX: Final = "nginx two hops"
LITELLM: Final = "LiteLLM (no tunnel, no TLS)"
_LIMITS: Final = (DIRECT, OURS, FLOOR, HAPROXY, NGINX)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario.

    `load`: arguments of `bench.load`. `paths`: names of the paths it is for; None for all. `shown`:
    the figures of its table, the first is the one that ratios are made of. `repeats`: False where
    the figure is a size that does not move between runs. `peers_load`: what the other paths are
    told after `load`, where they can't hold as much; `direct_load`: the same for the direct one.
    """

    name: str
    title: str
    load: tuple[str, ...]
    shown: tuple[str, ...]
    paths: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    repeats: bool = True
    peers_load: tuple[str, ...] = ()
    direct_load: tuple[str, ...] = ()
    bound_s: float = 60.0
    """A measurement that takes longer is taken to hang: it is noted and given up."""

    def is_for(self, path: str) -> bool:
        """Whether `path` takes part."""
        return (self.paths is None or path in self.paths) and path not in self.without

    def load_for(self, path: str) -> tuple[str, ...]:
        """The load generator's arguments for `path`."""
        more = {OURS: (), DIRECT: self.direct_load}.get(path, self.peers_load)
        own = (*self.load, *more)
        # 200 streams × 20 events take three cores of LiteLLM: it gets a tenth of them
        return (*own, "--streams", "20") if path == LITELLM and "200" in own else own


_PER_EVENT: Final = ("cpu_us_per_event", "events_per_s", "event_p50_ms", "event_p99_ms")
_PER_REQUEST: Final = ("cpu_ms_per_request", "requests_per_s", "request_p50_ms", "request_p99_ms")
# A second or more on every path; with 1 GiB three rounds would not fit into a quarter of an hour.
_BULK: Final = str(512 << 20)
_PER_GIB: Final = ("cpu_s_per_gib", "mb_per_s")

FULL: Final = (
    Scenario(
        "sse-200",
        "Interactive SSE: 200 streams × 20 events/s",
        ("streams", "--streams", "200", "--rate", "20", "--seconds", "2", "--probes", "20"),
        (*_PER_EVENT, "first_p50_ms", "first_p99_ms"),
    ),
    Scenario(
        "sse-200-h2",
        "Interactive SSE over HTTP/2: 200 streams × 20 events/s on 2 connections",
        ("streams", "--http", "h2", "--streams", "200", "--rate", "20", "--seconds", "2"),
        _PER_EVENT,
        paths=(OURS, HAPROXY, NGINX),
    ),
    Scenario(
        "sse-1000",
        "Interactive SSE: 1,000 streams × 20 events/s (more than two cores can carry at leisure)",
        ("streams", "--streams", "1000", "--rate", "20", "--seconds", "2"),
        _PER_EVENT,
        paths=_LIMITS,
    ),
    Scenario(
        "sse-flat",
        "Saturated SSE: 64 streams without a pause",
        ("streams", "--streams", "64", "--rate", "0", "--seconds", "2"),
        ("cpu_us_per_event", "events_per_s"),
        without=(LITELLM,),
    ),
    Scenario(
        "post-h1",
        "Small POST, kept alive, HTTP/1.1, 8 at a time",
        ("requests", "--streams", "8", "--seconds", "1.5"),
        _PER_REQUEST,
    ),
    Scenario(
        "post-h2",
        "Small POST, kept alive, HTTP/2, 8 at a time on one connection",
        ("requests", "--http", "h2", "--streams", "8", "--seconds", "1.5"),
        _PER_REQUEST,
        paths=(OURS, HAPROXY, NGINX),
    ),
    Scenario(
        "post-new",
        "Small POST, a new TLS connection each, 8 at a time",
        ("requests", "--fresh", "--streams", "8", "--seconds", "1.5"),
        _PER_REQUEST,
        paths=_LIMITS,
    ),
    Scenario(
        "down",
        "Bulk download, 512 MiB",
        ("download", "--size", _BULK),
        _PER_GIB,
        without=(LITELLM,),
    ),
    Scenario(
        "up",
        "Bulk upload, 512 MiB in bodies of 60 MiB",
        ("upload", "--size", _BULK),
        _PER_GIB,
        without=(LITELLM,),
    ),
    Scenario(
        "beside",
        "SSE (20 streams × 20 events/s) beside a bulk download",
        ("beside", "--streams", "20", "--rate", "20", "--seconds", "3"),
        ("event_p50_ms", "event_p99_ms", "mb_per_s"),
        without=(LITELLM,),
        direct_load=("--size", "0"),  # what is added is added to a quiet machine's latency
    ),
    Scenario(
        "idle",
        "Idle open streams (4,000 through wai, 1,000 through the others)",
        ("idle", "--streams", "4000"),
        ("kib_per_stream", "mib_before", "mib_held", "mib_after", "cpu_cores", "opening_s"),
        without=(DIRECT, LITELLM),
        repeats=False,
        peers_load=("--streams", "1000"),
        bound_s=120.0,
    ),
)

_QUICK_LOAD: Final = {
    "down": ("download", "--size", str(192 << 20)),
    "up": ("upload", "--size", str(192 << 20)),
    "idle": ("idle", "--streams", "1000"),
}
QUICK: Final = tuple(
    replace(one, load=_QUICK_LOAD.get(one.name, one.load)) for one in FULL if one.name != "sse-1000"
)
