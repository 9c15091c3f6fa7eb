-- How many times another node went on with an answer whose node was lost.
ALTER TABLE usage_requests ADD COLUMN continued INTEGER NOT NULL DEFAULT 0;
