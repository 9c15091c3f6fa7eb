"""What callers' model names stand for: aliases, and models that may stand in for others. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from wai_api.limits import KeyLimits
from wai_protocol.errors import Fault, RequestError


@dataclass(frozen=True, slots=True)
class ModelNames:
    """`aliases`: name to model. `fallbacks`: model to those that may stand in for it, best first.
    Replace the whole of it to change it while the relay runs."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def served_by(self, name: str) -> tuple[str, ...]:
        """The models to try for `name`, in order."""
        model = self.aliases.get(name, name)
        return (model, *self.fallbacks.get(model, ()))

    def allowed(self, name: str, limits: KeyLimits) -> tuple[str, ...]:
        """Those of `served_by(name)` that a key may use. A key that may use an alias may use what
        it stands for; what stands in must be allowed by itself. Raises `RequestError` (FORBIDDEN).
        """
        model, *others = self.served_by(name)
        if not limits.models:
            return (model, *others)
        if name not in limits.models and model not in limits.models:
            raise RequestError(f"This API key may not use the model `{name}`.", Fault.FORBIDDEN)
        return (model, *(other for other in others if other in limits.models))
