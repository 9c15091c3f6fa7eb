"""Parse and check the head of a request strictly.

If an HTTP/1.1 parser tolerates invalid framing, two hops can disagree on where a request ends,
which makes request smuggling possible (RFC 9112 section 11.2). So a head that could be read in two
ways is refused here, even where other parsers, h11 among them, would accept it. `check_fields`
applies the same rules to HTTP/2 (RFC 9113 section 8.2).

The functions do no I/O. They report the framing of the body (`content_length`, `chunked`), but do
not read it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, NoReturn

import msgspec
from msgspec.structs import replace

from wai_protocol.errors import Fault, RequestError
from wai_protocol.surface import Headers

# Cookies and a long bearer token fit into 8 KiB, which is also the limit of nginx and llama-server.
# 32 KiB leave room for fields that proxies add, and bound the memory of a connection.
MAX_HEAD_BYTES: Final = 32 * 1024
# The SDKs send about 20 fields; Apache and nginx accept 100.
MAX_HEADERS: Final = 100
# No known field has a longer name. It also bounds the cache of checked names.
MAX_NAME_BYTES: Final = 128
# Numbers of 18 digits fit into an int64; longer ones are attacks on integer parsers.
MAX_LENGTH_DIGITS: Final = 18
# Lines that a connection remembers: about 20 of an SDK, some of which change. 8 KiB at most.
MAX_KNOWN: Final = 32
MAX_KNOWN_BYTES: Final = 256
MAX_KNOWN_HEAD_BYTES: Final = 4096  # of the last head, which a connection remembers too

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"[!\"$-~]+")  # visible ASCII without `#`: a fragment is never sent
_HOST = re.compile(rb"[A-Za-z0-9.\-_~%:\[\]]*")
_LENGTH_LINE = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([0-9]{1,18})(?=\r\n|\Z)")
_VERSION = re.compile(rb"HTTP/\d\.\d")
_BARE_LF = re.compile(rb"(?<!\r)\n")
# The bytes that a line may hold: HTAB, visible ASCII, space, and obs-text (RFC 9110 section 5.5).
_LINE_BYTES: Final = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
# Fields that determine where a request ends or where it is sent; they must not be repeated.
_ONCE: Final = frozenset({b"content-length", b"transfer-encoding", b"host"})
_READ_HERE: Final = _ONCE | {b"connection", b"upgrade", b"expect"}
_NOT_IN_H2: Final = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
)


class Head(msgspec.Struct, frozen=True):
    """A checked request head. Header names are lower-case, values stripped.

    `content_length` is None if there is no Content-Length. `scheme` is "" unless the target was in
    absolute form. `keep_alive`: whether the caller permits the connection to be kept.
    """

    method: str
    path: str
    query: str
    headers: Headers
    http_version: str
    scheme: str
    authority: str
    content_length: int | None
    chunked: bool
    keep_alive: bool
    expects_continue: bool
    upgrade: bytes


class KnownLines:
    """The lines of a connection's earlier heads, checked and parsed: SDKs repeat nearly all. And
    its last head, from which the next one often differs in Content-Length alone.

    They are kept as long as the connection, and for no other, because some of them are secrets.
    """

    __slots__ = (
        *("_after", "_before", "_field_of", "_head", "_length_index"),
        *("_request_line", "_request_line_parts"),
    )

    def __init__(self) -> None:
        self._field_of: dict[bytes, tuple[bytes, bytes]] = {}
        self._request_line: bytes | None = None
        self._request_line_parts = ("", "", "", "", "", "")
        self._head: Head | None = None  # the last one
        self._before = self._after = b""  # its bytes around the digits of its length
        self._length_index = 0  # where the length is in its fields

    def repeated(self, raw: bytes) -> Head | None:
        """Return the head `raw` if it has the bytes of the last one, but for the length's digits.
        So all that was checked there holds here too."""
        before, after = self._before, self._after
        if self._head is None or not raw.startswith(before) or not raw.endswith(after):
            return None
        digits = raw[len(before) : len(raw) - len(after)]
        if not digits.isdigit() or len(digits) > MAX_LENGTH_DIGITS:
            return None
        headers = self._head.headers.copy()
        headers[self._length_index] = (b"content-length", digits)
        return replace(self._head, headers=headers, content_length=int(digits))

    def remember(self, raw: bytes, head: Head) -> None:
        """Keep `head`, which was read from `raw`, as the last one."""
        line = _LENGTH_LINE.search(raw)
        if line is None or len(raw) > MAX_KNOWN_HEAD_BYTES:
            return
        self._head = replace(head, headers=head.headers.copy())
        self._length_index = head.headers.index((b"content-length", line[1]))
        self._before, self._after = raw[: line.start(1)], raw[line.end(1) :]

    def fields(self, lines: list[bytes]) -> Headers:
        """Return name and value of each field's line. Raises `RequestError`."""
        known = list(map(self._field_of.get, lines))
        return [field or self._parsed(line) for field, line in zip(known, lines, strict=True)]

    def _parsed(self, line: bytes) -> tuple[bytes, bytes]:
        raw_name, colon, value = line.partition(b":")
        if not colon:
            _refuse_line(line)
        field = (_field_name(raw_name), value.strip(b" \t"))
        varies = field[0] == b"content-length"
        if not varies and len(self._field_of) < MAX_KNOWN and len(line) <= MAX_KNOWN_BYTES:
            self._field_of[line] = field
        return field

    def request_line(self, line: bytes) -> tuple[str, str, str, str, str, str]:
        """Return the parts of a request line. Raises `RequestError`."""
        if line != self._request_line:
            self._request_line_parts = _parse_request_line(line)
            self._request_line = line if len(line) <= MAX_KNOWN_BYTES else None
        return self._request_line_parts


def parse_head(raw: bytes, known: KnownLines | None = None) -> Head:
    """Parse and check an HTTP/1.x request head (RFC 9112).

    `raw`: the bytes before the empty line, without the last CRLF. `known`: the connection's earlier
    lines. Raises `RequestError` with a sentence that names what is wrong: HEAD_TOO_LARGE for a
    limit, EXPECTATION_FAILED for an unknown `Expect`, BAD_REQUEST for everything else.
    """
    if known is None:
        return _parse_head(raw, KnownLines())
    head = known.repeated(raw)
    if head is None:
        head = _parse_head(raw, known)
        known.remember(raw, head)
    return head


def _parse_head(raw: bytes, known: KnownLines) -> Head:
    lines = raw.split(b"\r\n")
    if len(lines) > MAX_HEADERS + 1:
        raise RequestError(
            f"the request has more than {MAX_HEADERS} header fields", Fault.HEAD_TOO_LARGE
        )
    if not is_clean(raw, len(lines) - 1):
        _refuse_bytes(raw)
    method, path, query, scheme, target_authority, version = known.request_line(lines[0])
    del lines[0]
    headers = known.fields(lines)
    seen: dict[bytes, bytes] = {}
    for name, value in [field for field in headers if field[0] in _READ_HERE]:
        if name not in seen:
            seen[name] = value
        elif name in _ONCE:
            _refuse(f"the request has more than one {name.decode()} field")
        else:
            seen[name] += b"," + value
    old = version == "1.0"
    host = _host(seen, old=old)  # required and checked even if the target is in absolute form
    options = {o.strip() for o in seen.get(b"connection", b"").lower().split(b",")}
    return Head(
        method=method,
        path=path,
        query=query,
        headers=headers,
        http_version=version,
        scheme=scheme,
        authority=target_authority or host,
        content_length=_content_length(seen.get(b"content-length")),
        chunked=_is_chunked(seen, old=old),
        # HTTP/1.0's optional keep-alive is not supported: one response per connection.
        keep_alive=not old and b"close" not in options,
        expects_continue=_expects_continue(seen.get(b"expect"), old=old),
        upgrade=b"" if old or b"upgrade" not in options else seen.get(b"upgrade", b"").lower(),
    )


def check_partial(raw: bytes | bytearray, start: int) -> None:
    """Raise `RequestError` if an incomplete head is already invalid: a bare LF, or too many bytes.

    Bytes before `start` were checked by an earlier call. Without this check, a caller that ends its
    lines with LF only would get no answer before the head's deadline.
    """
    if _BARE_LF.search(raw, start):
        _refuse("a line of the request head ends in a bare LF, not CRLF")
    if len(raw) > MAX_HEAD_BYTES:
        raise RequestError(
            f"the request head is larger than {MAX_HEAD_BYTES} bytes", Fault.HEAD_TOO_LARGE
        )


def is_clean(block: bytes, lines: int) -> bool:
    """Return whether `block` has `lines` CRLFs and no other CR, LF, NUL or control character.

    `lines` must be the number of CRLF pairs in `block`. Then any single CR or LF makes the
    remaining bytes longer than `lines` pairs. One call that runs in C.
    """
    return block.translate(None, _LINE_BYTES) == b"\r\n" * lines


def check_fields(fields: list[tuple[bytes, bytes]]) -> Head:
    """Check the fields of an HTTP/2 request, as HPACK decoded them (RFC 9113 section 8).

    Raises `RequestError` with a sentence that names what is wrong.
    """
    pseudo: dict[bytes, bytes] = {}
    headers: Headers = []
    seen: dict[bytes, bytes] = {}
    cookies: list[bytes] = []
    for name, value in fields:
        _check_h2_value(name, value)
        if name[:1] == b":":
            if headers or name in pseudo:
                _refuse(f"the field {_show(name)} is repeated or comes after ordinary fields")
            pseudo[name] = value
            continue
        _check_h2_name(name)
        if name == b"te" and value.lower() != b"trailers":
            _refuse(f"the field {_show(name)} is not allowed in HTTP/2")
        if name in _READ_HERE:
            if name in seen:
                _refuse(f"the request has more than one {name.decode()} field")
            seen[name] = value
        if name == b"cookie":
            cookies.append(value)  # RFC 9113 section 8.2.3: several fields are joined to one
        else:
            headers.append((name, value))
    if cookies:
        headers.append((b"cookie", b"; ".join(cookies)))
    if len(headers) > MAX_HEADERS:
        raise RequestError(
            f"the request has more than {MAX_HEADERS} header fields", Fault.HEAD_TOO_LARGE
        )
    return _h2_head(pseudo, headers, seen)


def check_trailers(fields: list[tuple[bytes, bytes]]) -> None:
    """Check the fields of a trailer section of HTTP/2. Raises `RequestError`."""
    for name, value in fields:
        _check_h2_value(name, value)
        _check_h2_name(name)  # refuses pseudo-header fields too


def _check_h2_name(name: bytes) -> None:
    if _field_name(name) != name:
        _refuse(f"the field name {_show(name)} is not in lower case")
    if name in _NOT_IN_H2:
        _refuse(f"the field {_show(name)} is not allowed in HTTP/2")


def _check_h2_value(name: bytes, value: bytes) -> None:
    if value and (not is_clean(value, 0) or value[0] in b" \t" or value[-1] in b" \t"):
        _refuse(f"the field {_show(name)} has a control character or blank edge in its value")


def _h2_head(pseudo: dict[bytes, bytes], headers: Headers, seen: dict[bytes, bytes]) -> Head:
    if pseudo.keys() - {b":authority"} != {b":method", b":scheme", b":path"}:
        _refuse(
            "the request must have :method, :scheme and :path, and no other pseudo-header field"
        )
    method = _method(pseudo[b":method"])
    target = pseudo[b":path"]
    if target[:1] != b"/" and (target != b"*" or method != "OPTIONS"):
        _refuse(f":path {_show(target)} does not begin with /")
    path, query = _split_target(target)
    authority, host = pseudo.get(b":authority"), seen.get(b"host")
    if authority is None and host is None:
        _refuse("the request has neither :authority nor host")
    if authority is not None and host is not None and authority != host:
        _refuse(":authority and host name different hosts")
    return Head(
        method=method,
        path=path,
        query=query,
        headers=headers,
        http_version="2",
        scheme=pseudo[b":scheme"].decode("latin-1"),
        authority=_checked_host(authority if authority is not None else host or b""),
        content_length=_content_length(seen.get(b"content-length")),
        chunked=False,
        keep_alive=True,
        expects_continue=_expects_continue(seen.get(b"expect"), old=False),
        upgrade=b"",
    )


def _parse_request_line(line: bytes) -> tuple[str, str, str, str, str, str]:
    parts = line.split(b" ")
    if len(parts) != 3:
        _refuse(f"the request line {_show(line)} is not METHOD TARGET VERSION with single spaces")
    raw_method, target, version = parts
    if version != b"HTTP/1.1" and version != b"HTTP/1.0":
        if _VERSION.fullmatch(version):
            _refuse(f"{version.decode()} is not supported; use HTTP/1.1 or HTTP/2")
        _refuse(f"the request line ends in {_show(version)}, not in an HTTP version")
    method = _method(raw_method)
    scheme = authority = ""
    if target[:1] != b"/":
        scheme, authority, target = _absolute_form(method, target)
    path, query = _split_target(target)
    return method, path, query, scheme, authority, "1.1" if version == b"HTTP/1.1" else "1.0"


def _absolute_form(method: str, target: bytes) -> tuple[str, str, bytes]:
    """Split a target that is not in origin form: (scheme, authority, target in origin form)."""
    if target == b"*" and method == "OPTIONS":
        return "", "", target
    scheme, colon, rest = target.partition(b"://")
    if not colon or scheme.lower() not in (b"http", b"https"):
        _refuse(f"the request target {_show(target)} does not begin with /")
    cut = re.search(rb"[/?]", rest)
    authority, tail = (rest[: cut.start()], rest[cut.start() :]) if cut else (rest, b"/")
    if not authority:
        _refuse(f"the request target {_show(target)} names no host")
    if tail[:1] == b"?":
        tail = b"/" + tail
    return scheme.lower().decode(), _checked_host(authority), tail


def _split_target(target: bytes) -> tuple[str, str]:
    if not _TARGET.fullmatch(target):
        _refuse(f"the request target {_show(target)} has characters that must be percent-encoded")
    path, _, query = target.decode("ascii").partition("?")
    return path, query


def _method(raw: bytes) -> str:
    if not _TOKEN.fullmatch(raw):
        _refuse(f"the request method {_show(raw)} is not a token")
    if raw == b"CONNECT":
        _refuse("CONNECT is not supported: this is not a proxy")
    return raw.decode("ascii")


@lru_cache(maxsize=1024)  # names repeat: a look-up costs 0.1 µs, the check 0.4
def _field_name(raw: bytes) -> bytes:
    if raw[:1] in (b" ", b"\t"):
        _refuse("a header field is folded over several lines (obs-fold)")
    if raw[-1:] in (b" ", b"\t"):
        _refuse(f"there is white space between the field name {_show(raw.strip())} and its colon")
    if not _TOKEN.fullmatch(raw):
        _refuse(f"the field name {_show(raw)} is not a token")
    if len(raw) > MAX_NAME_BYTES:
        raise RequestError(f"the field name {_show(raw)} is too long", Fault.HEAD_TOO_LARGE)
    return raw.lower()


def _content_length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
        _refuse(f"content-length {_show(value)} is not one plain number")
    return int(value)


def _is_chunked(seen: dict[bytes, bytes], *, old: bool) -> bool:
    coding = seen.get(b"transfer-encoding")
    if coding is None:
        return False
    if b"content-length" in seen:
        _refuse("the request has both content-length and transfer-encoding")
    if old:
        _refuse("transfer-encoding is not allowed in HTTP/1.0")
    if coding.lower() != b"chunked":
        _refuse(f"transfer-encoding {_show(coding)} is not supported; use only chunked")
    return True


def _host(seen: dict[bytes, bytes], *, old: bool) -> str:
    host = seen.get(b"host")
    if host is None:
        if not old:
            _refuse("the request has no host field")
        return ""
    return _checked_host(host)


def _checked_host(host: bytes) -> str:
    if not _HOST.fullmatch(host):
        _refuse(f"the host {_show(host)} is not a host with an optional port")
    return host.decode("ascii")


def _expects_continue(value: bytes | None, *, old: bool) -> bool:
    if value is None or old:
        return False
    if value.lower() != b"100-continue":
        raise RequestError(
            f"the expectation {_show(value)} is not supported; only 100-continue is",
            Fault.EXPECTATION_FAILED,
        )
    return True


def _refuse_bytes(raw: bytes) -> NoReturn:
    """Raise a `RequestError` that names which forbidden byte the head contains."""
    if b"\x00" in raw:
        _refuse("the request head contains a NUL byte")
    if _BARE_LF.search(raw):
        _refuse("a line of the request head ends in a bare LF, not CRLF")
    if re.search(rb"\r(?!\n)", raw):
        _refuse("the request head contains a bare CR")
    _refuse("the request head contains a control character")


def _refuse_line(line: bytes) -> NoReturn:
    if line[:1] in (b" ", b"\t"):
        _refuse("a header field is folded over several lines (obs-fold)")
    _refuse(f"the header line {_show(line)} has no colon")


def _refuse(why: str) -> NoReturn:
    raise RequestError(why)


def _show(raw: bytes) -> str:
    """Return `raw` for a message: short and printable, so that it can't control a terminal."""
    text = raw[:40].decode("latin-1").encode("unicode_escape").decode("ascii")
    return f"'{text}…'" if len(raw) > 40 else f"'{text}'"
