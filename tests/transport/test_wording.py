"""Messages about invalid values are written for people, not in the words of the parser."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest

from wai_transport.wording import in_words


class Limits(msgspec.Struct):
    rpm: Annotated[int, msgspec.Meta(ge=1)] | None = None


class Key(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=4)]
    limits: Limits | None = None
    ttl_s: Annotated[float, msgspec.Meta(gt=0, le=5)] = 1.0
    level: Literal["debug", "info"] = "info"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"name": ""}, "name must be text of at least 1 character"),
        ({"name": "12345"}, "name must be text of at most 4 characters"),
        ({"name": 5}, "name must be text, not a whole number"),
        ({}, "name is missing"),
        ({"name": "a", "nam": 1}, "nam is not known"),
        ({"name": "a", "limits": {"rpm": -5}}, "limits.rpm must be a whole number, at least 1"),
        ({"name": "a", "ttl_s": 0.0}, "ttl_s must be a number, more than 0"),
        ({"name": "a", "ttl_s": 6.0}, "ttl_s must be a number, at most 5"),
        ({"name": "a", "level": "loud"}, "level can't be 'loud'"),
        ({"name": "a", "limits": 3}, "limits must be a table or empty, not a whole number"),
        ([], "this must be a table, not a list"),
    ],
)
def test_each_refusal_is_a_sentence(value: Any, words: str) -> None:
    with pytest.raises(msgspec.ValidationError) as error:
        msgspec.convert(value, Key)
    assert in_words(str(error.value)) == words


def test_a_value_with_a_name_of_its_own_is_called_by_it() -> None:
    assert in_words("Expected `float`, got `str`", "ping_s") == "ping_s must be a number, not text"
    assert in_words("something new", "ping_s") == "ping_s: something new"


def test_bytes_that_are_not_json_are_reported_as_such() -> None:
    with pytest.raises(msgspec.DecodeError) as error:
        msgspec.json.decode(b"{nan")
    assert in_words(str(error.value)).startswith("that is not JSON")
