"""A relay as a whole: what it consists of, its start and its end, its successor."""
