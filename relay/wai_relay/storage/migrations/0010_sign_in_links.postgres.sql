-- Links that sign a browser in once, at whichever of the relays it opens them. A relay with SQLite has them in memory.
CREATE TABLE sign_in_links (
    secret_sha256  BYTEA PRIMARY KEY,
    admin          TEXT COLLATE "C" NOT NULL,
    token_mark     BYTEA NOT NULL,
    expires_at     DOUBLE PRECISION NOT NULL
);
