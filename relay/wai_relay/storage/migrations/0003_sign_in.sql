-- Browsers that are signed in to the dashboard. A copy of this table opens nothing: it has hashes.

CREATE TABLE sign_ins (
    cookie_sha256  BLOB PRIMARY KEY,
    admin          TEXT NOT NULL,
    created_at     DOUBLE PRECISION NOT NULL,
    expires_at     DOUBLE PRECISION NOT NULL
);
