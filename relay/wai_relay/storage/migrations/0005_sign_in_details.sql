-- A sign-in ends with the token that it was made by, and can be told from others and ended alone.
-- Those from before do not say which token that was, so their browsers sign in once more.

DROP TABLE sign_ins;

CREATE TABLE sign_ins (
    cookie_sha256  BLOB PRIMARY KEY,
    id             TEXT NOT NULL,
    admin          TEXT NOT NULL,
    token_mark     BLOB NOT NULL,
    created_at     DOUBLE PRECISION NOT NULL,
    expires_at     DOUBLE PRECISION NOT NULL,
    used_at        DOUBLE PRECISION NOT NULL,
    address        TEXT NOT NULL,
    user_agent     TEXT NOT NULL
);
