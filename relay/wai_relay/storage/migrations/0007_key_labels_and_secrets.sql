-- Words that keys are grouped by, and the former secrets of keys that were given another one.

CREATE TABLE api_key_labels (
    key_id  TEXT NOT NULL,
    label   TEXT NOT NULL,
    PRIMARY KEY (key_id, label)
);

CREATE TABLE api_key_secrets (
    sha256      BLOB PRIMARY KEY,
    key_id      TEXT NOT NULL,
    good_until  DOUBLE PRECISION NOT NULL
);
