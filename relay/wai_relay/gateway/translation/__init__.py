"""Serves dialects that an upstream lacks over its chat completions. Sans-I/O."""
