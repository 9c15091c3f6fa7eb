"""The words of a message: all that is needed, in bounded length, whatever a node is called."""

from __future__ import annotations

import json

from wai_api.health import ProblemView
from wai_relay.notify.message import MAX_TITLE_CHARS, Message
from wai_relay.notify.ntfy import body_of as ntfy_body
from wai_relay.notify.webhook import body_of

RELAY = "https://llm.example"
OFFLINE = ProblemView("node", "box", "it is offline", "start it", "node box away")
FULL = ProblemView("disk", "relay", "the disk is full", "free some space", "disk relay full")


def test_a_problem_is_told_with_what_to_do() -> None:
    message = Message(1.8e9, RELAY, (OFFLINE, FULL), lasting=1)
    assert message.title == "box: it is offline (and 1 more)"
    assert message.text == (
        "The relay https://llm.example:\n\n"
        "- box: it is offline\n  → start it\n"
        "- this relay: the disk is full\n  → free some space\n\n"
        "One other problem lasts: `wai status` shows everything."
    )


def test_the_end_of_the_last_one_says_that_nothing_is_wrong() -> None:
    message = Message(1.8e9, RELAY, over=(OFFLINE,))
    assert message.title == "Recovered: box: it is offline"
    assert message.text.endswith("- box: it is offline\n\nNothing is wrong any more.")


def test_a_hundred_problems_with_long_and_hostile_names_are_one_short_message() -> None:
    name = "b\r\nBcc: x\x1b[2J" + "ö" * 500
    many = tuple(ProblemView("node", name, "t" * 300, "a" * 300, str(n)) for n in range(100))
    message = Message(1.8e9, RELAY, many)
    assert len(message.title) <= MAX_TITLE_CHARS
    assert message.title.isprintable()
    assert "- 90 more problems have begun" in message.text
    assert "\r" not in message.text
    assert "\x1b" not in message.text
    told = json.loads(ntfy_body("topic", message))
    assert len(told["message"].encode()) < 4096
    assert len(json.loads(body_of(message))["problems"]) == 100


def test_a_test_is_told_from_a_problem() -> None:
    message = Message(1.8e9, RELAY, test=True)
    assert json.loads(body_of(message))["event"] == "test"
    assert "Nothing is wrong" in message.text
