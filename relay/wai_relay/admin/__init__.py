"""The admin API: what the CLI and the dashboard do, over HTTP."""
