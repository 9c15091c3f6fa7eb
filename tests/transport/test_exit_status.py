"""How the exit status of a process is described."""

from __future__ import annotations

import signal

import pytest

from wai_transport.exit_status import describe_exit


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended with status 0"),
        (3, "ended with status 3"),
        (-signal.SIGKILL, "was ended by SIGKILL"),
        (-34, "was ended by SIGRTMIN"),
        (-99, "was ended by signal 99"),
    ],
)
def test_a_signal_is_named_and_not_told_as_a_negative_status(code: int, words: str) -> None:
    assert describe_exit(code) == words
