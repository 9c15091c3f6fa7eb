"""Which address is dialled when, by a clock that the test moves."""

from __future__ import annotations

import errno
import socket
from typing import Any

from wai_transport.address_race import MAX_ADDRESSES, STAGGER_S, Address, AddressRace, ordered

V6 = Address(socket.AF_INET6, ("2001:db8::1", 443, 0, 0))
V4 = Address(socket.AF_INET, ("192.0.2.1", 443))
REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed")
UNREACHABLE = OSError(errno.ENETUNREACH, "no")


def entry(address: Address) -> tuple[Any, ...]:
    """A result of `getaddrinfo`."""
    return (address.family, socket.SOCK_STREAM, 6, "", address.sockaddr)


def test_families_alternate_and_the_resolvers_first_choice_stays_first() -> None:
    sixes = [Address(socket.AF_INET6, (f"2001:db8::{n}", 443, 0, 0)) for n in range(3)]
    assert ordered(map(entry, [*sixes, V4])) == [sixes[0], V4, *sixes[1:]]
    assert ordered(map(entry, [V4, *sixes])) == [V4, *sixes]


def test_an_address_that_is_told_twice_is_dialled_once() -> None:
    assert ordered(map(entry, [V4, V4])) == [V4]


def test_a_name_with_very_many_addresses_is_bounded() -> None:
    many = [Address(socket.AF_INET, (f"192.0.2.{n}", 443)) for n in range(200)]
    assert ordered(map(entry, many)) == many[:MAX_ADDRESSES]


def test_an_address_that_is_silent_holds_up_the_next_one_for_a_quarter_of_a_second() -> None:
    race = AddressRace([V6, V4], 100.0)
    assert race.take(100.0) == V6
    assert race.take(100.0) is None
    assert race.next_deadline() == 100.0 + STAGGER_S
    assert race.take(100.0 + STAGGER_S) == V4
    assert race.next_deadline() is None


def test_an_address_that_fails_holds_up_nobody() -> None:
    race = AddressRace([V6, V4], 100.0)
    race.take(100.0)
    race.failed(V6, UNREACHABLE, 100.01)
    assert race.take(100.01) == V4
    assert not race.all_failed


def test_the_error_says_what_each_address_met() -> None:
    race = AddressRace([V6, V4], 0.0)
    race.take(0.0)
    race.failed(V6, UNREACHABLE, 0.0)
    race.take(0.0)
    race.failed(V4, REFUSED, 0.0)
    assert race.all_failed
    assert race.error().strerror == (
        "2001:db8::1: Network is unreachable; 192.0.2.1: Connection refused"
    )


def test_one_reason_for_all_is_said_once_and_keeps_its_type() -> None:
    race = AddressRace([V6, V4], 0.0)
    for _ in range(2):
        address = race.take(0.0)
        assert address is not None
        race.failed(address, REFUSED, 0.0)
    assert isinstance(race.error(), ConnectionRefusedError)
    assert race.error().strerror == "Connection refused (2001:db8::1, 192.0.2.1)"


def test_an_address_that_never_answered_is_told_too() -> None:
    race = AddressRace([V6, V4], 0.0)
    race.take(0.0)
    race.take(1.0)
    race.failed(V4, REFUSED, 1.0)
    assert isinstance(race.error(), TimeoutError)
    assert race.error().strerror == "192.0.2.1: Connection refused; 2001:db8::1: no answer"


def test_silent_addresses_are_dialled_again_where_that_was_asked_for() -> None:
    race = AddressRace([V6, V4], 0.0, redial_s=0.7)
    assert [race.take(0.0), race.take(0.25)] == [V6, V4]
    assert race.take(0.9) is None
    assert race.next_deadline() == 0.25 + 0.7
    assert race.take(0.95) == V6
    assert race.take(0.95 + STAGGER_S) == V4


def test_an_address_that_failed_is_not_dialled_again() -> None:
    race = AddressRace([V6, V4], 0.0, redial_s=0.7)
    race.take(0.0)
    race.failed(V6, UNREACHABLE, 0.0)
    assert race.take(0.0) == V4
    assert race.take(1.0) == V4
    race.failed(V4, REFUSED, 1.0)
    assert not race.all_failed
    race.failed(V4, REFUSED, 1.0)
    assert race.all_failed


def test_a_name_without_an_address_is_lost_at_once() -> None:
    assert AddressRace([], 0.0).all_failed
