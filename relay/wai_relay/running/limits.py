"""Who judges the limits of API keys: this relay alone, or the database that relays share."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Final

from wai_relay.policy.admission import Admission
from wai_relay.policy.shared_admission import SharedAdmission
from wai_relay.shares.courier import Courier
from wai_relay.shares.judge import Judge

from .stored import Stored

_HOLDER_BYTES: Final = 8  # by chance no two processes have the same


def limits_of(stored: Stored) -> tuple[Admission, Courier | None]:
    """Return the rules for callers' limits; with other relays also what carries them to the
    database, to be started and closed."""
    store, recorder = stored.store, stored.recorder
    if not store.shared:
        return Admission(recorder.months), None
    from wai_relay.storage.postgres import PostgresStore  # its driver is an extra

    assert isinstance(store, PostgresStore)
    loop = asyncio.get_running_loop()
    admission = SharedAdmission(
        loop.create_future, months=recorder.months, usage=recorder.tokens_of_month
    )
    stored.keys.on_limits = lambda key: admission.limits_changed(key, time.monotonic())
    # Each process has its own, since one that is replaced runs beside its successor for a while.
    judge = Judge(lambda: store.connect("limits"), secrets.token_hex(_HOLDER_BYTES))
    return admission, Courier(admission, judge, one_host=len(store.address.hosts()) == 1)
