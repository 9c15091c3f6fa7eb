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
    """One model that a provider may serve. `id`: what callers ask us for; `name`: what the provider
    calls it (none: the same). `context_tokens`: the longest it takes, if that is known. Prices are
    per million tokens, in whatever currency the operator counts; `cached_price` None: as input."""

    id: str
    name: str = ""
    context_tokens: int | None = None
    input_price: float = 0.0
    output_price: float = 0.0
    cached_price: float | None = None

    def __post_init__(self) -> None:
        if not self.id:
            raise RequestError("a provider's model needs an id")
        if min(self.input_price, self.output_price, self.cached_price or 0.0) < 0:
            raise RequestError(f"the prices of {self.id!r} are 0 or more")
        if self.context_tokens is not None and self.context_tokens < 1:
            raise RequestError(f"context_tokens of {self.id!r} is 1 or more")


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """A service that speaks OpenAI's API. `base_url` ends where `/chat/completions` is added. Its
    key is in the environment (`key_env`) or in a file (`key_file`); without both none is sent.
    `ca_file`: whom to believe that it is it, in PEM; None: the system's authorities."""

    name: str
    base_url: str
    models: tuple[ProviderModel, ...]
    key_env: str | None = None
    key_file: Path | None = None
    ca_file: Path | None = None

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
