"""Whatever tells of a key's limits names the same ones as `wai_api.limits`, with its ranges."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import pytest
from msgspec import Meta, Struct

from wai_api.bounds import MAX_PRIORITY
from wai_api.keys import CreateKey
from wai_api.limits import LIMITS, KeyLimits, Kind, Limit, LimitChanges, _limit, clamped, limits_of
from wai_cli.commands import key
from wai_relay.admin import app, openapi
from wai_relay.policy.fair_queue import weight

ROOT: Final = Path(__file__).parents[2]
RANGES: Final = {limit.name: (limit.least, limit.most) for limit in LIMITS}


def _action(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    key.configure(parser)
    actions = next(one for one in parser._actions if one.dest == "==SUPPRESS==" or one.choices)
    assert isinstance(actions.choices, dict)
    found = actions.choices[name]
    assert isinstance(found, argparse.ArgumentParser)
    return found


def _takes(parser: argparse.ArgumentParser, limit: Limit, value: object) -> bool:
    words = ["x", limit.flag, *(() if limit.kind is Kind.SWITCH else (str(value),))]
    try:
        parser.parse_args([words[0], "=".join(words[1:])])
    except SystemExit:
        return False
    return True


@pytest.mark.parametrize("command", ["create", "update"])
@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.name)
def test_each_limit_has_a_flag_of_its_range(command: str, limit: Limit) -> None:
    parser = _action(command)
    flags = {flag: action for action in parser._actions for flag in action.option_strings}
    assert flags[limit.flag].dest == limit.attribute
    assert limit.description[1:] in (flags[limit.flag].help or "")
    if limit.kind in (Kind.COUNT, Kind.RANK):
        assert limit.least is not None
        assert limit.most is not None
        tried = (limit.least - 1, limit.least, limit.most, limit.most + 1)
        assert [_takes(parser, limit, value) for value in tried] == [False, True, True, False]
    if limit.kind is Kind.RANK:
        assert f"{limit.least} to {limit.most}" in (flags[limit.flag].help or "")


def test_no_other_flag_sets_a_limit() -> None:
    of_limits = {limit.flag for limit in LIMITS} | {
        "--no-" + limit.flag.removeprefix("--") for limit in LIMITS if limit.kind is Kind.SWITCH
    }
    others = {"-h", "--help", "--json", "--data", "--relay", "--token-file", "--pin", "--ca"}
    others.add("--label")
    flags = {flag for action in _action("update")._actions for flag in action.option_strings}
    assert flags == of_limits | others


def test_the_openapi_document_has_the_limits_and_their_ranges() -> None:
    document = openapi.document(app.ENDPOINTS, "0", app.BASE)
    components = document["components"]["schemas"]
    assert tuple(components["KeyLimits"]["properties"]) == tuple(RANGES)
    assert set(components["KeyLimits"]["required"]) == set(RANGES)
    changes = components["LimitChanges"]["properties"]
    found = {name: _range_of(schema) for name, schema in changes.items()}
    assert found == RANGES
    for limit in LIMITS:
        assert changes[limit.name]["description"] == limit.description


def _range_of(schema: dict[str, Any]) -> tuple[float | None, float | None]:
    number = next(iter(schema.get("anyOf", ())), schema)
    return number.get("minimum"), number.get("maximum")


def _generated() -> str:
    spec = importlib.util.spec_from_file_location(
        "generate_api", ROOT / "relay/web/generate_api.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text: str = module.generate()
    return text


def test_the_pages_table_has_the_limits_and_their_ranges() -> None:
    text = _generated()
    table = text[text.index("export const LIMITS") : text.index("] as const")]
    rows = re.findall(r'{ name: "(\w+)", kind: "(\w+)",(.*) }', table)
    found = {}
    for name, _, rest in rows:
        bounds = re.search(r"min: (\S+), max: (\S+)", rest)
        found[name] = (float(bounds[1]), float(bounds[2])) if bounds else (None, None)
    assert found == RANGES
    assert [kind for _, kind, _ in rows] == [limit.kind.value for limit in LIMITS]


def test_the_pages_types_are_those_of_the_document() -> None:
    text = _generated()
    document = openapi.document(app.ENDPOINTS, "0", app.BASE)
    named = set(re.findall(r"^export interface (\w+)", text, re.MULTILINE))
    assert named == set(document["components"]["schemas"])
    [node] = re.findall(r"export interface NodeView {\n(.*?)\n}", text, re.DOTALL)
    assert '  state: "ready" | "starting" | "draining" | "reconnecting" | "offline";' in node
    assert "  tags: string[];" in node
    [changes] = re.findall(r"export interface LimitChanges {\n(.*?)\n}", text, re.DOTALL)
    assert "  rpm?: number | null;" in changes


def test_the_manual_has_the_limits_and_the_range_of_priorities() -> None:
    text = (ROOT / "docs/routing.md").read_text(encoding="utf-8")
    section = text[text.index("## Limits of a key") :]
    rows = [
        line for line in section[: section.index("\n\nA request")].splitlines() if "`--" in line
    ]
    flags = [flag for row in rows for flag in re.findall(r"`(--[a-z-]+)", row.split("|")[1])]
    assert sorted(flags) == sorted(limit.flag for limit in LIMITS)
    [priority] = [row for row in rows if "--priority" in row]
    assert f"{-MAX_PRIORITY} to {MAX_PRIORITY}" in priority


def test_every_step_of_priority_counts_in_the_queue() -> None:
    weights = [weight(step) for step in range(-MAX_PRIORITY, MAX_PRIORITY + 1)]
    assert len(set(weights)) == len(weights)
    assert weight(MAX_PRIORITY + 1) == weights[-1]


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.name)
def test_a_change_out_of_range_is_refused_and_one_at_its_ends_is_not(limit: Limit) -> None:
    def change(value: object) -> LimitChanges:
        return msgspec.json.decode(json.dumps({limit.name: value}), type=LimitChanges)

    if limit.least is None or limit.most is None:
        with pytest.raises(msgspec.ValidationError):
            change(5)
        return
    for value in (limit.least, limit.most):
        changed = change(value).applied_to(KeyLimits())
        assert getattr(changed, limit.attribute) == value
    for wrong in (limit.least - 1, limit.most * 2, "1"):
        with pytest.raises(msgspec.ValidationError):
            change(wrong)


def test_a_change_leaves_what_it_does_not_name() -> None:
    body = msgspec.json.decode(b'{"name": "a", "limits": {"tpm": null}}', type=CreateKey)
    known = KeyLimits(rpm=5, tpm=6, models=("m",), continue_=True)
    assert body.limits.applied_to(known) == KeyLimits(rpm=5, models=("m",), continue_=True)
    assert msgspec.to_builtins(body.limits) == {"tpm": None}


def test_a_list_of_names_is_bounded() -> None:
    for names in (["x" * 257], ["x"] * 257):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"models": names}, LimitChanges)


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ({"priority": 100}, {"priority": MAX_PRIORITY}),
        ({"priority": -4}, {"priority": -MAX_PRIORITY}),
        ({"rpm": 0, "tpm": None}, {"rpm": 1, "tpm": None}),
        ({"expires_at": 1e12}, {"expires_at": 1e11}),
        ({"continue_": True, "of_a_newer_version": 5}, {"continue": True}),
        ({"models": ["a"], "local_only": True}, {"models": ["a"], "local_only": True}),
    ],
)
def test_stored_limits_are_brought_into_range(stored: dict[str, Any], read: dict[str, Any]) -> None:
    assert clamped(stored) == read


class _Undescribed(Struct):
    size: Annotated[int | None, Meta(title="Size")] = None


class _OfNoKind(Struct):
    size: Annotated[str, _limit("--size", "Size", "big", "How large")] = ""


@pytest.mark.parametrize(
    ("struct", "why"), [(_Undescribed, "no description"), (_OfNoKind, "no `Kind`")]
)
def test_a_field_that_cannot_be_a_limit_is_refused_at_import(
    struct: type[Struct], why: str
) -> None:
    with pytest.raises(TypeError, match=rf"{struct.__name__}\.size.*{why}"):
        limits_of(struct)
