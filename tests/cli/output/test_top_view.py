"""What `wai top` draws: what is cut, dropped and cleaned, and what a state looks like."""

from __future__ import annotations

from typing import Any

import pytest

from wai_cli.client.live_state import LiveState, parse
from wai_cli.output.top_view import Screen, cut, render, width_of

NOW = 1_000.0


def node(name: str = "box", **changes: Any) -> dict[str, Any]:
    return {
        "id": f"id-{name}",
        "name": name,
        "state": "ready",
        "slots_total": 4,
        "slots_busy": 1,
        "queued": 0,
        "reconnects": 2,
        "connected_at": NOW - 60,
        "models": ["tiny"],
        **changes,
    }


def request(name: str = "req_1", **changes: Any) -> dict[str, Any]:
    return {
        "id": name,
        "key_id": "key_1",
        "key_name": "app",
        "model": "tiny",
        "node": "box",
        "state": "streaming",
        "reason": "fastest",
        "attempts": 1,
        "started_at": NOW - 11,
        "queue_ms": 2.0,
        "ttft_ms": 1000.0,
        "prompt_tokens": 5,
        **changes,
    }


PULSE = {
    "at": NOW,
    "tokens_per_s": 12.3,
    "running": 1,
    "queued": 0,
    "requests_hour": 7,
    "errors_hour": 1,
    "tokens_hour": 100,
    "ttft_p50_ms": 90.0,
    "ttft_p99_ms": 1234.0,
}


def state(
    nodes: list[dict[str, Any]] | None = None, requests: list[dict[str, Any]] | None = None
) -> LiveState:
    told = LiveState()
    told.apply("nodes", {"full": True, "set": [node()] if nodes is None else nodes})
    rows = [request()] if requests is None else requests
    told.apply("requests", {"full": True, "set": rows, "tokens": {row["id"]: 101 for row in rows}})
    told.apply("pulse", PULSE)
    return told


def drawn(told: LiveState, columns: int = 120, rows: int | None = 30, **options: Any) -> list[str]:
    return render(told, NOW, Screen(columns, rows, **options), title="wai top")


def test_figures_nodes_and_requests_are_on_the_screen() -> None:
    text = "\n".join(drawn(state()))
    assert "12 tokens/s   1 running   0 queued   1/1 nodes ready" in text
    assert "7 requests, 1 error; first token p50 90 ms, p99 1.2 s" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "box ready 1/4 0 1 10 60 s 2 - - - tiny" in lines
    assert "tiny streaming box app 11 s 2 ms 1.0 s 101 10 fastest" in lines


def test_a_request_that_still_waits_shows_how_long_it_has() -> None:
    row = request(state="queued", node="", reason="", queue_ms=0.0, ttft_ms=None)
    told = state(requests=[row])
    told.tokens.clear()
    lines = [" ".join(line.split()) for line in drawn(told)]
    assert "tiny queued - app 11 s 11.0 s - 0 - -" in lines


@pytest.mark.parametrize("columns", [1, 2, 5, 10, 20, 40, 60, 80, 200])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 10, 24])
def test_nothing_is_drawn_outside_the_screen(columns: int, rows: int) -> None:
    many = state(
        [node(f"a-node-with-a-name-{n}", models=["m" * 40]) for n in range(30)],
        [request(f"req_{n}", model="模型" * 9, reason="r" * 50) for n in range(30)],
    )
    lines = render(many, NOW, Screen(columns, rows), title="t" * 90, note="n" * 90)
    assert len(lines) <= rows
    assert all(width_of(line) <= columns for line in lines)


def test_on_a_narrow_screen_the_least_needed_columns_go_first() -> None:
    wide, narrow = drawn(state(), 120), drawn(state(), 40)
    assert any("RECONN" in line for line in wide)
    assert not any("RECONN" in line for line in narrow)
    assert any("NODE" in line and "STATE" in line and "TOK/S" in line for line in narrow)


def test_many_nodes_leave_room_for_requests_and_what_is_hidden_is_counted() -> None:
    told = state([node(f"n{n:02}") for n in range(50)], [request(f"req_{n}") for n in range(50)])
    lines = drawn(told, rows=24)
    assert len(lines) == 24
    assert [line for line in lines if line.startswith("… ")] == ["… 36 more", "… 49 more"]


def test_without_a_size_everything_is_shown() -> None:
    told = state([node(f"n{n}") for n in range(50)], [request(f"req_{n}") for n in range(60)])
    assert len([line for line in drawn(told, rows=None) if "more" in line]) == 0


def test_names_from_outside_do_not_steer_the_terminal() -> None:
    told = state([node("\x1b[2Jbox\n")], [request(model="m\x07\r", reason="\x9b1m")])
    assert all(line.isprintable() for line in drawn(told))


def test_colours_are_only_where_they_are_wanted() -> None:
    assert not any("\x1b" in line for line in drawn(state()))
    assert any("\x1b[32mready\x1b[0m" in line for line in drawn(state(), colour=True))


def test_empty_and_half_known_states_are_drawn() -> None:
    assert any("waiting" in line for line in drawn(LiveState()))
    text = "\n".join(drawn(state([], [])))
    assert "no node has joined yet" in text
    assert "no request runs now" in text
    queued = request(state="queued", node="", ttft_ms=None, key_name="", model="", reason="")
    bare = node(slots_total=None, connected_at=None, state="offline", models=[])
    assert any("key_1" in line for line in drawn(state([bare], [queued])))


def test_a_note_stands_on_top() -> None:
    lines = render(state(), NOW, Screen(80, 24), title="wai top", note="the relay is gone")
    assert lines[1] == "the relay is gone"


def test_a_download_is_shown_with_how_far_it_is() -> None:
    told = state()
    progress = {"done_bytes": 25, "total_bytes": 100, "rate_bps": 1.0, "eta_s": 75.0}
    row = {"id": "d", "model": "a/b:F16", "state": "downloading", "node": "box", "reason": ""}
    told.apply("deployments", {"set": [{**row, "progress": progress}]})
    assert any("25%, 75 s left" in line for line in drawn(told))
    told.apply("deployments", {"set": [{**row, "state": "ready", "progress": None}]})
    assert not any("a/b" in line for line in drawn(told))


def test_differences_are_applied_and_a_full_event_replaces() -> None:
    told = state()
    told.apply("requests", {"set": [request("req_2")], "gone": ["req_1"], "tokens": {"req_2": 3}})
    assert list(told.requests) == ["req_2"]
    assert told.tokens == {"req_2": 3}
    told.apply("requests", {"full": True})
    assert (told.requests, told.tokens) == ({}, {})
    told.apply("weather", {"full": True})
    assert told.as_json(NOW)["pulse"] == PULSE


def test_an_answers_speed_counts_by_the_relays_clock_and_never_divides_by_nothing() -> None:
    told = state()
    assert told.tokens_per_s(request(), NOW) == 10.0
    told.clock_ahead_s = 10.0
    assert told.tokens_per_s(request(), NOW) == 5.0
    assert told.tokens_per_s(request(started_at=NOW + 99), NOW) is None
    assert told.tokens_per_s(request(ttft_ms=None), NOW) is None


def test_the_feeds_lines_are_parsed_comments_and_unknown_fields_too() -> None:
    text = b': hi\n\nevent: pulse\ndata: {"at": 1}\n\nid: 3\nevent: x\r\ndata: [1]\r\n\r\n'
    assert list(parse(text.splitlines(keepends=True))) == [
        *(("", None), ("pulse", {"at": 1})),
        ("x", [1]),
    ]


def test_a_text_is_cut_by_what_it_takes_on_the_screen() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("abcd", 3) == "ab…"
    assert cut("模型模", 4) == "模…"
    assert cut("abc", 0) == ""
