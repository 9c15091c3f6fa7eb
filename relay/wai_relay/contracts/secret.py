"""A secret that the operator has put into a file or the environment, rather than the settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from wai_protocol.errors import RequestError, StoreError

MAX_SECRET_CHARS: Final = 4096  # some services hand out signed tokens; a wrong file is longer


def read_secret(
    whose: str,
    variable: str | None,
    file: Path | None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """The secret in `variable` or else in `file`; "" if neither is configured.

    `whose`: what an error begins with. Raises `RequestError` or `StoreError` if it should be there
    and is not, without saying what is there instead.
    """
    if variable is not None:
        known = os.environ if environment is None else environment
        where, secret = f"the variable {variable}", known.get(variable, "")
    elif file is not None:
        where = str(file)
        try:
            with file.open(encoding="utf-8") as opened:
                secret = opened.read(MAX_SECRET_CHARS + 1)
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{whose}: {where} can't be read") from error
    else:
        return ""
    secret = secret.strip()
    fits = 0 < len(secret) <= MAX_SECRET_CHARS
    if not (fits and secret.isascii() and secret.isprintable()):
        raise RequestError(f"{whose}: {where} holds no key")
    return secret
