"""Places go to the newest: silent holders lose theirs, and a peer loses its own first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wai_relay.fleet.places import Places


def test_the_oldest_gives_way_when_all_places_are_taken() -> None:
    places: Places[str] = Places(2, 2)
    assert places.take("a", "") is None
    assert places.take("b", "x") is None
    assert places.take("c", "y") == "a"
    assert list(places) == ["b", "c"]


def test_a_peer_beyond_its_share_pushes_out_its_own() -> None:
    places: Places[str] = Places(9, 2)
    places.take("other", "y")
    places.take("a", "x")
    places.take("b", "x")
    assert places.take("c", "x") == "a"
    assert list(places) == ["other", "b", "c"]
    places.free("b")
    assert places.take("d", "x") is None


def test_those_without_a_name_share_all_places() -> None:
    places: Places[int] = Places(5, 1)
    assert [places.take(n, "") for n in range(6)] == [None] * 5 + [0]


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["", "x", "y"]), st.booleans())))
def test_the_bounds_hold_and_nothing_is_left_behind(steps: list[tuple[int, str, bool]]) -> None:
    places: Places[tuple[int, int]] = Places(6, 3)
    held: dict[tuple[int, int], str] = {}
    for number, (which, peer, takes) in enumerate(steps):
        if takes:
            held[number, which] = peer
            held.pop(places.take((number, which), peer) or (-1, -1), None)
        elif held:
            gone = list(held)[which % len(held)]
            del held[gone]
            places.free(gone)
            places.free(gone)
        assert list(places) == list(held)
        assert len(held) <= 6
        assert all(list(held.values()).count(p) <= 3 for p in ("x", "y"))
    for holder in held:
        places.free(holder)
    assert not places._holders
