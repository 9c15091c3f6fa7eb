"""What callers' model names stand for: aliases, and models that may stand in for others. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Final

import msgspec

from wai_api.limits import KeyLimits
from wai_protocol.errors import Fault, RequestError

from .served_names import ServedNames

ANY: Final = "*"
"""In an alias it stands for any characters: `gpt-*`."""
MAX_WILDCARDS: Final = 4
"""In one alias. Each costs a search in the name."""


class ModelNames(msgspec.Struct, frozen=True, dict=True):
    """`aliases`: name to model; a name may contain `*`. `fallbacks`: model to those that may stand
    in for it, best first. Replace the whole of it to change it while the relay runs.

    Raises `RequestError` for an alias with too many `*`, for one that leads back to itself, and for
    a name that is empty."""

    aliases: Mapping[str, str] = msgspec.field(default_factory=dict)
    fallbacks: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.aliases:
            if name.count(ANY) > MAX_WILDCARDS:
                raise RequestError(f"the alias {name!r} has more than {MAX_WILDCARDS} `*`")
            if self._leads_back(name):
                raise RequestError(f"the alias {name!r} leads back to itself, and to no model")
        others = (other for group in self.fallbacks.values() for other in group)
        if not all((*self.aliases, *self.aliases.values(), *self.fallbacks, *others)):
            raise RequestError("a name in [aliases] or [fallbacks] is empty")

    def _leads_back(self, name: str) -> bool:
        """Whether the alias `name` stands for others that stand for it in the end."""
        seen, model = {name}, self.aliases[name]
        while model in self.aliases and model not in seen:
            seen.add(model)
            model = self.aliases[model]
        return model == name and len(seen) > 1

    def served_by(self, name: str, served: ServedNames | None = None) -> tuple[str, ...]:
        """The models to try for `name`, in order. An alias without `*` comes first, then what nodes
        serve by that name (`served`), then the alias with `*` that has the most characters."""
        if served is not None and not self.aliases and not self.fallbacks:
            return (served.find(name) or name,)
        model = self.aliases.get(name) if ANY not in name else None
        if model is None:
            model = (served.find(name) if served else None) or self._by_pattern(name) or name
        others = self.fallbacks.get(model) or self.fallbacks.get(name, ())
        if served is not None:
            model = served.find(model) or model
            others = tuple(served.find(other) or other for other in others)
        return (model, *others)

    def allowed(
        self, name: str, limits: KeyLimits, served: ServedNames | None = None
    ) -> tuple[str, ...]:
        """Those of `served_by(name)` that a key may use. A key that may use an alias may use what
        it stands for; what stands in must be allowed by itself. Raises `RequestError` (FORBIDDEN).
        """
        model, *others = self.served_by(name, served)
        if not limits.models:
            return (model, *others)
        if name not in limits.models and model not in limits.models:
            raise RequestError(f"This API key may not use the model `{name}`.", Fault.FORBIDDEN)
        return (model, *(other for other in others if other in limits.models))

    def _by_pattern(self, name: str) -> str | None:
        for pattern in self._patterns:
            if _fits(pattern, name):
                return self.aliases[pattern]
        return None

    @cached_property
    def _patterns(self) -> list[str]:
        """The aliases with `*`, those that say most first."""
        return sorted((alias for alias in self.aliases if ANY in alias), key=lambda a: (-len(a), a))


def _fits(pattern: str, name: str) -> bool:
    """Whether `name` is `pattern` with some characters in place of each `*`."""
    first, *middle, last = pattern.split(ANY)
    if len(name) < len(first) + len(last) or not name.startswith(first) or not name.endswith(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in middle:
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True
