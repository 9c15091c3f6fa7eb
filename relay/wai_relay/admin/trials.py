"""A key for a trial of the way to a model: `wai doctor`'s."""

from __future__ import annotations

from typing import Final

from wai_api.keys import TrialKey, TrialView
from wai_relay.access.keys import trial_id

from .context import Context
from .endpoint import Call, Endpoint

TRIAL_S: Final = 600.0  # twenty nodes, of which a few have to load their model first


async def lend_key(context: Context, call: Call) -> TrialKey:
    """Nothing is stored, and nothing changes for anybody else: there is no entry in the audit log.
    An admin may use every model anyway."""
    secret = context.keys.lend(TRIAL_S)
    expires_at = context.clock() + TRIAL_S
    return TrialKey(id=trial_id(secret), key=secret, expires_at=expires_at)


async def end_trial(context: Context, call: Call) -> TrialView:
    """Its key is refused from now on, and makes room for another trial."""
    context.keys.end_trial(call.path["trial"])
    return TrialView(id=call.path["trial"], expires_at=context.clock())


ENDPOINTS: Final = (
    Endpoint(
        *("POST", "/trials", lend_key, "Lend a key for a trial; nothing is stored", TrialKey),
        status=201,
    ),
    Endpoint("DELETE", "/trials/{trial}", end_trial, "Give the key of a trial back", TrialView),
)
