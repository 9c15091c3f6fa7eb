"""All faults with their wire code, HTTP status, OpenAI error type and log level.

Every error that leaves a package is a `WaiError` that carries a `Fault`. The table below is the
only place that maps a fault to what a peer, a caller or a log sees (SPEC section 8).
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

# The values of `logging`'s levels, and named tuples instead of dataclasses: every command imports
# this module, and importing `logging` and `dataclasses` would take longer than all the rest that
# `wai --help` needs.
_DEBUG, _INFO, _WARNING, _ERROR = 10, 20, 30, 40


class FaultRow(NamedTuple):
    """One line of the table: how a fault looks on the wire, over HTTP and in the log."""

    wire_code: int
    http_status: int
    openai_type: str
    openai_code: str
    log_level: int


class Fault(enum.Enum):
    """A kind of failure between a caller and a model. `fault.row` says how it is shown."""

    # on the wire: RESET, GOAWAY, REFUSE and REPLY codes (SPEC section 8)
    CANCELLED = FaultRow(1, 499, "invalid_request_error", "cancelled", _DEBUG)
    INTERNAL = FaultRow(2, 500, "server_error", "internal_error", _ERROR)
    UPSTREAM_UNREACHABLE = FaultRow(3, 502, "server_error", "upstream_unreachable", _WARNING)
    UPSTREAM_TIMEOUT = FaultRow(4, 504, "server_error", "upstream_timeout", _WARNING)
    UPSTREAM_BROKE = FaultRow(5, 502, "server_error", "upstream_broke", _WARNING)
    ROUTE_REFUSED = FaultRow(6, 404, "invalid_request_error", "unknown_url", _INFO)
    MODEL_NOT_FOUND = FaultRow(7, 404, "invalid_request_error", "model_not_found", _INFO)
    OVERLOADED = FaultRow(8, 503, "server_error", "overloaded", _WARNING)
    DRAINING = FaultRow(9, 503, "server_error", "draining", _INFO)
    SESSION_LOST = FaultRow(10, 502, "server_error", "node_lost", _WARNING)
    FLOW_CONTROL = FaultRow(11, 502, "server_error", "flow_control_violated", _ERROR)
    PROTOCOL = FaultRow(12, 502, "server_error", "protocol_error", _ERROR)
    BODY_TOO_LARGE = FaultRow(13, 413, "invalid_request_error", "body_too_large", _INFO)
    NODE_FULL = FaultRow(14, 503, "server_error", "node_full", _INFO)
    NODE_UNKNOWN = FaultRow(20, 403, "authentication_error", "unknown_node", _WARNING)
    NODE_REMOVED = FaultRow(21, 403, "authentication_error", "node_removed", _WARNING)
    INVITE_INVALID = FaultRow(22, 403, "authentication_error", "invalid_invite", _WARNING)
    NAME_TAKEN = FaultRow(23, 409, "invalid_request_error", "name_taken", _INFO)
    PROOF_INVALID = FaultRow(24, 403, "authentication_error", "invalid_proof", _WARNING)
    VERSION_UNSUPPORTED = FaultRow(
        25, 400, "invalid_request_error", "unsupported_version", _WARNING
    )
    TIMED_OUT = FaultRow(26, 408, "invalid_request_error", "timed_out", _INFO)
    REPLACED = FaultRow(27, 409, "server_error", "replaced_by_newer_connection", _INFO)
    BAD_REQUEST = FaultRow(28, 400, "invalid_request_error", "bad_request", _INFO)
    FORBIDDEN = FaultRow(29, 403, "permission_error", "forbidden", _INFO)
    NOT_FOUND = FaultRow(30, 404, "invalid_request_error", "not_found", _INFO)
    RATE_LIMITED = FaultRow(31, 429, "rate_limit_error", "rate_limit_exceeded", _INFO)
    NO_NODE = FaultRow(32, 503, "server_error", "no_node_available", _WARNING)
    STORAGE = FaultRow(33, 507, "server_error", "storage_failed", _ERROR)
    IDENTITY_COPIED = FaultRow(34, 409, "authentication_error", "identity_copied", _WARNING)

    # shown to callers only: these have no wire code
    KEY_MISSING = FaultRow(0, 401, "authentication_error", "missing_api_key", _INFO)
    KEY_INVALID = FaultRow(0, 401, "authentication_error", "invalid_api_key", _INFO)
    METHOD_NOT_ALLOWED = FaultRow(0, 405, "invalid_request_error", "method_not_allowed", _INFO)
    NODE_NOT_FOUND = FaultRow(0, 404, "invalid_request_error", "node_not_found", _INFO)
    HEAD_TOO_LARGE = FaultRow(0, 431, "invalid_request_error", "headers_too_large", _INFO)
    ENCODING_UNSUPPORTED = FaultRow(
        0, 415, "invalid_request_error", "unsupported_content_encoding", _INFO
    )
    EXPECTATION_FAILED = FaultRow(0, 417, "invalid_request_error", "expectation_failed", _INFO)
    CONTEXT_EXCEEDED = FaultRow(0, 400, "invalid_request_error", "context_length_exceeded", _INFO)
    QUOTA_EXCEEDED = FaultRow(0, 429, "insufficient_quota", "insufficient_quota", _INFO)
    QUEUE_FULL = FaultRow(0, 503, "server_error", "queue_full", _WARNING)

    @property
    def row(self) -> FaultRow:
        """Return the fault's line in the table."""
        return self.value


_BY_WIRE_CODE: Final = {f.row.wire_code: f for f in Fault if f.row.wire_code}


def fault_for_wire_code(code: int) -> Fault:
    """Return the fault with this wire code; an unknown code counts as `INTERNAL`."""
    return _BY_WIRE_CODE.get(code, Fault.INTERNAL)


class WaiError(Exception):
    """Base class of every error that this project raises.

    `str(error)` is a sentence for the person who will read it. `retry_after_s`, where it is set, is
    the time in seconds after which another try makes sense.
    """

    default_fault = Fault.INTERNAL

    def __init__(
        self, message: str, fault: Fault | None = None, *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.fault = fault or self.default_fault
        self.retry_after_s = retry_after_s


class ProtocolError(WaiError):
    """A rule of `wai/1` or of HTTP was broken."""

    default_fault = Fault.PROTOCOL


class LocalProtocolError(ProtocolError):
    """Our own code asked for something the protocol does not allow: a bug on this side."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something the protocol does not allow; its connection is closed."""


class TransportError(WaiError):
    """A connection could not be made, or was lost."""

    default_fault = Fault.UPSTREAM_UNREACHABLE


class AuthError(WaiError):
    """A peer or caller could not prove its identity, or is not allowed to do this."""

    default_fault = Fault.PROOF_INVALID


class NodeUnavailable(WaiError):
    """No node can serve this request now."""

    default_fault = Fault.NO_NODE


class RequestError(WaiError):
    """A caller's request is refused; the message tells the caller what to change."""

    default_fault = Fault.BAD_REQUEST


class StoreError(WaiError):
    """A file or the database cannot be read or written, or the disk is full."""

    default_fault = Fault.STORAGE
