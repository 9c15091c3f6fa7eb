"""`wai relay list|drain|undrain`: the relays that share a database."""

from __future__ import annotations

import argparse
from urllib.parse import quote

from wai_api.relays import RelayList, RelayView
from wai_cli.client.admin_client import AdminClient
from wai_cli.client.answers import read_as
from wai_cli.client.target import find_target
from wai_cli.output.progress import seconds_text
from wai_cli.output.tables import print_json, print_table, say, time_text


def list_relays(parsed: argparse.Namespace) -> int:
    """Print the relays of the fleet."""
    with AdminClient(find_target(parsed)) as relay:
        answer = relay.get("/relays")
    if parsed.json:
        print_json(answer["data"])
        return 0
    print_table(
        ("NAME", "ID", "STATE", "URL FOR NODES", "VERSION", "SINCE"),
        [
            (
                f"{one.name} (this one)" if one.this else one.name,
                *(one.id, _state(one), one.url, one.version, time_text(one.started_at)),
            )
            for one in read_as(RelayList, answer).data
        ],
        empty="no relays",
    )
    return 0


def drain(parsed: argparse.Namespace) -> int:
    """Send a relay no more callers."""
    return _change(parsed, "drain", "load balancers that ask /readyz send it no callers now")


def undrain(parsed: argparse.Namespace) -> int:
    """Send a relay callers again."""
    return _change(parsed, "undrain", "it takes callers again")


def _change(parsed: argparse.Namespace, action: str, said: str) -> int:
    with AdminClient(find_target(parsed)) as relay:
        answer = relay.post(f"/relays/{quote(parsed.name, safe='')}/{action}")
    if parsed.json:
        print_json(answer)
    else:
        say(f"{read_as(RelayView, answer).name}: {said}")
    return 0


def _state(one: RelayView) -> str:
    if one.state not in ("silent", "lost"):
        return one.state
    return f"{one.state}, silent for {seconds_text(one.silent_s)}"
