"""What nodes are told of one relay of several: an address that leads to it, and a name that its
certificate is for."""

from __future__ import annotations

import pytest

from wai_relay.fleet.invites import InviteAddress, node_address

PUBLIC = "https://llm.example.com"
BY_AUTHORITY = InviteAddress(PUBLIC, b"r" * 32, None)
PINNED = InviteAddress(PUBLIC, b"r" * 32, b"p" * 32)


def test_without_an_address_of_its_own_nodes_are_told_the_public_one() -> None:
    assert node_address(BY_AUTHORITY, PUBLIC, None, {"llm.example.com"}) == BY_AUTHORITY


def test_a_pinned_certificate_needs_no_name() -> None:
    told = node_address(PINNED, PUBLIC, "https://relay1.example.com:8443", {"llm.example.com"})
    assert (told.url, told.dial) == ("https://relay1.example.com:8443", "")


@pytest.mark.parametrize("hosts", [{"relay1.example.com"}, {"*.example.com", "a.example.org"}])
def test_a_certificate_for_the_relays_own_name_is_expected_there(hosts: set[str]) -> None:
    told = node_address(BY_AUTHORITY, PUBLIC, "https://relay1.example.com", hosts)
    assert (told.url, told.dial) == ("https://relay1.example.com", "")


@pytest.mark.parametrize(
    ("node_url", "dial"),
    [
        ("https://relay1.example.com", "relay1.example.com:443"),
        ("https://192.0.2.7:8443", "192.0.2.7:8443"),
        ("https://[2001:db8::7]", "[2001:db8::7]:443"),
    ],
)
def test_where_all_have_one_domain_its_name_is_expected_at_each(node_url: str, dial: str) -> None:
    told = node_address(BY_AUTHORITY, PUBLIC, node_url, {"llm.example.com"})
    assert (told.url, told.dial) == ("https://llm.example.com", dial)


def test_a_name_of_the_certificate_is_expected_where_the_public_one_is_another() -> None:
    told = node_address(
        BY_AUTHORITY, "https://lb.example.org", "https://relay1.example.com", {"llm.example.com"}
    )
    assert told.url == "https://llm.example.com"


def test_a_proxy_that_ends_tls_has_a_certificate_that_is_not_known_here() -> None:
    told = node_address(BY_AUTHORITY, PUBLIC, "https://relay1.example.com", set())
    assert (told.url, told.dial) == ("https://relay1.example.com", "")
    told = node_address(BY_AUTHORITY, PUBLIC, "http://10.0.0.7:8080", {"llm.example.com"})
    assert (told.url, told.dial) == ("http://10.0.0.7:8080", "")
