"""The handshake that begins every connection: it authenticates both ends and resumes a session.

    node                                  relay
    HELLO      versions, key, session ──▶
               ◀── CHALLENGE              nonce, relay's key, relay's signature
    PROOF      node's signature, invite ─▶
               ◀── WELCOME or REFUSE

Both signatures cover the bytes sent so far, and with them the certificate that the node saw (RFC
5929 `tls-server-end-point`): a proof made for one relay is not valid at another one, nor through a
man in the middle. `NodeHandshake` and `RelayHandshake` are state machines without I/O, each used
for one connection. The relay's own code decides which node may join. See SPEC section 3.
"""

from __future__ import annotations

import enum
import hashlib
from typing import Any, Final

import msgpack
import msgspec

from .errors import AuthError, Fault, RemoteProtocolError, WaiError, fault_for_wire_code
from .frames import FrameType, pack, printable
from .identity import IdentityKey, verify
from .limits import MAX_HANDSHAKE_BYTES, MAX_REASON_CHARS, VERSION, Limits

NONCE_BYTES: Final = 32
SESSION_ID_BYTES: Final = 16
HASH_BYTES: Final = 32
MAX_TEXT_CHARS: Final = 128  # a node's name, an agent's version
MAX_RETRY_AFTER_S: Final = 3600.0  # the longest wait that a REFUSE can ask for
RELAY_CONTEXT: Final = b"wai/1 relay\x00"
NODE_CONTEXT: Final = b"wai/1 node\x00"


class Hello(msgspec.Struct, frozen=True):
    """The node's first frame.

    `session` and `received`: the session to resume (None for a new one) and how many of its bytes
    the node has received. `endpoint_hash`: SHA-256 of the certificate that the node saw, b""
    without TLS. `instance`: a random id of this run of the node; the sessions of an earlier run are
    lost. `tunnel`: the number of the node's tunnel, from 0; each tunnel has one session. None: not
    told. `host`: the name of the node's machine, by which it is called if neither it nor its invite
    asks for a name.
    """

    public: bytes
    name: str
    endpoint_hash: bytes
    session: bytes | None = None
    received: int = 0
    limits: Limits = msgspec.field(default_factory=Limits)
    agent: str = ""
    instance: str = ""
    tunnel: int | None = None
    host: str = ""


class Welcome(msgspec.Struct, frozen=True):
    """The relay's last frame. `resumed` False: the session is new, and the earlier one is lost."""

    session: bytes
    received: int
    resumed: bool
    node_id: str
    name: str
    limits: Limits


class ProvenHello(msgspec.Struct, frozen=True):
    """A HELLO whose sender has proven that it holds the key in it.

    `invite_secret`: the secret of the invite with which the node wants to join, None if it has
    joined before.
    """

    hello: Hello
    invite_secret: bytes | None


class _Reader:
    """Collects a handshake's bytes, and splits them into frames with their raw bytes.

    The signatures cover the raw bytes.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._taken = 0

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def frame(self) -> tuple[list[Any], bytes] | None:
        unpacker = msgpack.Unpacker(
            raw=False, max_buffer_size=MAX_HANDSHAKE_BYTES, max_array_len=64, max_map_len=64
        )
        try:
            unpacker.feed(bytes(self._buffer[:MAX_HANDSHAKE_BYTES]))
            item = unpacker.unpack()
        except msgpack.OutOfData:
            if self._taken + len(self._buffer) >= MAX_HANDSHAKE_BYTES:
                raise RemoteProtocolError("the handshake is too long") from None
            return None
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            raise RemoteProtocolError(f"the bytes are not a handshake: {error}") from None
        if type(item) is not list or not item or type(item[0]) is not int:
            raise RemoteProtocolError("a frame is not an array that begins with its type")
        size = unpacker.tell()
        raw = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._taken += size
        return item, raw

    def leftover(self) -> bytes:
        return bytes(self._buffer)


class _NodeState(enum.Enum):
    WAIT_CHALLENGE = enum.auto()
    WAIT_WELCOME = enum.auto()
    DONE = enum.auto()


class NodeHandshake:
    """The node's side of a handshake.

    `relay_public`: the key of the relay that is expected, from the invite. Pass received bytes to
    `receive_data` and send what `bytes_to_send` returns, until `receive_data` returns a `Welcome`
    or raises: `AuthError` if the relay refused (with its fault and, if given, `retry_after_s`) or
    is another relay than expected, `RemoteProtocolError` for invalid bytes.
    """

    def __init__(
        self,
        key: IdentityKey,
        hello: Hello,
        *,
        relay_public: bytes,
        invite_secret: bytes | None = None,
    ) -> None:
        self._key = key
        self._relay_public = relay_public
        self._invite_secret = invite_secret
        self._reader = _Reader()
        self._state = _NodeState.WAIT_CHALLENGE
        self._hello = pack(_hello_row(hello))
        self._out = self._hello

    def bytes_to_send(self) -> bytes:
        """What is to be sent now; b"" if nothing."""
        out, self._out = self._out, b""
        return out

    def receive_data(self, data: bytes) -> Welcome | None:
        """Process bytes from the relay; returns the `Welcome` that ends the handshake, or None."""
        self._reader.feed(data)
        while self._state is not _NodeState.DONE and (got := self._reader.frame()):
            item, raw = got
            if item[0] == FrameType.REFUSE:
                raise _refusal(item)
            if self._state is _NodeState.WAIT_CHALLENGE:
                self._prove(item, raw)
            else:
                self._state = _NodeState.DONE
                return _read_welcome(item)
        return None

    def leftover(self) -> bytes:
        """Return the bytes that came after the WELCOME: the first ones of the session."""
        return self._reader.leftover()

    def _prove(self, item: list[Any], raw: bytes) -> None:
        version, nonce, relay_public, signature = _fields(
            item, FrameType.CHALLENGE, (int, bytes, bytes, bytes)
        )
        if version != VERSION:
            raise AuthError(
                f"the relay speaks wai/{version}, this node wai/{VERSION}",
                Fault.VERSION_UNSUPPORTED,
            )
        if len(nonce) != NONCE_BYTES:
            raise RemoteProtocolError("a CHALLENGE has a nonce of the wrong length")
        if relay_public != self._relay_public:
            raise AuthError("this is not the relay that the invite named (its key is another one)")
        verify(relay_public, signature, relay_transcript(self._hello, nonce))
        secret = self._invite_secret
        proof = self._key.sign(node_transcript(self._hello, raw, secret))
        self._out += pack((int(FrameType.PROOF), proof, secret))
        self._state = _NodeState.WAIT_WELCOME


class _RelayState(enum.Enum):
    WAIT_HELLO = enum.auto()
    WAIT_PROOF = enum.auto()
    WAIT_VERDICT = enum.auto()
    DONE = enum.auto()


class RelayHandshake:
    """The relay's side of a handshake.

    `receive_data` returns a `ProvenHello` once the node has proven its key. The owner then calls
    `accept` or `refuse`, and sends what `bytes_to_send` returns.

    `endpoint_hashes`: SHA-256 of each certificate that this port presents (two while one replaces
    the other); None where a proxy terminates TLS, so that the node saw the proxy's certificate.
    """

    def __init__(
        self, key: IdentityKey, *, nonce: bytes, endpoint_hashes: frozenset[bytes] | None
    ) -> None:
        self._key = key
        self._nonce = nonce
        self._endpoint_hashes = endpoint_hashes
        self._reader = _Reader()
        self._state = _RelayState.WAIT_HELLO
        self._hello: Hello | None = None
        self._hello_raw = b""
        self._challenge = b""
        self._out = b""

    def bytes_to_send(self) -> bytes:
        """What is to be sent now; b"" if nothing."""
        out, self._out = self._out, b""
        return out

    def receive_data(self, data: bytes) -> ProvenHello | None:
        """Process bytes from the node; returns a `ProvenHello` once its proof was checked, or None.

        Raises `AuthError` or `RemoteProtocolError`: then call `refuse`.
        """
        self._reader.feed(data)
        while self._state in _RELAY_READS and (got := self._reader.frame()):
            item, raw = got
            if self._state is _RelayState.WAIT_HELLO:
                self._challenge_node(item, raw)
            else:
                proven = self._check_proof(item)
                if self._reader.leftover():
                    raise RemoteProtocolError("the node did not wait for the WELCOME")
                return proven
        if self._state is _RelayState.WAIT_VERDICT:
            raise RemoteProtocolError("the node did not wait for the WELCOME")
        return None

    def leftover(self) -> bytes:
        """Return the bytes that came after the PROOF: b"", because a node waits for the WELCOME."""
        return self._reader.leftover()

    def accept(self, welcome: Welcome) -> None:
        """Accept the node: queue the WELCOME."""
        self._out += pack(
            (
                int(FrameType.WELCOME),
                welcome.session,
                welcome.received,
                welcome.resumed,
                welcome.node_id,
                welcome.name,
                welcome.limits.to_wire(),
            )
        )
        self._state = _RelayState.DONE

    def refuse(self, error: WaiError) -> None:
        """Refuse the node: queue a REFUSE. The owner closes the connection once it is sent."""
        after_s = error.retry_after_s
        after_ms = None if after_s is None else round(after_s * 1000)
        code = error.fault.row.wire_code
        self._out += pack((int(FrameType.REFUSE), code, str(error)[:MAX_REASON_CHARS], after_ms))
        self._state = _RelayState.DONE

    def _challenge_node(self, item: list[Any], raw: bytes) -> None:
        self._hello = _read_hello(item)
        self._hello_raw = raw
        expected = self._endpoint_hashes
        if expected is not None and self._hello.endpoint_hash not in expected:
            raise AuthError(
                "the node saw another certificate than this relay's; something between them "
                "terminates TLS"
            )
        signature = self._key.sign(relay_transcript(raw, self._nonce))
        self._challenge = pack(
            (int(FrameType.CHALLENGE), VERSION, self._nonce, self._key.public, signature)
        )
        self._out += self._challenge
        self._state = _RelayState.WAIT_PROOF

    def _check_proof(self, item: list[Any]) -> ProvenHello:
        assert self._hello is not None
        (signature, secret) = _fields(item, FrameType.PROOF, (bytes, None))
        if secret is not None and type(secret) is not bytes:
            raise RemoteProtocolError("the invite's secret is not bytes")
        transcript = node_transcript(self._hello_raw, self._challenge, secret)
        verify(self._hello.public, signature, transcript)
        self._state = _RelayState.WAIT_VERDICT
        return ProvenHello(self._hello, secret)


_RELAY_READS: Final = (_RelayState.WAIT_HELLO, _RelayState.WAIT_PROOF)


def relay_transcript(hello: bytes, nonce: bytes) -> bytes:
    """Return the bytes that the relay signs: over the node's HELLO and a nonce (SPEC section 3)."""
    return RELAY_CONTEXT + hashlib.sha256(hello).digest() + nonce


def node_transcript(hello: bytes, challenge: bytes, invite_secret: bytes | None) -> bytes:
    """Return the bytes that the node signs: over HELLO, CHALLENGE and invite (SPEC section 3)."""
    parts = (hello, challenge, invite_secret or b"")
    return NODE_CONTEXT + b"".join(hashlib.sha256(part).digest() for part in parts)


def _hello_row(hello: Hello) -> tuple[object, ...]:
    info: dict[str, object] = {
        "name": hello.name,
        "agent": hello.agent,
        "instance": hello.instance,
        "limits": hello.limits.to_wire(),
    }
    if hello.tunnel is not None:
        info["tunnel"] = hello.tunnel
    if hello.host:
        info["host"] = hello.host
    return (
        int(FrameType.HELLO),
        [VERSION],
        hello.public,
        hello.session,
        hello.received,
        hello.endpoint_hash,
        info,
    )


def _read_hello(item: list[Any]) -> Hello:
    versions, public, session, received, endpoint_hash, info = _fields(
        item, FrameType.HELLO, (list, bytes, None, int, bytes, dict)
    )
    if VERSION not in versions:
        raise AuthError(
            f"the node speaks wai {versions}, this relay wai/{VERSION}", Fault.VERSION_UNSUPPORTED
        )
    if session is not None and (type(session) is not bytes or len(session) != SESSION_ID_BYTES):
        raise RemoteProtocolError("HELLO: malformed session id")
    if len(endpoint_hash) not in (0, HASH_BYTES):
        raise RemoteProtocolError("a HELLO has an endpoint hash of the wrong length")
    return Hello(
        public=public,
        name=_text(info, "name"),
        endpoint_hash=endpoint_hash,
        session=session,
        received=received,
        limits=Limits.from_wire(info.get("limits", {})),
        agent=_text(info, "agent"),
        instance=_text(info, "instance"),
        tunnel=_tunnel(info),
        host=_text(info, "host"),
    )


def _read_welcome(item: list[Any]) -> Welcome:
    session, received, resumed, node_id, name, limits = _fields(
        item, FrameType.WELCOME, (bytes, int, bool, str, str, dict)
    )
    if len(session) != SESSION_ID_BYTES:
        raise RemoteProtocolError("WELCOME: malformed session id")
    return Welcome(session, received, resumed, node_id, name, Limits.from_wire(limits))


def _refusal(item: list[Any]) -> AuthError:
    code, message, after_ms = _fields(item, FrameType.REFUSE, (int, str, None))
    after_s = None
    if type(after_ms) is int and after_ms >= 0:
        after_s = min(after_ms / 1000, MAX_RETRY_AFTER_S)
    # The text is shown to a person, and its sender is not authenticated: no control characters.
    shown = printable(message[:MAX_REASON_CHARS])
    return AuthError(shown, fault_for_wire_code(code), retry_after_s=after_s)


def _fields(item: list[Any], kind: FrameType, types: tuple[type | None, ...]) -> list[Any]:
    """Check the fields of `item` after its type, and return them.

    Further fields, from a newer minor version, are ignored.
    """
    if item[0] != kind or len(item) <= len(types):
        raise RemoteProtocolError(f"expected {kind.name}, got frame type {item[0]}")
    fields = item[1 : len(types) + 1]
    for value, expected in zip(fields, types, strict=True):
        if expected is not None and type(value) is not expected:
            raise RemoteProtocolError(f"{kind.name} has a field of the wrong type")
        if expected is int and not 0 <= value < 1 << 62:
            raise RemoteProtocolError(f"{kind.name} has a number out of range")
    return fields


def _tunnel(info: dict[Any, Any]) -> int | None:
    tunnel = info.get("tunnel")
    if tunnel is not None and (type(tunnel) is not int or not 0 <= tunnel < 1 << 31):
        raise RemoteProtocolError("tunnel in HELLO is not a small number")
    return tunnel


def _text(info: dict[Any, Any], key: str) -> str:
    text = info.get(key, "")
    if not isinstance(text, str) or len(text) > MAX_TEXT_CHARS or not text.isprintable():
        raise RemoteProtocolError(f"{key} in HELLO is not a short printable string")
    return text
