"""What a caller's name of a model stands for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from wai_api.limits import KeyLimits
from wai_protocol.errors import RequestError
from wai_protocol.status import ModelStatus, NodeStatus
from wai_relay.policy.model_names import ModelNames
from wai_relay.policy.served_names import ServedNames


@dataclass
class Node:
    name: str
    status: NodeStatus


def node(name: str, *models: str | tuple[str, tuple[str, ...]]) -> Node:
    made = []
    for model in models:
        model_id, aliases = (model, ()) if isinstance(model, str) else model
        made.append(ModelStatus(model_id, "u", aliases=aliases))
    return Node(name, NodeStatus(tuple(made)))


class Fleet:
    """All of `members`, which each test changes as it likes."""

    def __init__(self, *members: Node) -> None:
        self.members = members
        self.changes = 0

    def nodes(self) -> tuple[Node, ...]:
        return self.members

    def change(self, *members: Node) -> None:
        self.members = members
        self.changes += 1


def served(*nodes: Node) -> ServedNames:
    names = ServedNames()
    names.look(Fleet(*nodes))
    return names


@pytest.mark.parametrize(
    "asked", ["llama3.2", "llama3.2:latest", "Llama3.2", "LLAMA3.2:LATEST", "llama3.2:Latest"]
)
def test_ollamas_names_need_neither_tag_nor_case(asked: str) -> None:
    assert served(node("a", "llama3.2:latest")).find(asked) == "llama3.2:latest"


def test_a_tag_is_another_model() -> None:
    names = served(node("a", "qwen3:8b"))
    assert names.find("qwen3") is None
    assert names.find("qwen3:8B") == "qwen3:8b"


def test_an_exact_name_wins_and_a_tie_is_always_decided_alike() -> None:
    names = served(node("a", "Phi", "phi:latest"), node("b", "phi"))
    assert names.find("phi") == "phi"
    assert names.find("PHI") == "Phi"


def test_a_servers_own_other_names_are_known_until_it_goes() -> None:
    first, second = node("a", ("qwen", ("fast", "q"))), node("b", "other")
    fleet, names = Fleet(first, second), ServedNames()
    names.look(fleet)
    assert names.find("fast") == "qwen"
    fleet.change(second)
    names.look(fleet)
    assert (names.find("fast"), names.find("qwen"), names.find("OTHER")) == (None, None, "other")
    first.status = NodeStatus((ModelStatus("qwen", "u", aliases=("slow",)),))
    fleet.change(first, second)
    names.look(fleet)
    assert (names.find("fast"), names.find("slow")) == (None, "qwen")


def test_a_fleet_that_has_not_changed_is_not_looked_at_again() -> None:
    fleet, names = Fleet(node("a", "qwen")), ServedNames()
    names.look(fleet)
    fleet.members = ()  # without a word
    names.look(fleet)
    assert names.find("qwen") == "qwen"


def test_what_one_node_takes_away_another_still_has() -> None:
    first, second = node("a", "m:latest"), node("b", "m:latest")
    fleet, names = Fleet(first, second), ServedNames()
    names.look(fleet)
    first.status = NodeStatus(())
    fleet.change(first, second)
    names.look(fleet)
    assert names.find("M") == "m:latest"


def test_an_alias_with_a_star_stands_for_what_nobody_serves() -> None:
    names = ModelNames({"gpt-*": "qwen3", "gpt-4*-mini": "small", "gpt-4o": "big"})
    nodes = served(node("a", "qwen3:latest", "small", "big", "gpt-oss:20b"))
    assert names.served_by("gpt-5", nodes) == ("qwen3:latest",)
    assert names.served_by("gpt-4o-mini", nodes) == ("small",), "the pattern that says most"
    assert names.served_by("gpt-4o", nodes) == ("big",), "an exact alias comes first"
    assert names.served_by("gpt-oss:20b", nodes) == ("gpt-oss:20b",), (
        "a served name is no pattern's"
    )
    assert names.served_by("claude", nodes) == ("claude",)
    assert names.served_by("gpt-*", nodes) == ("qwen3:latest",)


@pytest.mark.parametrize(
    ("aliases", "fallbacks", "said"),
    [
        ({"a": "b", "b": "a"}, {}, "the alias 'a' leads back to itself"),
        ({"x": "a", "a": "b", "b": "c", "c": "a"}, {}, "the alias 'a' leads back"),
        ({"a": ""}, {}, "is empty"),
        ({"": "a"}, {}, "is empty"),
        ({}, {"a": ("b", "")}, "is empty"),
    ],
)
def test_a_name_that_leads_to_no_model_is_refused(
    aliases: dict[str, str], fallbacks: dict[str, tuple[str, ...]], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        ModelNames(aliases, fallbacks)
    ModelNames({"a": "a", "b": "c", "c": "d"})  # its own name, and one that a node serves too


def test_fallbacks_are_found_by_the_name_that_nodes_use() -> None:
    names = ModelNames(fallbacks={"llama3": ("qwen3",)})
    nodes = served(node("a", "llama3:latest", "qwen3:latest"))
    assert names.served_by("llama3", nodes) == ("llama3:latest", "qwen3:latest")


def test_a_keys_list_of_models_holds_for_every_name_of_one() -> None:
    names, nodes = ModelNames({"gpt-*": "m"}), served(node("a", "m:latest", "other"))
    limits = KeyLimits(models=("m:latest",))
    for asked in ("m", "M", "gpt-4"):
        assert names.allowed(asked, limits, nodes) == ("m:latest",)
    with pytest.raises(RequestError):
        names.allowed("OTHER", limits, nodes)


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("*", "anything", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a*b*c", "axbyc", True),
        ("a*b*c", "acb", False),
        ("*-mini", "gpt-mini", True),
        ("gpt-*", "xgpt-4", False),
    ],
)
def test_a_star_is_any_characters(pattern: str, name: str, fits: bool) -> None:
    expected = ("m",) if fits else (name,)
    assert ModelNames({pattern: "m"}).served_by(name) == expected


def test_an_alias_of_stars_only_is_refused() -> None:
    with pytest.raises(RequestError):
        ModelNames({"*a*a*a*a*a": "m"})
