-- Who may do what: nodes, invites, API keys, admins; what they did; what was set.
-- Times are seconds since 1970 (UTC). JSON is text. No secret is stored, only SHA-256 of it.

CREATE TABLE nodes (
    id          TEXT PRIMARY KEY,
    name        TEXT NOT NULL,
    public_key  BLOB NOT NULL UNIQUE,
    tags        TEXT NOT NULL DEFAULT '[]',
    options     TEXT NOT NULL DEFAULT '{}',
    created_at  DOUBLE PRECISION NOT NULL,
    removed_at  DOUBLE PRECISION
);
-- A removed node gives its name free.
CREATE UNIQUE INDEX nodes_name ON nodes (name) WHERE removed_at IS NULL;

CREATE TABLE invites (
    id             TEXT PRIMARY KEY,
    secret_sha256  BLOB NOT NULL UNIQUE,
    name           TEXT,
    options        TEXT NOT NULL DEFAULT '{}',
    created_at     DOUBLE PRECISION NOT NULL,
    expires_at     DOUBLE PRECISION NOT NULL,
    used_at        DOUBLE PRECISION,
    used_by        TEXT,
    revoked_at     DOUBLE PRECISION
);

CREATE TABLE api_keys (
    id          TEXT PRIMARY KEY,
    name        TEXT NOT NULL,
    sha256      BLOB NOT NULL UNIQUE,
    prefix      TEXT NOT NULL,
    limits      TEXT NOT NULL DEFAULT '{}',
    -- Grows with every change: a change that was decided on an older state does not apply.
    version     INTEGER NOT NULL DEFAULT 1,
    created_at  DOUBLE PRECISION NOT NULL,
    revoked_at  DOUBLE PRECISION
);

CREATE TABLE admins (
    name          TEXT PRIMARY KEY,
    token_sha256  BLOB NOT NULL UNIQUE,
    created_at    DOUBLE PRECISION NOT NULL,
    revoked_at    DOUBLE PRECISION
);

CREATE TABLE audit_log (
    id       INTEGER PRIMARY KEY,
    at       DOUBLE PRECISION NOT NULL,
    actor    TEXT NOT NULL,
    action   TEXT NOT NULL,
    subject  TEXT NOT NULL,
    detail   TEXT NOT NULL DEFAULT '{}'
);

CREATE TABLE settings (
    name        TEXT PRIMARY KEY,
    value       TEXT NOT NULL,
    changed_at  DOUBLE PRECISION NOT NULL
);
