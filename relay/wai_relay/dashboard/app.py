"""The admin API and the dashboard as one ASGI app: what answers /admin/* and /dashboard*."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from starlette.applications import Starlette
from starlette.routing import Route

from wai_relay.admin.app import exception_handlers
from wai_relay.admin.app import routes as admin_routes
from wai_relay.admin.context import Context

from . import sign_in
from .static import BASE, FOLDER, StaticFiles, redirect

SESSION: Final = f"{BASE}/session"


def create_app(context: Context, folder: Path = FOLDER) -> Starlette:
    """Both, over what is in `context`; `folder` has the dashboard's built files."""
    files = StaticFiles(folder)
    return Starlette(
        routes=[
            *admin_routes(context, sign_in.described(SESSION)),
            Route(BASE, redirect, methods=["GET"]),
            *sign_in.routes(context, SESSION),
            Route(f"{BASE}/{{path:path}}", files.respond, methods=["GET"]),
        ],
        exception_handlers=exception_handlers(),
    )
