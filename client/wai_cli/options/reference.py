"""Describe every setting of a program, from the definitions that `settings.load` fills in.

What a setting means is the docstring below its field; type and default are the field's own. So the
documentation's page and `wai settings` can't say anything else than the program does. Reads the
source, since Python drops these docstrings.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from .settings import ONLY_FLAGS

_WIDTH: Final = 96
_KINDS: Final[dict[Any, str]] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
}
_LISTS: Final[dict[Any, str]] = {str: "list of texts", Path: "list of paths"}


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """One key. `default`: as TOML writes it, "" where there is none. `required`: it must be there,
    in a table that is."""

    name: str
    kind: str
    default: str
    meaning: str
    required: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Table:
    """A table of a settings file: its name ("" for what stands at the top), whether there may be
    several, what it is for, and its keys."""

    name: str
    several: bool
    meaning: str
    settings: tuple[Setting, ...]


def tables_of(kind: type[Any]) -> list[Table]:
    """Return all tables of a program's settings, that of the top first."""
    return list(_tables(kind, "", "", several=False))


def example(kind: type[Any], program: str, prefix: str) -> str:
    """Return a settings file in which every key is commented out, and stands for its default."""
    tables = tables_of(kind)
    first = tables[0].settings[0].name
    lines = _comment(
        f"The settings of `{program}`: take the # away before a key to change it. The keys of the"
        f" first part are variables of the environment too ({prefix}{first.upper()} for {first})."
    )
    for table in tables:
        lines.append("")
        if table.name:
            lines += _comment(table.meaning)
            lines.append(f"#[[{table.name}]]" if table.several else f"[{table.name}]")
        for setting in table.settings:
            lines += _comment(setting.meaning)
            lines.append(f"#{setting.name} = {setting.default or hole(setting)}")
    return "\n".join(lines) + "\n"


def hole(setting: Setting) -> str:
    """Return what stands where a setting has no default."""
    return '"…"' if setting.kind in ("text", "path") else f"… ({setting.kind})"


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]


def _tables(kind: type[Any], name: str, meaning: str, *, several: bool) -> Iterator[Table]:
    hints, meanings = get_type_hints(kind), _meanings(kind)
    settings, inner = [], []
    for field in dataclasses.fields(kind):
        if field.name in ONLY_FLAGS:
            continue
        hint, told = hints[field.name], meanings.get(field.name, "")
        below = _table_in(hint)
        if below is not None:
            inner.append((below, field.name, told, get_origin(hint) is tuple))
            continue
        default = _default(field)
        settings.append(
            Setting(
                *(field.name, _kind(hint), _toml(default), told),
                required=default is dataclasses.MISSING,
            )
        )
    yield Table(name, several, meaning, tuple(settings))
    for below, key, told, repeated in inner:
        yield from _tables(below, f"{name}.{key}".lstrip("."), told, several=repeated)


def _meanings(kind: type[Any]) -> dict[str, str]:
    """The docstring below each field."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    (definition,) = tree.body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def _table_in(hint: Any) -> Any:
    """The dataclass of a table, or of a list of tables."""
    if dataclasses.is_dataclass(hint):
        return hint
    return next((arg for arg in get_args(hint) if dataclasses.is_dataclass(arg)), None)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _kind(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (arg for arg in get_args(hint) if arg is not NoneType)
    if get_origin(hint) is Literal:
        return " or ".join(str(choice) for choice in get_args(hint))
    if get_origin(hint) is dict:
        return "table of texts" if get_args(hint)[1] is str else "table of lists of texts"
    if get_origin(hint) is tuple:
        return _LISTS[get_args(hint)[0]]
    return _KINDS[hint]


def _toml(value: Any) -> str:
    """A default as TOML writes it; "" for one that a file can't write."""
    if value is None or value is dataclasses.MISSING:
        return ""
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{}"
    return json.dumps(str(value) if isinstance(value, Path) else value)
