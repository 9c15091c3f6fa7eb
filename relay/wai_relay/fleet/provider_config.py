"""Providers as the operator writes them down: `[[providers]]` in the relay's settings. Values only.

[[providers]]
name = "openai"
base_url = "https://api.openai.com/v1"
key_env = "OPENAI_API_KEY"

[[providers.models]]
id = "qwen3-8b"                 # what callers ask for
name = "gpt-5-mini"             # what the provider calls it
input_price = 0.25              # per million tokens
output_price = 2.0
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wai_protocol.errors import RequestError
from wai_relay.contracts.secret import read_secret
from wai_transport.origin import Origin

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")


@dataclass(frozen=True, slots=True)
class ProviderModel:
    """One model that a provider may serve. Prices are in whatever currency the operator counts."""

    id: str
    """What callers ask the relay for."""
    name: str = ""
    """What the provider calls it; empty: the same."""
    context_tokens: int | None = None
    """The longest context that it takes, if that is known."""
    input_price: float = 0.0
    """Of a million tokens of prompts."""
    output_price: float = 0.0
    """Of a million tokens of answers."""
    cached_price: float | None = None
    """Of a million tokens of prompts that the provider had cached; without it: as others."""

    def __post_init__(self) -> None:
        if not self.id:
            raise RequestError("a provider's model needs an id")
        if min(self.input_price, self.output_price, self.cached_price or 0.0) < 0:
            raise RequestError(f"the prices of {self.id!r} are 0 or more")
        if self.context_tokens is not None and self.context_tokens < 1:
            raise RequestError(f"context_tokens of {self.id!r} is 1 or more")


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """A service that speaks OpenAI's API. Without `key_env` and `key_file` no key is sent."""

    name: str
    """What it is called in `X-WAI-Node` and in usage."""
    base_url: str
    """Its address, up to where `/chat/completions` is added."""
    models: tuple[ProviderModel, ...]
    """What it may serve."""
    key_env: str | None = None
    """The variable of the relay's environment that has its key."""
    key_file: Path | None = None
    """A file that has its key instead."""
    ca_file: Path | None = None
    """Whom to believe that it is that service, in PEM; without it: the system's authorities."""

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise RequestError("a provider's name is up to 32 of a-z, 0-9, and . _ - inside")
        Origin.parse(self.base_url)
        if self.key_env is not None and self.key_file is not None:
            raise RequestError(f"provider {self.name}: key_env or key_file, not both")
        if len({model.id for model in self.models}) < len(self.models):
            raise RequestError(f"provider {self.name} has a model twice")

    def read_key(self, environment: Mapping[str, str] | None = None) -> str:
        """Its key, "" if none is configured. Raises `RequestError` or `StoreError` if it should be
        there and is not, without saying what is there instead."""
        return read_secret(f"provider {self.name}", self.key_env, self.key_file, environment)
