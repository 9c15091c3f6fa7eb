"""I/O that relay and node share: live sessions, the HTTP client, TLS, data folders."""
