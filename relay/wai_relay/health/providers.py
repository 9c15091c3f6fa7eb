"""Cloud providers that refuse our key, can't be reached, or fail."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from wai_api.health import ProblemView
from wai_relay.fleet.provider_trouble import Trouble

from .problem import problem


class WatchedProvider(Protocol):
    """A provider, as far as it is watched (`fleet.providers.Provider`)."""

    @property
    def name(self) -> str:
        """As requests name it: `provider:NAME`."""

    @property
    def trouble(self) -> Trouble | None:
        """Why it can't be used; None while it can, as far as is known."""

    @property
    def ahead_s(self) -> float | None:
        """How far its clock is ahead of ours; None if that is not known."""


_KEY: Final = (
    "put a good key where its `key_file` or `key_env` says and reload the relay (`systemctl reload"
    " wai-relay`); see at the provider whether the account is paid"
)
_AWAY: Final = (
    "see from the relay's machine whether its `base_url` answers (`curl -I`), and whether"
    " HTTPS_PROXY is right; until then requests go elsewhere or fail"
)


def provider_problems(providers: Iterable[WatchedProvider]) -> Iterator[ProblemView]:
    """Say what is wrong with each."""
    for provider in providers:
        trouble = provider.trouble
        if trouble is not None:
            yield problem(
                *("provider", provider.name, "key" if trouble.refused else "away"),
                trouble.text,
                _KEY if trouble.refused else _AWAY,
            )
