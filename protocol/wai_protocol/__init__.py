"""`wai/1`: the sans-I/O core that relay and node share. `protocol/SPEC.md` explains the wire."""

from .errors import (
    AuthError,
    Fault,
    LocalProtocolError,
    NodeUnavailable,
    ProtocolError,
    RemoteProtocolError,
    RequestError,
    StoreError,
    TransportError,
    WaiError,
)
from .limits import ALPN, Limits
from .session import Role, Session
from .status import ModelStatus, NodeStatus
from .surface import Headers

__all__ = [
    "ALPN",
    "AuthError",
    "Fault",
    "Headers",
    "Limits",
    "LocalProtocolError",
    "ModelStatus",
    "NodeStatus",
    "NodeUnavailable",
    "ProtocolError",
    "RemoteProtocolError",
    "RequestError",
    "Role",
    "Session",
    "StoreError",
    "TransportError",
    "WaiError",
]
