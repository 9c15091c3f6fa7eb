"""The callers' edge: one port, HTTP/1.1 and HTTP/2, strict heads, one `Exchange` per request."""

# ruff: noqa: A005  # nothing imports this package by the bare name `http`
