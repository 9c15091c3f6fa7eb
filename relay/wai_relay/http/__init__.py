"""The HTTP server for callers: one port, HTTP/1.1 and HTTP/2, one `Exchange` per request."""

# ruff: noqa: A005  # nothing imports this package by the bare name `http`
