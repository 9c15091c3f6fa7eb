"""Merge settings from a TOML file, the environment and flags into a frozen dataclass.

Precedence, lowest first: default, file, environment (`WAI_RELAY_LISTEN` for the relay's `listen`),
flag. An unknown key in the file, or a value of the wrong type, is an error that names the line.
Unknown variables are ignored, since Kubernetes sets `WAI_RELAY_PORT` and the like for every
service called wai-relay.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from wai_protocol.errors import RequestError
from wai_transport.wording import in_words

T = TypeVar("T")
MAX_FILE_BYTES: Final = 1 << 20
MAX_NUMBER: Final = 10**15
"""More of anything makes no sense, seconds included, and a timer takes no infinity."""
ONLY_FLAGS: Final = ("data",)
"""Fields that no file sets: the option has a default, which would win without a word."""
_HEADER: Final = re.compile(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?")
_KEY: Final = re.compile(r"""\s*(?:"([^"]+)"|'([^']+)'|([A-Za-z0-9_-]+))\s*[.=]""")
_PATH: Final = re.compile(r" - at `\$\.?([^`]*)`$")


def load(
    kind: type[T],
    *,
    file: Path | None,
    environment: Mapping[str, str],
    prefix: str,
    flags: Mapping[str, Any],
) -> T:
    """Return the settings as `kind`, a dataclass. A flag that was not given is None.

    `prefix` is that of the variables, such as `WAI_RELAY_`. Raises `RequestError`, which says which
    file, variable or flag is wrong.
    """
    merged: dict[str, Any] = {}
    if file is not None:
        text = _read(file)
        merged.update(_parse(text, file))
        _check_keys(merged, kind, "", text, file)
        _check_types(merged, kind, text, file)
    for field in dataclasses.fields(_dataclass(kind)):
        variable = prefix + field.name.upper()
        if variable in environment:
            merged[field.name] = _from_text(kind, field.name, environment[variable], variable)
    merged.update({name: value for name, value in flags.items() if value is not None})
    try:
        return msgspec.convert(merged, kind, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        found = _PATH.search(str(error))
        hint = get_type_hints(_dataclass(kind)).get(found[1]) if found else None
        raise RequestError(_describe(error, found[1] if found else "", hint)) from error


def _read(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise RequestError(f"{file} is too large for a settings file")
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{file} is not text in UTF-8") from error
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror}") from error


def _parse(text: str, file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"{file}: {error}") from error


def _check_keys(table: dict[str, Any], kind: Any, inside: str, text: str, file: Path) -> None:
    """Raise `RequestError` for a key that is not a field, also in nested tables and lists."""
    hints = get_type_hints(_dataclass(kind))
    for key, value in table.items():
        if key not in hints:
            line = _line_of(text, inside, key)
            known = ", ".join(sorted(hints))
            where = f" in [{inside}]" if inside else ""
            raise RequestError(f"{file}, line {line}: unknown key {key!r}{where}; known: {known}")
        if not inside and key in ONLY_FLAGS:
            line = _line_of(text, inside, key)
            raise RequestError(f"{file}, line {line}: no file sets {key!r}; use --{key}")
        if _is_beyond(value):
            line = _line_of(text, inside, key)
            name = f"{inside}.{key}" if inside else key
            raise RequestError(f"{file}, line {line}: {name} is {value}; the most is {MAX_NUMBER}")
        nested = _nested(hints[key])
        if nested is None:
            continue
        below = f"{inside}.{key}" if inside else key
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                _check_keys(item, nested, below, text, file)


def _check_types(table: dict[str, Any], kind: type[T], text: str, file: Path) -> None:
    hints = get_type_hints(_dataclass(kind))
    for key, value in table.items():
        try:
            msgspec.convert(value, hints[key], dec_hook=_decode)
        except (msgspec.ValidationError, RequestError) as error:
            inner = _PATH.search(str(error))
            field = re.sub(r"\[[^]]*\]", "", inner[1]).lstrip(".") if inner else ""
            name = f"{key}.{field}" if field else key
            inside, _, last = name.rpartition(".")
            line = _line_of(text, inside, last)
            hint = _hint_at(hints[key], field)
            raise RequestError(f"{file}, line {line}: {_describe(error, name, hint)}") from error


def _hint_at(hint: Any, path: str) -> Any:
    """The type of what lies at `path` (`email.tls`) below a value of the type `hint`."""
    for name in filter(None, path.split(".")):
        nested = _nested(hint)
        hint = None if nested is None else get_type_hints(nested).get(name)
    return hint


def _line_of(text: str, inside: str, key: str) -> int:
    """Return the 1-based line of `key` in the table `inside`; 1 if it is not on its own line."""
    table, header_line = "", 1
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = header[1]
            if table == (f"{inside}.{key}" if inside else key):
                return number
            if table == inside:
                header_line = number
        elif table == inside and (found := _KEY.match(line)) and key in found.groups():
            return number
        elif not table and inside and (found := _KEY.match(line)) and inside in found.groups():
            header_line = number  # an inline table, or a dotted key
    return header_line


def _from_text(kind: Any, name: str, text: str, variable: str) -> Any:
    """Parse a variable's value; a table or list is written as in TOML after `=`."""
    hint = get_type_hints(_dataclass(kind))[name]
    value: Any = text
    if _nested(hint) is not None or get_origin(hint) is dict:
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError as error:
            raise RequestError(f"{variable} in the environment: {error}") from error
    try:
        converted = msgspec.convert(value, hint, strict=False, dec_hook=_decode)
    except (msgspec.ValidationError, RequestError) as error:
        raise RequestError(_describe(error, f"{variable} in the environment", hint)) from error
    if _is_beyond(converted):
        raise RequestError(f"{variable} in the environment is {text}; the most is {MAX_NUMBER}")
    return value


def _is_beyond(value: Any) -> bool:
    """Whether `value` is a number that no setting can be: too large, infinite or NaN."""
    return isinstance(value, (int, float)) and not abs(value) <= MAX_NUMBER


def _nested(hint: Any) -> Any:
    """Return the dataclass inside `Table`, `Table | None` or `tuple[Table, ...]`."""
    if dataclasses.is_dataclass(hint):
        return hint
    return next((arg for arg in get_args(hint) if dataclasses.is_dataclass(arg)), None)


def _decode(kind: type[Any], value: Any) -> Any:
    if issubclass(kind, Path):
        if isinstance(value, Path):
            return value
        if not isinstance(value, str):
            raise RequestError("a path is a string")
        try:
            return Path(value).expanduser()
        except RuntimeError:
            raise RequestError(f"there is no home folder for {value!r}; write all of it") from None
    raise RequestError(f"a setting cannot be {kind.__name__}")


def _dataclass(kind: Any) -> Any:
    if not dataclasses.is_dataclass(kind):
        raise TypeError(f"{kind!r} is not a dataclass")
    return kind


def _describe(error: Exception, name: str, hint: Any) -> str:
    """Describe what is wrong with the value called `name`, whose type should be `hint`."""
    message = _PATH.sub("", str(error))
    if not isinstance(error, msgspec.ValidationError):
        return f"{name}: {message}"
    choices = ", ".join(map(str, get_args(hint))) if get_origin(hint) is Literal else ""
    return in_words(message, name) + (f"; it is one of {choices}" if choices else "")
