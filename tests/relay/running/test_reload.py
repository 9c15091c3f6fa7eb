"""A configuration is taken over whole or not at all, and what has to wait is said."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from wai_protocol.errors import RequestError, StoreError
from wai_relay.config import RelayConfig
from wai_relay.running.reload import LiveConfig, Use

OLD = RelayConfig(Path("/data"), listen="127.0.0.1:1")


def live(
    new: Callable[[], RelayConfig], *, refuse: bool = False
) -> tuple[LiveConfig, list[RelayConfig]]:
    made = LiveConfig(OLD, new)
    used: list[RelayConfig] = []

    def prepare(config: RelayConfig) -> Use:
        return lambda: used.append(config)

    def prepare_last(config: RelayConfig) -> Use:
        if refuse:
            raise StoreError("its file is gone")
        return prepare(config)

    made.parts += [prepare, prepare_last]
    return made, used


def test_what_can_change_does_and_what_can_not_is_named(caplog: pytest.LogCaptureFixture) -> None:
    new = replace(OLD, listen="127.0.0.1:2", log_level="debug", aliases={"a": "b"})
    made, used = live(lambda: new)
    with caplog.at_level(logging.INFO):
        made.reload()
    assert used == [replace(new, listen=OLD.listen)] * 2
    assert made.now == used[0]
    said = "configuration reloaded: log_level, aliases; needs a restart: listen"
    assert caplog.messages == [said]


def test_a_part_that_can_not_take_it_leaves_all_as_they_were(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made, used = live(lambda: replace(OLD, log_level="debug"), refuse=True)
    made.reload()
    assert used == []
    assert made.now is OLD
    assert caplog.messages == [
        "the new configuration can't be used, the old one stays: its file is gone"
    ]


def test_a_configuration_that_makes_no_sense_leaves_all_as_it_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def read() -> RelayConfig:
        raise RequestError("relay.toml, line 3: unknown key 'lisen'")

    made, used = live(read)
    made.reload()
    assert used == []
    assert "line 3" in caplog.text


def test_a_port_with_tls_stays_one_with_all_that_belongs_to_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = LiveConfig(replace(OLD, tls="acme", domain="a.example"), lambda: replace(OLD, tls="off"))
    with caplog.at_level(logging.INFO):
        made.reload()
    assert made.now == replace(OLD, tls="acme", domain="a.example")
    assert caplog.messages == [
        "configuration reloaded: no setting has changed; needs a restart: tls, domain"
    ]
