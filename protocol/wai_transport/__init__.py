"""asyncio shells that relay and node share: live sessions, the HTTP client, TLS, folders."""
