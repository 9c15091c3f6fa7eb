"""Several relays that share one PostgreSQL, each a process with a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from .caller import chat, request
from .cluster import Cluster, cluster
from .counting_upstream import MODEL


@contextmanager
def relays(folder: Path, database: str, count: int = 3, *options: str) -> Iterator[list[Cluster]]:
    """Run `count` relays; those after the first find its tables. `options` go to all of them."""
    with ExitStack() as ending:
        running: list[Cluster] = []
        for number in range(count):
            own = folder / f"relay{number}"
            own.mkdir()
            running.append(ending.enter_context(cluster(own, "--database", database, *options)))
        yield running


def ids_of(one: Cluster) -> list[str]:
    """The ids of the living relays that one of them lists."""
    return [relay["id"] for relay in listed(one) if relay["state"] != "lost"]


def listed(one: Cluster) -> list[dict[str, Any]]:
    """What `wai relay list --json` prints there."""
    rows: list[dict[str, Any]] = one.admin("get", "/relays")["data"]
    return rows


def own_id(one: Cluster) -> str:
    """The id of a relay."""
    return next(str(relay["id"]) for relay in listed(one) if relay["this"])


def status_of(one: Cluster, secret: str, model: str = MODEL, **fields: Any) -> int:
    """The status of one chat completion at a relay."""
    headers = {"Authorization": f"Bearer {secret}"}
    with request(one, "/v1/chat/completions", chat(model, **fields), headers) as answer:
        answer.read()
        return answer.status


def is_good(one: Cluster, secret: str, **fields: Any) -> bool:
    """Whether a chat completion with this key is answered."""
    return status_of(one, secret, **fields) == 200
