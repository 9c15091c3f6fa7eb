-- The batches of usage that were written last, so that one whose confirmation was lost is not counted
-- twice when it is written again.

CREATE TABLE usage_batches (
    number  INTEGER PRIMARY KEY,
    id      TEXT NOT NULL UNIQUE
);
