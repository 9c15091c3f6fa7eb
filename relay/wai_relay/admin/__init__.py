"""The admin API: what the CLI and the dashboard do, over HTTP."""

from .app import BASE, create_app
from .context import Context, Fleet, LiveNode

__all__ = ["BASE", "Context", "Fleet", "LiveNode", "create_app"]
