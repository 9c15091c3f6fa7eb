"""Render the state of the relay as the text lines of `wai top`. Pure; `top` has the terminal."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from wai_cli.client.live_state import LiveState, Row

from .machine import machine_cells
from .progress import seconds_text

MIN_REQUEST_LINES: Final = 4  # title, columns, one row and "more" are reserved for requests
_GAP: Final = 2
_NEVER_DROPPED: Final = 0

_STYLES: Final = {
    "ready": "32",
    "streaming": "32",
    "prefill": "36",
    "draining": "33",
    "reconnecting": "33",
    "queued": "33",
    "downloading": "36",
    "offline": "31",
    "failed": "31",
    "title": "1",
    "columns": "2",
    "note": "1;33",
}


@dataclass(frozen=True, slots=True)
class Screen:
    """The size of the screen. `rows` None: no limit."""

    columns: int
    rows: int | None = None
    colour: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A column; on a narrow screen those with the highest `drop` are left out first."""

    title: str
    drop: int = _NEVER_DROPPED
    number: bool = False


_NODES: Final = (
    Column("NODE"),
    Column("STATE"),
    Column("SLOTS", 1, number=True),
    Column("QUEUE", 4, number=True),
    Column("REQ", 5, number=True),
    Column("TOK/S", 2, number=True),
    Column("UP", 3, number=True),
    Column("RECONN", 7, number=True),
    Column("LOAD", 8),
    Column("MEMORY", 9, number=True),
    Column("HEAT", 10, number=True),
    Column("MODELS", 6),
)
_REQUESTS: Final = (
    Column("MODEL"),
    Column("STATE"),
    Column("NODE", 1),
    Column("KEY", 4),
    Column("AGE", 3, number=True),
    Column("QUEUE", 6, number=True),
    Column("FIRST", 5, number=True),
    Column("TOKENS", 3, number=True),
    Column("TOK/S", 2, number=True),
    Column("WHY", 7),
)
_DEPLOYMENTS: Final = (Column("DEPLOYING"), Column("STATE"), Column("NODE", 1), Column("DONE"))


def render(
    state: LiveState, now: float, screen: Screen, *, title: str, note: str = ""
) -> list[str]:
    """Return the screen's lines, within its columns and rows.

    `now` is our clock's time. `note`, which says what is wrong, is shown on top.
    """
    lines = [_line(title, screen, "title")]
    if note:
        lines.append(_line(note, screen, "note"))
    lines += [_line(text, screen) for text in _figures(state)]
    room = None if screen.rows is None else max(0, screen.rows - len(lines))
    deploying = _deploying(state)
    nodes = [
        _node(state, node, now)
        for node in sorted(state.nodes.values(), key=lambda row: str(row["name"]))
    ]
    requests = sorted(state.requests.values(), key=lambda row: row["started_at"])
    shown = [_request(state, request, now) for request in requests]
    for columns, rows, empty, kept in (
        (_DEPLOYMENTS, deploying, "", 2 * MIN_REQUEST_LINES),
        (_NODES, nodes, "no node has joined yet", MIN_REQUEST_LINES),
        (_REQUESTS, shown, "no request runs now", 0),
    ):
        if not rows and not empty:
            continue
        limit = None if room is None else max(0, room - kept)
        block = _block(columns, rows, empty, screen, limit)
        lines += block
        room = None if room is None else room - len(block)
    return lines if screen.rows is None else lines[: screen.rows]


def width_of(text: str) -> int:
    """Return the number of terminal columns that `text` takes."""
    return sum(_char_width(char) for char in text)


def cut(text: str, columns: int) -> str:
    """Return `text` shortened to so many columns, with … at the cut."""
    if width_of(text) <= columns:
        return text
    kept, used = "", 0
    for char in text:
        used += _char_width(char)
        if used > columns - 1:
            break
        kept += char
    return kept + "…" if columns > 0 else ""


def _char_width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _figures(state: LiveState) -> list[str]:
    states = Counter(node["state"] for node in state.nodes.values())
    pulse = state.pulse
    if not pulse:
        return ["waiting for the relay's figures"]
    first = ", ".join(
        f"{name} {_ms(value)}"
        for name, value in (("p50", pulse["ttft_p50_ms"]), ("p99", pulse["ttft_p99_ms"]))
        if value is not None
    )
    errors = pulse["errors_hour"]
    return [
        f"{pulse['tokens_per_s']:.0f} tokens/s   {pulse['running']} running"
        f"   {pulse['queued']} queued   {states['ready']}/{len(state.nodes)} nodes ready",
        f"last hour: {pulse['requests_hour']} requests, {errors} error{'' if errors == 1 else 's'}"
        + (f"; first token {first}" if first else ""),
    ]


def _node(state: LiveState, node: Row, now: float) -> list[str]:
    mine = [row for row in state.requests.values() if row["node"] == node["name"]]
    rates = [rate for row in mine if (rate := state.tokens_per_s(row, now)) is not None]
    since = node.get("connected_at")
    total = node["slots_total"]
    return [
        node["name"],
        node["state"],
        f"{node['slots_busy']}/{'-' if total is None else total}",
        str(node["queued"]),
        str(len(mine)),
        f"{sum(rates):.0f}" if rates else "-",
        "-" if since is None else seconds_text(max(0.0, now + state.clock_ahead_s - since)),
        str(node["reconnects"]),
        *machine_cells(state.hardware.get(str(node["id"]))),
        ", ".join(node["models"]) or "-",
    ]


def _request(state: LiveState, request: Row, now: float) -> list[str]:
    rate = state.tokens_per_s(request, now)
    age_s = max(0.0, now + state.clock_ahead_s - request["started_at"])
    # The relay reports the waiting time once it is over; until then it is the request's age.
    queue_ms = age_s * 1000 if request["state"] == "queued" else request["queue_ms"]
    return [
        request["model"] or "-",
        request["state"],
        request["node"] or "-",
        request["key_name"] or request["key_id"] or "-",
        seconds_text(age_s),
        _ms(queue_ms),
        "-" if request["ttft_ms"] is None else _ms(request["ttft_ms"]),
        str(state.tokens.get(request["id"], 0)),
        "-" if rate is None else f"{rate:.0f}",
        request["reason"] or "-",
    ]


def _deploying(state: LiveState) -> list[list[str]]:
    """Return rows for deployments in progress; settled ones are on their node's line."""
    rows = []
    for row in state.deployments.values():
        if row["state"] not in ("downloading", "starting", "failed"):
            continue
        at, done = row["progress"], row["reason"] or "-"
        if at is not None and at["total_bytes"]:
            done = f"{at['done_bytes'] / at['total_bytes']:.0%}"
            if at["eta_s"] is not None:
                done += f", {seconds_text(at['eta_s'])} left"
        rows.append([row["model"], row["state"], row["node"], done])
    return rows


def _ms(value: float) -> str:
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.1f} s"


def _block(
    columns: Sequence[Column], rows: list[list[str]], empty: str, screen: Screen, limit: int | None
) -> list[str]:
    """Return a blank line, the columns' titles and the rows, in at most `limit` lines."""
    if limit is not None and limit < 3:
        return []
    if not rows:
        return ["", _line(empty, screen, "columns")]
    shown = rows
    if limit is not None and len(rows) > limit - 2:
        shown = rows[: max(0, limit - 3)]
    table = [[_clean(cell) for cell in row] for row in shown]
    lines = ["", *_table(columns, table, screen)]
    if len(shown) < len(rows):
        lines.append(_line(f"… {len(rows) - len(shown)} more", screen, "columns"))
    return lines


def _table(columns: Sequence[Column], rows: list[list[str]], screen: Screen) -> list[str]:
    widths = [
        max([len(column.title), *(width_of(row[i]) for row in rows)])
        for i, column in enumerate(columns)
    ]
    kept = _kept(columns, widths, screen.columns)
    over = sum(widths[i] + _GAP for i in kept) - _GAP - screen.columns
    if over > 0:  # shorten the first column: a name's beginning identifies it
        widths[kept[0]] = max(len(columns[kept[0]].title), widths[kept[0]] - over)
    lines: list[str] = []
    for row in ([column.title for column in columns], *rows):
        heading = not lines
        line, left = "", screen.columns
        for place, i in enumerate(kept):
            gap = " " * (_GAP if place else 0)
            if left <= len(gap):
                break
            text = cut(row[i], min(widths[i], left - len(gap)))
            padding = " " * max(0, min(widths[i], left - len(gap)) - width_of(text))
            left -= len(gap) + width_of(text) + len(padding)
            style = "columns" if heading else text if columns[i].title == "STATE" else ""
            painted = _paint(text, style, screen)
            line += gap + (padding + painted if columns[i].number else painted + padding)
        lines.append(line.rstrip())
    return lines


def _kept(columns: Sequence[Column], widths: list[int], room: int) -> list[int]:
    """Return the columns that fit, after dropping the least important ones."""
    kept = list(range(len(columns)))
    while sum(widths[i] + _GAP for i in kept) - _GAP > room:
        least = max(kept, key=lambda i: columns[i].drop)
        if columns[least].drop == _NEVER_DROPPED:
            break
        kept.remove(least)
    return kept


def _line(text: str, screen: Screen, style: str = "") -> str:
    return _paint(cut(_clean(text), screen.columns), style, screen)


def _paint(text: str, style: str, screen: Screen) -> str:
    code = _STYLES.get(style)
    return f"\x1b[{code}m{text}\x1b[0m" if screen.colour and code and text else text


def _clean(text: str) -> str:
    """Return `text` without control characters, which foreign names may contain."""
    return "".join(char if char.isprintable() else "?" for char in str(text))
