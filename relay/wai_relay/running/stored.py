"""What a relay keeps in its data folder, loaded into memory."""

from __future__ import annotations

import msgspec

from wai_protocol.identity import RelayKey, relay_id
from wai_relay.access.admins import LOCAL_ADMIN, Admins, local_admin_of
from wai_relay.access.audit import AuditLog
from wai_relay.access.keys import KeyRing
from wai_relay.access.sign_ins import SignIns
from wai_relay.fleet.invites import Invites
from wai_relay.fleet.registry import NodeRegistry
from wai_relay.fleet.relays import Relays
from wai_relay.identity import load_admin_token, load_relay_key
from wai_relay.settings import SettingsBook
from wai_relay.storage import Housekeeping, Store
from wai_relay.usage import RequestHistory, UsageRecorder, UsageReport
from wai_transport.folder import DataFolder


class Stored(msgspec.Struct, frozen=True):
    """The contents of one data folder. Make it with `load`; close `recorder` before the store."""

    store: Store
    relay_key: RelayKey
    registry: NodeRegistry
    invites: Invites
    keys: KeyRing
    settings: SettingsBook
    admins: Admins
    sign_ins: SignIns
    audit: AuditLog
    report: UsageReport
    history: RequestHistory
    recorder: UsageRecorder
    relays: Relays

    @classmethod
    async def load(cls, store: Store, folder: DataFolder, housekeeping: Housekeeping) -> Stored:
        """Read everything; what a first start needs (keys, the admin's token) is made.

        Raises `StoreError`.
        """
        relay_key = load_relay_key(folder)
        registry = await NodeRegistry.load(store)
        keys = await KeyRing.load(store)
        settings = await SettingsBook.load(store)
        own_id = relay_id(relay_key.public)
        local = local_admin_of(own_id) if store.shared else LOCAL_ADMIN
        admins = await Admins.load(store, load_admin_token(folder), local=local)
        sign_ins = await SignIns.load(store, admins)
        # The last one: from here on it has timers, which its `close` ends.
        recorder = await UsageRecorder.load(
            *(store, lambda: settings.now.usage_retention_days * 86400.0, folder.path),
            writer=f"{own_id}." if store.shared else "",
            keeps_house=lambda: housekeeping.ours,
        )
        recorder.relay = own_id if store.shared else ""
        return cls(
            store=store,
            relay_key=relay_key,
            registry=registry,
            invites=Invites(store, registry),
            keys=keys,
            settings=settings,
            admins=admins,
            sign_ins=sign_ins,
            audit=AuditLog(store),
            report=UsageReport(store),
            history=RequestHistory(store),
            recorder=recorder,
            relays=Relays(store, own_id),
        )
