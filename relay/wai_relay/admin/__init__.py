"""The admin API: what the CLI and the dashboard do, over HTTP."""

from .app import BASE, create_app
from .context import Context

__all__ = ["BASE", "Context", "create_app"]
