-- By which relay a request came: its id, '' where the relay has its database for itself.
ALTER TABLE usage_requests ADD COLUMN relay TEXT NOT NULL DEFAULT '';
