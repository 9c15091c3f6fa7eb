"""Check the method, path and header fields that OPEN and HEADERS carry (SPEC section 5).

The strict form of RFC 9110 sections 5.1 and 5.5: names are tokens in lower case; values hold no
control character but HTAB, and no white space at either end. Both ends check what they decode: a
name in upper case would get past every list that is compared in lower case, and a CR, LF or NUL in
a value could end the field early in the HTTP message built from it. Both ends also check what they
encode, so that a fault of a caller or a model server ends its stream only, and not the session.
"""

from __future__ import annotations

import re
from typing import Final

from .errors import ProtocolError

_NAME_BYTES: Final = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
_VALUE_BYTES: Final = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
_METHOD: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}")
_TARGET: Final = re.compile(r"/[\x21\x22\x24-\x7e]*")  # origin form: visible ASCII without "#"


def check_fields(names: list[bytes], values: list[bytes], error: type[ProtocolError]) -> None:
    """Raise `error` unless these header fields can be copied unchanged into an HTTP message.

    Takes about 1 µs: all names are checked together, and so are all values, by a few calls that run
    in C.
    """
    if not all(names) or b"".join(names).translate(None, _NAME_BYTES):
        raise error("a header's name is not a token in lower case")
    if b"".join(values).translate(None, _VALUE_BYTES):
        raise error("a header's value holds a control character")
    if [value.strip() for value in values] != values:
        raise error("a header's value begins or ends with white space")


def check_request_line(method: str, target: str, error: type[ProtocolError]) -> None:
    """Raise `error` unless `method` and `target` (path and query) are valid in a request line."""
    if not _METHOD.fullmatch(method):
        raise error("a request's method is not a token")
    if not _TARGET.fullmatch(target):
        raise error("a request's path is not in origin form, or has characters to be encoded")
