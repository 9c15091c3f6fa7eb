"""Which tables are what a relay knows, and which only tell what goes on now.

A backup and a move to another database take the former with them. Each table of the schema is in
one of the two lists; a test holds that.
"""

from __future__ import annotations

from typing import Final

KEPT_TABLES: Final = (
    *("nodes", "invites", "admins", "settings", "audit_log", "sign_ins"),
    *("api_keys", "api_key_labels", "api_key_secrets"),
    *("usage_requests", "usage_rollups", "usage_ttft", "usage_batches"),
)
PASSING_TABLES: Final = (
    *("schema_migrations", "relays", "relay_list"),
    *("limit_holders", "limit_shares", "limit_uses", "limit_contended"),  # of running processes
    "sign_in_links",  # good for minutes
    *("shared_files", "acme_challenges"),  # what they are made of is in the relays' folders
)
