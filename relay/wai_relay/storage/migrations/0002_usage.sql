-- What requests cost. Raw rows are kept for a while (setting), roll-ups by hour for longer, by day
-- for good. All three are written in one transaction, so that they always agree.
-- "" stands for a model, node or key that a request never got to.

CREATE TABLE usage_requests (
    id                 INTEGER PRIMARY KEY,
    request_id         TEXT NOT NULL,
    started_at         DOUBLE PRECISION NOT NULL,
    path               TEXT NOT NULL,
    key_id             TEXT NOT NULL,
    model              TEXT NOT NULL,
    served_model       TEXT NOT NULL,
    node               TEXT NOT NULL,
    status             INTEGER NOT NULL,
    fault              TEXT NOT NULL,
    reason             TEXT NOT NULL,
    prompt_tokens      BIGINT NOT NULL,
    cached_tokens      BIGINT NOT NULL,
    completion_tokens  BIGINT NOT NULL,
    -- 1: the upstream said so; 0: the prompt is estimated and the answer counted as it passed.
    exact              INTEGER NOT NULL,
    queue_ms           DOUBLE PRECISION NOT NULL,
    ttft_ms            DOUBLE PRECISION,
    duration_ms        DOUBLE PRECISION NOT NULL,
    tokens_per_s       DOUBLE PRECISION,
    bytes_in           BIGINT NOT NULL,
    bytes_out          BIGINT NOT NULL,
    attempts           INTEGER NOT NULL,
    stream             INTEGER NOT NULL,
    cancelled          INTEGER NOT NULL,
    fallback           INTEGER NOT NULL,
    cost               DOUBLE PRECISION NOT NULL
);
CREATE INDEX usage_requests_started ON usage_requests (started_at);

CREATE TABLE usage_rollups (
    span               TEXT NOT NULL CHECK (span IN ('hour', 'day')),
    -- When the hour or day began, UTC.
    start              BIGINT NOT NULL,
    key_id             TEXT NOT NULL,
    model              TEXT NOT NULL,
    node               TEXT NOT NULL,
    requests           BIGINT NOT NULL,
    errors             BIGINT NOT NULL,
    cancelled          BIGINT NOT NULL,
    fallbacks          BIGINT NOT NULL,
    retried            BIGINT NOT NULL,
    -- Requests whose tokens are not what an upstream said.
    estimated          BIGINT NOT NULL,
    prompt_tokens      BIGINT NOT NULL,
    cached_tokens      BIGINT NOT NULL,
    completion_tokens  BIGINT NOT NULL,
    bytes_in           BIGINT NOT NULL,
    bytes_out          BIGINT NOT NULL,
    queue_ms           DOUBLE PRECISION NOT NULL,
    -- Tokens after the first of each answer, and the time they took: their ratio is tokens/s.
    decode_tokens      BIGINT NOT NULL,
    decode_ms          DOUBLE PRECISION NOT NULL,
    cost               DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (span, start, key_id, model, node)
);

-- Times to first token: how many requests fell into each bin of `usage/histogram.py`.
CREATE TABLE usage_ttft (
    span      TEXT NOT NULL,
    start     BIGINT NOT NULL,
    key_id    TEXT NOT NULL,
    model     TEXT NOT NULL,
    node      TEXT NOT NULL,
    bin       INTEGER NOT NULL,
    requests  BIGINT NOT NULL,
    PRIMARY KEY (span, start, key_id, model, node, bin)
);
