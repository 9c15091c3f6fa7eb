"""A week that a relay remembers: three apps with their keys, and what they used.

Made up, so that the screenshots' pages have a past to show; written into the store of a relay that
does not run yet.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Final

from wai_api.limits import KeyLimits
from wai_node.demo.demo import MODEL_ID
from wai_relay.access.keys import KeyRing
from wai_relay.contracts.records import RequestRecord, TokenCounts
from wai_relay.storage import SqliteStore
from wai_relay.usage.rollups import writes_for
from wai_transport.folder import DataFolder

APPS: Final = {
    "notes-app": KeyLimits(),
    "ci": KeyLimits(rpm=600, concurrency=8, priority=-1),
    "home": KeyLimits(monthly_tokens=5_000_000, local_only=True),
}
MODELS: Final = (MODEL_ID, "tiny")
DAYS: Final = 7
_DAY_S: Final = 86_400


async def remember_a_week(data: Path, nodes: tuple[str, ...]) -> list[str]:
    """Write it into the data folder `data`, as answered by `nodes`; the keys' secrets."""
    store = SqliteStore.open(DataFolder.open(data).path / "relay.db")
    keys = await KeyRing.load(store)
    chance = random.Random(7)  # the same week each time
    secrets, records = [], []
    for name, limits in APPS.items():
        key, secret = await keys.create(name, limits)
        secrets.append(secret)
        for day in range(1, DAYS):
            records += [
                _record(chance, key.id, time.time() - day * _DAY_S, nodes)
                for _ in range(chance.randrange(20, 60))
            ]
    await store.write(*writes_for((record, record.model) for record in records))
    await store.close()
    return secrets


def _record(
    chance: random.Random, key_id: str, around: float, nodes: tuple[str, ...]
) -> RequestRecord:
    completion, speed = chance.randrange(60, 900), chance.uniform(40, 90)
    prompt, ttft_ms = chance.randrange(200, 4000), chance.uniform(80, 900)
    model = chance.choice(MODELS)
    return RequestRecord(
        *(f"req_{chance.randbytes(12).hex()}", around + chance.uniform(-9000, 9000)),
        *("POST", "/v1/chat/completions", key_id, model, model, chance.choice(nodes)),
        status=200 if chance.random() < 0.98 else 502,
        attempts=1,
        tokens=TokenCounts(prompt, prompt // 3, completion, exact=True),
        ttft_ms=ttft_ms,
        duration_ms=ttft_ms + completion / speed * 1000,
    )
